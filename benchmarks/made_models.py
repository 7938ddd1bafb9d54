"""LLaMA-shaped models of random weights for the benchmarks, in the layout of transformers, made once.

Weights are random, and logits are as peaked as those of a model that has learned something: a nucleus at
temperature 0.8 and top-p 0.95 holds tens of tokens. With logits that are all alike it would hold most of the
vocabulary, and sampling would take longer than it does with any real model.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from measuring import ROOT
from shardwatt.architectures import Architecture
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.hfconfig import from_config
from shardwatt.models import Checkpoint

assert ROOT  # measuring has put the sources on the path

#: hidden_size, layers, heads, KV heads, intermediate_size: of llama2.c's stories15M and stories110M, and
#: of TinyLlama 1.1B.
SHAPES = {
    "15m": (288, 6, 6, 6, 768),
    "110m": (768, 12, 12, 12, 2048),
    "1.1b": (2048, 22, 32, 4, 5632),
}
VOCABULARY = 32_000
CONTEXT = 2048

#: Standard deviation of the logits.
_LOGITS = 5.0
_SEED = 2023


def config(name: str) -> dict[str, object]:
    """What config.json of a model says."""
    dim, layers, heads, kv_heads, hidden = SHAPES[name]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": dim,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def made(models: Path, name: str) -> Path:
    """The folder of a model below another; made if it is not there. Weights are saved in bfloat16."""
    folder = models / name
    if folder.is_dir():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=models) as scratch:
        unfinished = Path(scratch) / "made"
        unfinished.mkdir()
        (unfinished / "config.json").write_text(json.dumps(config(name), indent=1))
        save_file(_weights(name), unfinished / "model.safetensors", metadata={"format": "pt"})
        unfinished.rename(folder)
    return folder


def architecture(name: str) -> Architecture:
    """The shape of a model."""
    return from_config(config(name))


def on_rank(
    folder: Path, precision: str, *, rank: int = 0, ranks: int = 1, ends: frozenset[int] = frozenset()
) -> ModelOnRank:
    """What an engine loads of a model in a folder, on the CPU; `ends`: ids that end a response."""
    shape = from_config(json.loads((folder / "config.json").read_text()))
    # No engine reads the tokenizer, and there is none.
    checkpoint = Checkpoint(folder, folder / "tokenizer.json", "huggingface", ("model.safetensors",))
    return ModelOnRank(
        architecture=shape,
        checkpoint=checkpoint,
        precision=precision,
        device="cpu",
        rank=rank,
        ranks=ranks,
        vocab_size=shape.vocab_size,
        eos_ids=ends,
    )


def _weights(name: str) -> dict[str, Tensor]:
    """Every tensor under the name that transformers gives it, in bfloat16.

    A matrix keeps the size of what goes through it, but those that write to the residual stream together add
    as much to it as the embedding.
    """
    dim, layers, _, kv_heads, hidden = SHAPES[name]
    heads_dim = architecture(name).head_dim
    generator = torch.Generator().manual_seed(_SEED)

    def matrix(outputs: int, inputs: int, scale: float = 1.0) -> Tensor:
        numbers = torch.randn(outputs, inputs, generator=generator)
        return numbers.mul_(scale / inputs**0.5).to(torch.bfloat16)

    written = (2 * layers) ** -0.5
    weights = {
        "model.embed_tokens.weight": matrix(VOCABULARY, dim, dim**0.5),
        "model.norm.weight": torch.ones(dim, dtype=torch.bfloat16),
        "lm_head.weight": matrix(VOCABULARY, dim, _LOGITS),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.input_layernorm.weight": torch.ones(dim, dtype=torch.bfloat16),
            f"{prefix}.post_attention_layernorm.weight": torch.ones(dim, dtype=torch.bfloat16),
            f"{prefix}.self_attn.q_proj.weight": matrix(dim, dim),
            f"{prefix}.self_attn.k_proj.weight": matrix(kv_heads * heads_dim, dim),
            f"{prefix}.self_attn.v_proj.weight": matrix(kv_heads * heads_dim, dim),
            f"{prefix}.self_attn.o_proj.weight": matrix(dim, dim, written),
            f"{prefix}.mlp.gate_proj.weight": matrix(hidden, dim),
            f"{prefix}.mlp.up_proj.weight": matrix(hidden, dim),
            f"{prefix}.mlp.down_proj.weight": matrix(dim, hidden, written),
        }
    return weights
