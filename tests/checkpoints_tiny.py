"""Tiny checkpoints of random weights in both layouts, for every kind of LLaMA that is told apart.

All kinds have 16 heads and split over 1, 2, 4, 8 and 16 ranks; above 4, key and value heads are replicated
where there are 4 of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from shardwatt.architectures import Architecture, RopeScaling
from shardwatt.models import Checkpoint, Layout

Kind = Literal["llama1", "llama2-70b", "llama3"]

#: `llama3` has the scaled rotary embedding of Llama 3.1 and the tied embeddings of Llama 3.2.
SHAPES: dict[Kind, Architecture] = {
    "llama1": Architecture(128, 2, 16, 16, 352, 320, context=256),
    "llama2-70b": Architecture(128, 2, 16, 4, 448, 320, context=256, norm_eps=1e-5),
    "llama3": Architecture(
        *(128, 2, 16, 4, 448, 512),
        context=256,
        norm_eps=1e-5,
        rope_theta=500_000.0,
        rope_scaling=RopeScaling("llama3", 8.0),
        tied_embeddings=True,
    ),
}

#: Names of transformers for Meta's; {n} is the layer.
_HUGGING_FACE_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def tiny(
    folder: Path,
    kind: Kind = "llama1",
    layout: Layout = "meta",
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    form: Literal["pth", "safetensors"] = "pth",
) -> tuple[Checkpoint, Architecture]:
    """Write the weights of `tiny_weights` into a folder that is made.

    Args:
        folder: gets the shape, the weights, and a file in the tokenizer's place.
        kind: of which shape.
        layout: whose names, and whose order of the rows of queries and keys. As in Meta's files of Llama 3.2,
            a tied output layer is there once more in `meta`.
        shards: files of the weights; for `huggingface`, more than one come with an index.
        dtype: of the weights on disk.
        form: of the files of Meta's layout.
    """
    folder.mkdir(parents=True)
    architecture, weights = SHAPES[kind], tiny_weights(kind, dtype)
    tokenizer = folder / ("tokenizer.model" if layout == "meta" else "tokenizer.json")
    tokenizer.write_text("a tokenizer's file\n", encoding="utf-8")
    write = _write_meta if layout == "meta" else _write_hugging_face
    files = write(folder, kind, weights, shards, form)
    return Checkpoint(folder, tokenizer, layout, tuple(files)), architecture


def tiny_weights(kind: Kind = "llama1", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Whole tensors under Meta's names and in its order, output.weight included where it is tied."""
    return {name: tensor.to(dtype) for name, tensor in random_weights(SHAPES[kind], seed=7).items()}


def random_weights(shape: Architecture, seed: int) -> dict[str, Tensor]:
    """Whole tensors of any shape in fp32, as `tiny_weights` has them; tied ones are one tensor."""
    kv_dim = shape.n_kv_heads * shape.head_dim
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, spread: float = 1.0) -> Tensor:
        values: Tensor = torch.randn(rows, columns, generator=generator) * spread / columns**0.5
        return values

    def norm() -> Tensor:
        return 1 + 0.2 * torch.randn(shape.dim, generator=generator)

    weights = {"tok_embeddings.weight": matrix(shape.vocab_size, shape.dim, 8.0), "norm.weight": norm()}
    for layer in range(shape.n_layers):
        prefix = f"layers.{layer}."
        weights |= {
            f"{prefix}attention.wq.weight": matrix(shape.q_dim, shape.dim, 2.0),
            f"{prefix}attention.wk.weight": matrix(kv_dim, shape.dim, 2.0),
            f"{prefix}attention.wv.weight": matrix(kv_dim, shape.dim),
            f"{prefix}attention.wo.weight": matrix(shape.dim, shape.q_dim),
            f"{prefix}feed_forward.w1.weight": matrix(shape.hidden_dim, shape.dim),
            f"{prefix}feed_forward.w2.weight": matrix(shape.dim, shape.hidden_dim),
            f"{prefix}feed_forward.w3.weight": matrix(shape.hidden_dim, shape.dim),
            f"{prefix}attention_norm.weight": norm(),
            f"{prefix}ffn_norm.weight": norm(),
        }
    weights["output.weight"] = matrix(shape.vocab_size, shape.dim, 3.0)
    if shape.tied_embeddings:
        weights["output.weight"] = weights["tok_embeddings.weight"]
    return weights


