"""Large LLaMA-shaped checkpoints that are small on disk: every layer holds the same random weights.

torch.save writes numbers that several tensors share once: a 65B-shaped checkpoint takes 3 GB. What loads it
has every layer in memory for itself, as with any other checkpoint, and reads all of them in each step.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from measuring import ROOT
from shardwatt.architectures import CATALOGUE, Architecture
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights.slices import whole_shapes
from shardwatt.models import SHARD_FILE, Checkpoint

assert ROOT  # measuring has put the sources on the path

#: Shapes by name; `tiny` is for trying a benchmark on a processor.
SHAPES: dict[str, Architecture] = {
    name: CATALOGUE[name] for name in ("llama-7b", "llama-13b", "llama-30b", "llama-65b")
} | {"tiny": Architecture(256, 4, 8, 8, 704, 32_000)}

#: Standard deviation of the logits: a nucleus of tens of tokens, as with a model that has learned something.
_LOGITS = 4.0
_SEED = 2023


def made(models: Path, name: str) -> Path:
    """The folder of a model below another; made if it is not there, in Meta's layout and bfloat16."""
    folder = models / name
    if folder.is_dir():
        return folder
    shape = SHAPES[name]
    params = {
        "dim": shape.dim,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "hidden_dim": shape.hidden_dim,
        "vocab_size": shape.vocab_size,
        "norm_eps": shape.norm_eps,
        "max_seq_len": shape.context,
    }
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models) as scratch:
        unfinished = Path(scratch) / "made"
        unfinished.mkdir()
        (unfinished / "params.json").write_text(json.dumps(params))
        torch.save(_weights(shape), unfinished / SHARD_FILE.format(rank=0))
        unfinished.rename(folder)
    return folder


def on_rank(folder: Path, precision: str, device: str) -> ModelOnRank:
    """What an engine alone loads of a model in a folder; no token ends a response."""
    shape = SHAPES[folder.name]
    # No engine reads the tokenizer, and there is none.
    checkpoint = Checkpoint(folder, folder / "tokenizer.model", "meta", (SHARD_FILE.format(rank=0),))
    return ModelOnRank(
        architecture=shape,
        checkpoint=checkpoint,
        precision=precision,
        device=device,
        rank=0,
        ranks=1,
        vocab_size=shape.vocab_size,
        eos_ids=frozenset(),
    )


def _weights(shape: Architecture) -> dict[str, Tensor]:
    """Every tensor under Meta's name; those of the first layer are those of all.

    A matrix keeps the size of what goes through it, but those that write to the residual stream together add
    as much to it as the embedding.
    """
    generator = torch.Generator().manual_seed(_SEED)
    written = (2 * shape.n_layers) ** -0.5
    scales = {"tok_embeddings": shape.dim**0.5, "output": _LOGITS, "wo": written, "w2": written}
    made_once: dict[str, Tensor] = {}
    weights = {}
    for name, size in whole_shapes(shape).items():
        kind = name.split(".", 2)[2] if name.startswith("layers.") else name
        if kind not in made_once:
            made_once[kind] = _tensor(size, scales.get(kind.split(".")[-2], 1.0), generator)
        weights[name] = made_once[kind]
    return weights


def _tensor(size: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    spread: float = scale / size[1] ** 0.5
    return (torch.randn(size, generator=generator) * spread).to(torch.bfloat16)
