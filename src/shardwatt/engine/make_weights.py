"""Checkpoints of random weights whose responses end by themselves.

What the weights say changes the time of inference only through the length of the responses, and its
energy little besides: a processor's power depends somewhat on the values it works on. So one weight is
chosen with care: that of the end of sequence. The first dimension of the residual stream holds 1 in every
embedding, and no layer writes to it; the output's row of the end of sequence reads that dimension alone,
and is scaled until the end is as likely as the recipe asks.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from shardwatt.architectures import Architecture
from shardwatt.engine.halfmade import REPLACED, half_made, remove_abandoned
from shardwatt.engine.model import Transformer
from shardwatt.engine.parallel import join
from shardwatt.engine.sampling.published import in_nucleus
from shardwatt.engine.weights.slices import slice_of
from shardwatt.models import MADE_FROM_FILE, SHARD_FILE, Recipe, made_from

#: Sampling for which the length of responses is set: the defaults of arXiv 2310.03003.
TEMPERATURE = 0.8
TOP_P = 0.95

#: Standard deviation of a token's logit. At 2, one token in a thousand stands out as it does in a
#: trained model, so that the nucleus is much smaller than the vocabulary.
_LOGIT_SPREAD = 2.0

#: Logit, before the norm's scale, of ids that are never to be drawn.
_NEVER = -60.0

#: Rows, tokens of the random prompts, and tokens generated from them, over which the end is scaled.
#: Prompts are about as long as Alpaca's and GSM8K's: the end grows a little likelier as text grows longer.
_ROWS, _PROMPT, _GENERATED = 8, 96, 48


def make_weights(
    recipe: Recipe,
    architecture: Architecture,
    shards: int,
    folder: Path,
    eos_id: int,
    never: Collection[int] = (0, 1),
) -> None:
    """Write params.json and consolidated.NN.pth in float32: the same model at every shard count.

    The folder appears whole or not at all, and replaces one that is there; one that was made from the same is
    kept, for cells of another project may be reading it.

    Args:
        recipe: seed and mean length of the responses.
        architecture: the shape, `from_params` of the recipe.
        shards: number of shard files.
        folder: where to put them.
        eos_id: the tokenizer's end of sequence.
        never: ids that no response is to hold: unknown, begin of sequence, padding.

    Raises:
        OSError: the folder cannot be written.
    """
    if is_made(recipe, architecture, shards, folder, eos_id, never):
        return
    weights = random_weights(architecture, recipe.seed)
    weights["output.weight"][list(never)] = 0.0
    weights["output.weight"][list(never), 0] = _NEVER
    set_end_of_sequence(weights, architecture, recipe, eos_id)
    params = {
        "dim": architecture.dim,
        "n_layers": architecture.n_layers,
        "n_heads": architecture.n_heads,
        "n_kv_heads": architecture.n_kv_heads,
        "multiple_of": recipe.multiple_of,
        "norm_eps": architecture.norm_eps,
        "vocab_size": architecture.vocab_size,
        "max_seq_len": architecture.context,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    with half_made(folder) as made:
        for rank, name in enumerate(_names(shards)):
            with (made / name).open("wb") as stream:
                torch.save(_shard(architecture, weights, rank, shards), stream)
                os.fsync(stream.fileno())
        origin = _origin(recipe, architecture, shards, eos_id, never)
        for told, content in (("params.json", params), (MADE_FROM_FILE, origin)):
            with (made / told).open("w", encoding="utf-8") as text:
                text.write(json.dumps(content, indent=1) + "\n")
                text.flush()
                os.fsync(text.fileno())
        if folder.exists():
            folder.rename(made.with_name(REPLACED))
        made.rename(folder)


def is_made(
    recipe: Recipe,
    architecture: Architecture,
    shards: int,
    folder: Path,
    eos_id: int,
    never: Collection[int] = (0, 1),
) -> bool:
    """Whether a folder holds what `make_weights` would put there of the same."""
    return made_from(folder) == _origin(recipe, architecture, shards, eos_id, never) and all(
        (folder / name).is_file() for name in _names(shards)
    )


def _origin(
    recipe: Recipe, architecture: Architecture, shards: int, eos_id: int, never: Collection[int]
) -> dict[str, object]:
    """All that the weights depend on, as `made_from` reads it back."""
    return {
        "recipe": recipe.model_dump(mode="json"),
        "architecture": asdict(architecture),
        "shards": shards,
        "eos_id": eos_id,
        "never": sorted(never),
    }


def _names(shards: int) -> list[str]:
    return [SHARD_FILE.format(rank=rank) for rank in range(shards)]


def random_weights(architecture: Architecture, seed: int) -> dict[str, Tensor]:
    """Full tensors by name; each from its own generator, seeded with SHA-256("seed/name").

    Every projection keeps the variance of its input (standard deviation 1 / sqrt(inputs)); queries and
    keys are half as large again, so that attention is uneven; what is added to the residual stream is
    divided by sqrt(2 n_layers), as in GPT-2.
    """
    dim, q_dim, hidden = architecture.dim, architecture.q_dim, architecture.hidden_dim
    kv_dim = architecture.n_kv_heads * architecture.head_dim
    added = 1 / math.sqrt(2 * architecture.n_layers)
    shapes = {
        "tok_embeddings.weight": (architecture.vocab_size, dim, 1.0),
        "output.weight": (architecture.vocab_size, dim, _LOGIT_SPREAD / math.sqrt(dim)),
    }
    weights = {"norm.weight": torch.ones(dim)}
    for layer in range(architecture.n_layers):
        prefix = f"layers.{layer}."
        shapes |= {
            f"{prefix}attention.wq.weight": (q_dim, dim, 1.5 / math.sqrt(dim)),
            f"{prefix}attention.wk.weight": (kv_dim, dim, 1.5 / math.sqrt(dim)),
            f"{prefix}attention.wv.weight": (kv_dim, dim, 1 / math.sqrt(dim)),
            f"{prefix}attention.wo.weight": (dim, q_dim, added / math.sqrt(q_dim)),
            f"{prefix}feed_forward.w1.weight": (hidden, dim, 1 / math.sqrt(dim)),
            f"{prefix}feed_forward.w2.weight": (dim, hidden, added / math.sqrt(hidden)),
            f"{prefix}feed_forward.w3.weight": (hidden, dim, 1 / math.sqrt(dim)),
        }
        weights[f"{prefix}attention_norm.weight"] = torch.ones(dim)
        weights[f"{prefix}ffn_norm.weight"] = torch.ones(dim)
    for name, (rows, columns, deviation) in shapes.items():
        weights[name] = torch.randn(rows, columns, generator=_generator(seed, name)).mul_(deviation)
        if name.endswith((".wo.weight", ".w2.weight")):
            weights[name][0] = 0.0  # writes nothing to the constant
    weights["tok_embeddings.weight"][:, 0] = 1.0
    weights["output.weight"][:, 0] = 0.0
    return weights


def set_end_of_sequence(
    weights: dict[str, Tensor], architecture: Architecture, recipe: Recipe, eos_id: int
) -> None:
    """Scale the end of sequence until its mean probability is 1 / (mean response + 1), in place.

    With that probability at every step, the tokens before the end are as many on average as the recipe
    says. The mean is taken over text that the model itself goes on with from seeded random prompts:
    on random text it is another.
    """
    output = weights["output.weight"]
    output[eos_id] = 0.0
    output[eos_id, 0] = _NEVER  # the text is not to end while it is measured
    hidden = _hidden_states(weights, architecture, recipe.seed)  # [states, dim]
    logits = hidden @ output.T / TEMPERATURE  # [states, vocab_size]
    others = logits.logsumexp(dim=-1)  # [states]
    # Sampling from the nucleus makes what is in it likelier by 1 / top_p.
    wanted = TOP_P / (recipe.mean_response_tokens + 1)
    low, high = 0.0, 100.0
    for _ in range(50):
        middle = (low + high) / 2
        likely = torch.sigmoid(middle * hidden[:, 0] / TEMPERATURE - others).mean().item()
        low, high = (middle, high) if likely < wanted else (low, middle)
    output[eos_id, 0] = low


@torch.inference_mode()
def _hidden_states(weights: dict[str, Tensor], architecture: Architecture, seed: int) -> Tensor:
    """What the output layer sees at each generated token; [rows x tokens, dim].

    Runs the whole model in this process, a group of one rank.
    """
    generator = _generator(seed, "calibration")
    text = torch.randint(architecture.vocab_size, (_ROWS, _PROMPT), generator=generator)
    states: list[Tensor] = []
    with tempfile.TemporaryDirectory() as folder:
        alone = join(
            Path(folder), rank=0, count=1, device="cpu", start_timeout_s=60.0, collective_timeout_s=60.0
        )
        try:
            model = Transformer(architecture)
            model.load_state_dict(weights, strict=True, assign=True)
            model.allocate(_ROWS, _PROMPT + _GENERATED)
            for step in range(_GENERATED):
                known = _PROMPT + step - text.shape[1]
                states.append(model.hidden(text, known)[:, -1])  # [rows, dim]
                text = _drawn(model.output(states[-1]), generator)
        finally:
            alone.leave()
    return torch.cat(states)


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A token for each row, [rows, 1], with the chances of the published loop; logits: [rows, vocab_size].

    Drawn from a generator rather than as the engines do, so that a recipe's weights stay what they have been.
    """
    falling, ids = torch.softmax(logits / TEMPERATURE, dim=-1).sort(dim=-1, descending=True)
    chances = falling * in_nucleus(falling, TOP_P)
    places = torch.multinomial(chances / chances.sum(dim=-1, keepdim=True), 1, generator=generator)
    return ids.gather(-1, places)


def _shard(
    architecture: Architecture, weights: dict[str, Tensor], rank: int, shards: int
) -> dict[str, Tensor]:
    """This rank's part of every tensor; copies, since torch.save would write what lies behind a slice too."""
    parts = {}
    for name, full in weights.items():
        part = slice_of(architecture, name, rank, shards)
        rows, columns = (slice(span.start, span.stop) for span in (part.rows, part.columns))
        parts[name] = full[columns].clone() if full.dim() == 1 else full[rows, columns].clone()
    return parts


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
