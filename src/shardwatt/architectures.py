"""Shapes of LLaMA models: sizes, allowed shard counts, and a catalogue of published ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from shardwatt.errors import ShardwattError, suggestion
from shardwatt.jsonfields import Fields, shown

#: Far above those of every model there is: a file that says more is damaged.
MOST_LAYERS = 16_384
MOST_HEADS = 65_536
MOST_HEAD_SIZE = 65_536


class ArchitectureError(ShardwattError):
    """A params.json or config.json that describes no model that this software can run."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for a context longer than the one trained for first.

    Attributes:
        kind: `linear` divides every frequency by the factor (arXiv 2306.15595); `llama3` the low ones alone,
            with a smooth passage (Llama 3.1: arXiv 2407.21783; `rope_scaling` of its config.json).
        factor: by what.
        low_freq_factor: for `llama3`: wavelengths above original_context / this are divided.
        high_freq_factor: for `llama3`: wavelengths below original_context / this stay.
        original_context: for `llama3`: positions trained for first.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of a decoder of the LLaMA family (arXiv 2302.13971, 2307.09288, 2407.21783).

    Attributes:
        dim: width of the residual stream.
        n_layers: transformer blocks.
        n_heads: query heads.
        n_kv_heads: key and value heads; equal to `n_heads` without grouping.
        hidden_dim: width of the feed-forward layer.
        vocab_size: rows of the embedding.
        context: positions the model was trained for.
        norm_eps: epsilon of RMSNorm.
        rope_theta: base of the rotary embedding.
        head_size: width of a head; None: `dim / n_heads`.
        rope_scaling: how rotary frequencies are stretched; None: not at all.
        tied_embeddings: whether the output layer is the embedding.
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
    head_size: int | None = None
    rope_scaling: RopeScaling | None = None
    tied_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.head_size or self.dim // self.n_heads

    @property
    def q_dim(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def parameters(self) -> int:
        """Number of weights, norms included; a tied embedding counts once."""
        return self.parameters_per_shard(1)

    def parameters_per_shard(self, shards: int) -> int:
        """Number of weights that one of so many ranks holds: norms are on each, and so are key and value
        heads that there are fewer of than ranks. A tied embedding is split by width for its first use and
        by vocabulary for its second, so that of several ranks each holds two parts."""
        attention = 2 * self.dim * self.q_dim // shards
        attention += 2 * self.dim * self.kv_heads_per_shard(shards) * self.head_dim
        feed_forward = 3 * self.dim * self.hidden_dim // shards
        embeddings = 1 if self.tied_embeddings and shards == 1 else 2
        tables = embeddings * self.vocab_size * self.dim // shards
        return self.n_layers * (attention + feed_forward + 2 * self.dim) + tables + self.dim

    def kv_heads_per_shard(self, shards: int) -> int:
        """Key and value heads of one rank: above their number, several ranks hold the same one."""
        return max(1, self.n_kv_heads // shards)

    def allowed_shards(self) -> tuple[int, ...]:
        """Shard counts that split heads, feed-forward, width and vocabulary evenly.

        Key and value heads are split evenly too, or each is held by equally many ranks.
        """
        return tuple(
            n
            for n in range(1, self.n_heads + 1)
            if not (self.n_heads % n or self.hidden_dim % n or self.dim % n or self.vocab_size % n)
            and (self.n_kv_heads % n == 0 or n % self.n_kv_heads == 0)
        )


#: Positions and rotary base of LLaMA 3 (arXiv 2407.21783), and of 3.1 and later, which stretches it: by 8,
#: and in 3.2's 1B and 3B by 32 (`rope_scaling` of the config.json that each ships with).
_LLAMA_3_CONTEXT = 8192
_LLAMA_31_CONTEXT = 131_072
_LLAMA_3_THETA = 500_000.0
_LLAMA_31_ROPE = RopeScaling("llama3", factor=8.0)
_LLAMA_32_ROPE = RopeScaling("llama3", factor=32.0)


def _llama_1(dim: int, n_layers: int, n_heads: int, hidden_dim: int, norm_eps: float = 1e-6) -> Architecture:
    return Architecture(dim, n_layers, n_heads, n_heads, hidden_dim, 32_000, 2048, norm_eps)


def _llama_2(dim: int, n_layers: int, n_heads: int, n_kv_heads: int, hidden_dim: int) -> Architecture:
    return Architecture(dim, n_layers, n_heads, n_kv_heads, hidden_dim, 32_000, 4096, 1e-5)


def _llama_3(
    dim: int,
    n_layers: int,
    n_heads: int,
    hidden_dim: int,
    scaling: RopeScaling | None = None,
    *,
    tied_embeddings: bool = False,
) -> Architecture:
    context = _LLAMA_3_CONTEXT if scaling is None else _LLAMA_31_CONTEXT
    return Architecture(
        *(dim, n_layers, n_heads, 8, hidden_dim, 128_256, context, 1e-5, _LLAMA_3_THETA),
        rope_scaling=scaling,
        tied_embeddings=tied_embeddings,
    )


#: Shapes of published models. LLaMA 1 to 3: the params.json and config.json of Meta's releases, table 2 of
#: arXiv 2302.13971, table 1 of arXiv 2307.09288, table 3 of arXiv 2407.21783. TinyLlama: arXiv 2401.02385
#: and its config.json. Mistral 7B: table 1 of arXiv 2310.06825 and the params.json of its releases; version
#: 0.1 attends to a window of 4096 positions, which is given as its context.
CATALOGUE: dict[str, Architecture] = {
    "llama-7b": _llama_1(4096, 32, 32, 11_008),
    "llama-13b": _llama_1(5120, 40, 40, 13_824),
    "llama-30b": _llama_1(6656, 60, 52, 17_920),
    "llama-65b": _llama_1(8192, 80, 64, 22_016, 1e-5),
    "llama-2-7b": _llama_2(4096, 32, 32, 32, 11_008),
    "llama-2-13b": _llama_2(5120, 40, 40, 40, 13_824),
    "llama-2-70b": _llama_2(8192, 80, 64, 8, 28_672),
    "llama-3-8b": _llama_3(4096, 32, 32, 14_336),
    "llama-3-70b": _llama_3(8192, 80, 64, 28_672),
    "llama-3.1-8b": _llama_3(4096, 32, 32, 14_336, _LLAMA_31_ROPE),
    "llama-3.1-70b": _llama_3(8192, 80, 64, 28_672, _LLAMA_31_ROPE),
    "llama-3.1-405b": _llama_3(16_384, 126, 128, 53_248, _LLAMA_31_ROPE),
    "llama-3.2-1b": _llama_3(2048, 16, 32, 8192, _LLAMA_32_ROPE, tied_embeddings=True),
    "llama-3.2-3b": _llama_3(3072, 28, 24, 8192, _LLAMA_32_ROPE, tied_embeddings=True),
    "llama-3.3-70b": _llama_3(8192, 80, 64, 28_672, _LLAMA_31_ROPE),
    "tinyllama-1.1b": Architecture(2048, 22, 32, 4, 5632, 32_000, 2048, 1e-5),
    "mistral-7b-v0.1": Architecture(4096, 32, 32, 8, 14_336, 32_000, 4096, 1e-5),
    "mistral-7b-v0.3": Architecture(4096, 32, 32, 8, 14_336, 32_768, 32_768, 1e-5, 1_000_000.0),
}


def feed_forward_dim(dim: int, multiple_of: int, multiplier: float | None = None) -> int:
    """Width of the feed-forward layer that a Meta params.json implies.

    Two thirds of 4 x dim, times an optional multiplier, rounded up to a multiple
    (the rule of Meta's published model code, LLaMA 1 to 3).
    """
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def size_of_head(fields: Fields, key: str, dim: int, n_heads: int, n_kv_heads: int) -> int | None:
    """`head_size` of an architecture, from the key that may say the width of a head.

    Returns:
        None where that is dim / n_heads, said or not.

    Raises:
        ArchitectureError: heads do not divide, or an odd width cannot be rotated in pairs.
    """
    said = fields.whole(key, 0, most=MOST_HEAD_SIZE)
    if (not said and dim % n_heads) or n_heads % n_kv_heads:
        raise ArchitectureError(
            f"{fields.file}: dim {dim}, n_heads {n_heads}, n_kv_heads {n_kv_heads}: "
            "expected heads that divide dim and KV heads that divide heads"
        )
    if (said or dim // n_heads) % 2:
        width = f"{key} {said}" if said else f"dim {dim} / n_heads {n_heads} = {dim // n_heads}"
        raise ArchitectureError(f"{fields.file}: {width}: rotary embeddings need an even head size")
    return said if said and said * n_heads != dim else None


#: Above the multipliers of the feed-forward width of every model there is.
_MOST_MULTIPLIER = 1024.0

#: Keys of a params.json that stand for what this software does not run, with what they are.
_REFUSED = {
    "moe": "a mixture of experts",
    "moe_args": "a mixture of experts",
    "lora": "an adapter beside the weights",
    "lora_args": "an adapter beside the weights",
    "quantization": "quantised weights",
    "quantization_args": "quantised weights",
    "vision_args": "a vision encoder",
    "vision_encoder": "a vision encoder",
    "vision_num_cross_attention_layers": "a vision encoder",
    "use_biases": "layers with biases",
    "use_qk_norm": "norms of queries and keys",
    "nope_layer_interval": "layers without positions",
    "attention_chunk_size": "attention in chunks",
    "yarn": "another stretch of rotary frequencies",
}

#: Keys that are read.
_READ = frozenset(
    {
        *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size"),
        *("hidden_dim", "multiple_of", "ffn_dim_multiplier", "norm_eps", "tied_embeddings"),
        *("rope_theta", "use_scaled_rope", "rope_scaling_factor", "rope_high_freq_factor"),
        *("max_seq_len", "max_position_embeddings", "sliding_window"),
    }
)

#: Keys that say nothing of the model itself, with what they may say (None: anything): the batch that the
#: published code makes room for, and the family in Mistral's words.
_ASIDE: dict[str, tuple[str, ...] | None] = {"max_batch_size": None, "model_type": ("transformer",)}


def from_params(params: Mapping[str, Any], vocab_size: int | None = None) -> Architecture:
    """Read an architecture from the contents of a `params.json` of Meta's (LLaMA 1 to 3) or Mistral's.

    What such files leave out is taken from the published model that it is the file of, which shape, epsilon
    and rotary base tell; for other models from what the file implies:

    - The context: `max_seq_len` or `max_position_embeddings`; else the published model's; else 131,072 with
      `use_scaled_rope`, 8192 with LLaMA 3's rotary base of 500,000, and 2048. A whole number under
      `sliding_window` bounds it, since attention within the window is attention to all.
    - By what `use_scaled_rope` stretches: `rope_scaling_factor` and `rope_high_freq_factor`; else the
      published model's, 32 for Llama 3.2's 1B and 3B, whose files say no more than the others'; else 8.
    - Tied embeddings: where `tied_embeddings` says so. Meta's files of Llama 3.2 hold the output layer a
      second time, and it is read as they hold it.

    A key that is not known and says anything but null, false, nothing or zero may change the model, and is
    refused: a result under another model's name would be worse than none.

    Args:
        params: the parsed file.
        vocab_size: of the embedding or the tokenizer, used where the file says -1 or nothing (as LLaMA 1
            does).

    Raises:
        ArchitectureError: a key is missing, not known or of another kind, heads do not divide, or the file
            describes what this software does not run.
    """
    fields = Fields("params.json", params, ArchitectureError)
    _refuse_others(params)
    dim = fields.whole("dim")
    n_layers = fields.whole("n_layers", most=MOST_LAYERS)
    n_heads = fields.whole("n_heads", most=MOST_HEADS)
    n_kv_heads = fields.whole("n_kv_heads", n_heads, most=MOST_HEADS)
    vocabulary = vocab_size if params.get("vocab_size") == -1 else fields.whole("vocab_size", vocab_size)
    if vocabulary is None:
        raise ArchitectureError("params.json: vocab_size is -1, and neither weights nor tokenizer say it")
    multiplier = fields.positive("ffn_dim_multiplier", 1.0, most=_MOST_MULTIPLIER)
    implied = feed_forward_dim(dim, fields.whole("multiple_of", 256), multiplier)
    said = Architecture(
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden_dim=fields.whole("hidden_dim", implied),
        vocab_size=vocabulary,
        norm_eps=fields.positive("norm_eps", 1e-6),
        rope_theta=fields.positive("rope_theta", 10_000.0),
        head_size=size_of_head(fields, "head_dim", dim, n_heads, n_kv_heads),
        tied_embeddings=fields.switch("tied_embeddings"),
    )
    is_scaled = fields.switch("use_scaled_rope")
    published = _published(said, is_scaled)
    scaling = _scaling(fields, published) if is_scaled else None
    return replace(said, rope_scaling=scaling, context=_context(fields, said, scaling, published))


def _refuse_others(params: Mapping[str, Any]) -> None:
    """Refuse keys that stand for another kind of model, or may do so."""
    for key, value in params.items():
        if not value or key in _READ:
            continue
        if key in _REFUSED:
            raise ArchitectureError(
                f"params.json: {key}: found {shown(value)}, {_REFUSED[key]}, which is not run; "
                "expected a dense decoder of the LLaMA family with plain weights"
            )
        accepted = _ASIDE.get(key, ())
        if accepted is not None and value not in accepted:
            raise ArchitectureError(
                f"params.json: {key}: found {shown(value)}, and what that means is not known"
                f"{suggestion(key, _READ)}; expected {', '.join(sorted(_READ))} and no others: if it changes "
                "nothing, take it out"
            )


def _published(said: Architecture, is_scaled: bool) -> Architecture | None:
    """The published model of that shape, if there is one; fine-tuned ones have other vocabularies."""
    for known in CATALOGUE.values():
        same = replace(
            known, vocab_size=said.vocab_size, context=said.context, rope_scaling=None, tied_embeddings=False
        )
        if same == replace(said, tied_embeddings=False) and is_scaled == (known.rope_scaling is not None):
            return known
    return None


def _scaling(fields: Fields, published: Architecture | None) -> RopeScaling:
    usual = _LLAMA_31_ROPE if published is None or published.rope_scaling is None else published.rope_scaling
    scaling = replace(
        usual,
        factor=fields.positive("rope_scaling_factor", usual.factor),
        high_freq_factor=fields.positive("rope_high_freq_factor", usual.high_freq_factor),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise fields.wrong("rope_high_freq_factor", f"a number above {scaling.low_freq_factor:g}")
    return scaling


def _context(
    fields: Fields, said: Architecture, scaling: RopeScaling | None, published: Architecture | None
) -> int:
    if published is not None:
        usual = published.context
    elif scaling is not None:
        usual = _LLAMA_31_CONTEXT
    else:
        usual = _LLAMA_3_CONTEXT if said.rope_theta == _LLAMA_3_THETA else said.context
    context = fields.whole("max_seq_len", fields.whole("max_position_embeddings", usual))
    return min(context, fields.whole("sliding_window", context))