def meta_slice(kind: Kind, name: str, whole: Tensor, shard: int, shards: int) -> Tensor:
    """A shard's part of a tensor as Meta saves it: LLaMA 3 splits its embedding by vocabulary."""
    if whole.dim() == 1:
        return whole
    shape = SHAPES[kind]
    if name.endswith((".wk.weight", ".wv.weight")) and shards > shape.n_kv_heads:
        return whole.chunk(shape.n_kv_heads)[shard * shape.n_kv_heads // shards].clone()
    by_columns = name.endswith((".wo.weight", ".w2.weight"))
    by_columns |= name.startswith("tok_embeddings") and kind != "llama3"
    return whole.chunk(shards, dim=1 if by_columns else 0)[shard].clone()


def half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of queries or keys from Meta's order, neighbouring pairs, to that of transformers, halves."""
    size = rows.shape[0] // heads
    return rows.view(heads, size // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def hugging_face_name(name: str) -> str:
    """The name in transformers of a tensor of Meta's."""
    known = {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in known:
        return known[name]
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"model.layers.{layer}.{_HUGGING_FACE_NAMES[part]}.weight"


def _write_meta(folder: Path, kind: Kind, weights: dict[str, Tensor], shards: int, form: str) -> list[str]:
    shape = SHAPES[kind]
    params: dict[str, object] = {
        "dim": shape.dim,
        "n_layers": shape.n_layers,
        "n_heads": shape.n_heads,
        "n_kv_heads": shape.n_kv_heads,
        "multiple_of": 32,
        "norm_eps": shape.norm_eps,
        "vocab_size": shape.vocab_size,
        "rope_theta": shape.rope_theta,
        "max_seq_len": shape.context,
    }
    if kind != "llama1":
        params["ffn_dim_multiplier"] = 1.3
    if kind == "llama3":
        params |= {"use_scaled_rope": True, "tied_embeddings": True}
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    names = [f"consolidated.{shard:02d}.{form}" for shard in range(shards)]
    for shard, file in enumerate(names):
        part = {name: meta_slice(kind, name, whole, shard, shards) for name, whole in weights.items()}
        if form == "pth":
            torch.save(part | {"rope.freqs": torch.ones(shape.head_dim // 2)}, folder / file)
        else:
            save_file({name: tensor.clone() for name, tensor in part.items()}, folder / file)
    return names


def _write_hugging_face(
    folder: Path, kind: Kind, weights: dict[str, Tensor], shards: int, form: str
) -> list[str]:
    shape = SHAPES[kind]
    scaling = shape.rope_scaling
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": shape.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(weights["norm.weight"].dtype).removeprefix("torch."),
    }
    if scaling is not None:
        config["rope_scaling"] = {
            "rope_type": scaling.kind,
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    whole = {}
    for name, tensor in weights.items():
        heads = {"wq": shape.n_heads, "wk": shape.n_kv_heads}.get(name.split(".")[-2])
        whole[hugging_face_name(name)] = half_split(tensor, heads) if heads else tensor
    if shape.tied_embeddings:
        del whole["lm_head.weight"]
    if shards == 1:
        save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
        return ["model.safetensors"]
    files = [f"model-{shard + 1:05d}-of-{shards:05d}.safetensors" for shard in range(shards)]
    places = {name: files[index % shards] for index, name in enumerate(whole)}
    for file in files:
        part = {name: tensor for name, tensor in whole.items() if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in whole.values())},
        "weight_map": places,
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return files
