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
    dim, n_layers, n_heads = (_whole(params, key) for key in ("dim", "n_layers", "n_heads"))
    n_kv_heads = _whole(params, "n_kv_heads", n_heads)
    vocabulary = vocab_size if params.get("vocab_size") == -1 else _whole(params, "vocab_size", vocab_size)
    if vocabulary is None:
        raise ArchitectureError("params.json: vocab_size is -1 and no tokenizer says it")
    multiplier = _positive(params, "ffn_dim_multiplier", 1.0)
    implied = feed_forward_dim(dim, _whole(params, "multiple_of", 256), multiplier)
    if dim % n_heads or n_heads % n_kv_heads:
        raise ArchitectureError(
            f"params.json: dim {dim}, n_heads {n_heads}, n_kv_heads {n_kv_heads}: "
            "expected heads that divide dim and KV heads that divide heads"
        )
    architecture = Architecture(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden_dim=_whole(params, "hidden_dim", implied),
        vocab_size=vocabulary,
        context=_whole(params, "max_seq_len", 2048),
        norm_eps=_positive(params, "norm_eps", 1e-6),
        rope_theta=_positive(params, "rope_theta", 10_000.0),
    )
    if architecture.head_dim % 2:
        raise ArchitectureError(
            f"params.json: dim {dim} / n_heads {n_heads} = {architecture.head_dim}: "
            "rotary embeddings need an even head size"
        )
    return architecture


def _whole(params: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number of params.json; the default where the file says null or nothing."""
    value = params.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        found = "is missing" if key not in params else f"found {value!r}"
        raise ArchitectureError(f"params.json: {key}: {found}; expected a positive whole number")
    return value


def _positive(params: Mapping[str, Any], key: str, default: float) -> float:
    """A positive number of params.json; the default where the file says null or nothing."""
    value = params.get(key)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ArchitectureError(f"params.json: {key}: found {value!r}; expected a positive number")
    return float(value)


#: Shapes of Meta's releases, from the params.json files they ship with and
#: table 2 of arXiv 2302.13971 and table 1 of arXiv 2307.09288.
CATALOGUE: dict[str, Architecture] = {
    "llama-7b": Architecture(4096, 32, 32, 32, 11_008, 32_000),
    "llama-13b": Architecture(5120, 40, 40, 40, 13_824, 32_000),
    "llama-30b": Architecture(6656, 60, 52, 52, 17_920, 32_000),
    "llama-65b": Architecture(8192, 80, 64, 64, 22_016, 32_000, 2048, 1e-5),
    "llama-2-7b": Architecture(4096, 32, 32, 32, 11_008, 32_000, 4096, 1e-5),
    "llama-2-13b": Architecture(5120, 40, 40, 40, 13_824, 32_000, 4096, 1e-5),
    "llama-2-70b": Architecture(8192, 80, 64, 8, 28_672, 32_000, 4096, 1e-5),
}
