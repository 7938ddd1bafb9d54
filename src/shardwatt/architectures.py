"""Shapes of LLaMA models: sizes, allowed shard counts, and a catalogue of published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shardwatt.errors import ShardwattError


class ArchitectureError(ShardwattError):
    """A params.json that describes no LLaMA that this software can run."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder of the LLaMA family (arXiv 2302.13971, 2307.09288).

    Attributes:
        dim: width of the residual stream.
        n_layers: transformer blocks.
        n_heads: query heads; `head_dim = dim / n_heads`.
        n_kv_heads: key and value heads; equal to `n_heads` without grouping.
        hidden_dim: width of the feed-forward layer.
        vocab_size: rows of the embedding.
        context: positions the model was trained for.
        norm_eps: epsilon of RMSNorm.
        rope_theta: base of the rotary embedding.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_dim: int
    vocab_size: int
    context: int = 2048
    norm_eps: float = 1e-6
    rope_theta: float = 10_000.0

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def parameters(self) -> int:
        """Number of weights, norms included, embedding and output counted apart."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.n_kv_heads * self.head_dim
        feed_forward = 3 * self.dim * self.hidden_dim
        norms = 2 * self.dim
        return self.n_layers * (attention + feed_forward + norms) + 2 * self.vocab_size * self.dim + self.dim

    def allowed_shards(self) -> tuple[int, ...]:
        """Shard counts that split heads, feed-forward, width and vocabulary evenly."""
        return tuple(
            n
            for n in range(1, self.n_kv_heads + 1)
            if not (
                self.n_heads % n
                or self.n_kv_heads % n
                or self.hidden_dim % n
                or self.dim % n
                or self.vocab_size % n
            )
        )


def feed_forward_dim(dim: int, multiple_of: int, multiplier: float | None = None) -> int:
    """Width of the feed-forward layer that a Meta params.json implies.

    Two thirds of 4 x dim, times an optional multiplier, rounded up to a multiple
    (the rule of Meta's published model code, LLaMA 1 and 2).
    """
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def from_params(params: Mapping[str, Any], vocab_size: int | None = None) -> Architecture:
    """Read an architecture from the contents of a Meta `params.json`.

    Args:
        params: the parsed file.
        vocab_size: the tokenizer's, used where the file says -1 or nothing (as LLaMA 1 does).

    Raises:
        ArchitectureError: a key is missing or no positive number, or heads do not divide.
    """
    try:
        dim, n_layers, n_heads = (int(params[key]) for key in ("dim", "n_layers", "n_heads"))
    except (KeyError, TypeError, ValueError) as error:
        raise ArchitectureError(
            f"params.json: {error} is missing or no number; expected dim, n_layers, n_heads"
        ) from None
    vocabulary = int(params.get("vocab_size") or -1)
    if vocabulary <= 0:
        if vocab_size is None:
            raise ArchitectureError("params.json: vocab_size is not given and no tokenizer says it")
        vocabulary = vocab_size
    architecture = Architecture(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=int(params.get("n_kv_heads") or n_heads),
        hidden_dim=int(params.get("hidden_dim") or 0)
        or feed_forward_dim(dim, int(params.get("multiple_of") or 256), params.get("ffn_dim_multiplier")),
        vocab_size=vocabulary,
        context=int(params.get("max_seq_len") or 2048),
        norm_eps=float(params.get("norm_eps") or 1e-6),
        rope_theta=float(params.get("rope_theta") or 10_000.0),
    )
    numbers = (dim, n_layers, n_heads, architecture.n_kv_heads, architecture.context)
    if min(numbers) <= 0 or dim % n_heads or n_heads % architecture.n_kv_heads:
        raise ArchitectureError(
            f"params.json: dim {dim}, n_heads {n_heads}, n_kv_heads {architecture.n_kv_heads}: "
            "expected positive numbers, heads that divide dim and KV heads that divide heads"
        )
    if architecture.head_dim % 2:
        raise ArchitectureError(
            f"params.json: dim {dim} / n_heads {n_heads} = {architecture.head_dim}: "
            "rotary embeddings need an even head size"
        )
    return architecture


#: Shapes of Meta's releases, from the params.json files they ship with and
#: table 2 of arXiv 2302.13971 and table 1 of arXiv 2307.09288.
CATALOGUE: dict[str, Architecture] = {
    "llama-7b": Architecture(4096, 32, 32, 32, 11_008, 32_000),
    "llama-13b": Architecture(5120, 40, 40, 40, 13_824, 32_000),
    "llama-30b": Architecture(6656, 60, 52, 52, 17_920, 32_000),
    "llama-65b": Architecture(8192, 80, 64, 64, 22_016, 32_000),
    "llama-2-7b": Architecture(4096, 32, 32, 32, 11_008, 32_000, 4096, 1e-5),
    "llama-2-13b": Architecture(5120, 40, 40, 40, 13_824, 32_000, 4096, 1e-5),
    "llama-2-70b": Architecture(8192, 80, 64, 8, 28_672, 32_000, 4096, 1e-5),
}
