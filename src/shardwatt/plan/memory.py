"""Memory that a cell needs on each device, from the model's shape; an estimate, in GiB."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shardwatt.architectures import Architecture
from shardwatt.units import GIB

#: Bytes of one number in each precision.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

#: Prompt tokens assumed for each row where no cache size is given: the longest Alpaca and GSM8K prompts
#: of a batch are mostly below this.
ASSUMED_PROMPT_TOKENS = 256

#: Device memory in GiB that the CUDA context and library workspaces take (an assumption).
CONTEXT_GIB = 0.75


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Memory of one device in GiB, by what takes it."""

    weights_gib: float
    kv_cache_gib: float
    workspace_gib: float

    @property
    def total_gib(self) -> float:
        return self.weights_gib + self.kv_cache_gib + self.workspace_gib


def cache_positions(architecture: Architecture, length: int, cache_tokens: int | None) -> int:
    """Positions T of the KV cache as far as they can be known before the prompts are read."""
    wanted = cache_tokens or ASSUMED_PROMPT_TOKENS + length
    return min(architecture.context, wanted)


def memory_need(
    architecture: Architecture,
    *,
    precision: str,
    shards: int,
    batch: int,
    length: int,
    cache_tokens: int | None = None,
) -> MemoryNeed:
    """Estimate the memory of one device for the published loop.

    weights: all but the norms are split over the shards.
    KV cache: 2 x layers x batch x T x KV heads x head size, split by heads.
    workspace: logits, probabilities, sorted probabilities (4 bytes each) and indices (8) of every row;
    attention scores of the prefill in the precision and in 32 bits; the CUDA context.
    """
    number = BYTES[precision]
    norms = (2 * architecture.n_layers + 1) * architecture.dim
    weights = ((architecture.parameters - norms) / shards + norms) * number
    positions = cache_positions(architecture, length, cache_tokens)
    per_position = 2 * architecture.n_layers * architecture.n_kv_heads * architecture.head_dim
    cache = per_position * batch * positions * number / shards
    sampling = batch * architecture.vocab_size * (4 + 4 + 4 + 8)
    prompt = min(ASSUMED_PROMPT_TOKENS, positions)
    scores = batch * (architecture.n_heads / shards) * prompt * prompt * (number + 4)
    return MemoryNeed(
        weights_gib=weights / GIB,
        kv_cache_gib=cache / GIB,
        workspace_gib=(sampling + scores) / GIB + CONTEXT_GIB,
    )


def fewest_shards(
    architecture: Architecture,
    *,
    memory_gib: float,
    precision: str,
    batch: int,
    length: int,
    cache_tokens: int | None = None,
    counts: Iterable[int] | None = None,
) -> int | None:
    """The smallest shard count whose need is at most a device's memory; None if none is.

    Args:
        counts: the counts to choose from, ascending; None for all that the model's shape allows.
    """
    for shards in architecture.allowed_shards() if counts is None else counts:
        need = memory_need(
            architecture,
            precision=precision,
            shards=shards,
            batch=batch,
            length=length,
            cache_tokens=cache_tokens,
        )
        if need.total_gib <= memory_gib:
            return shards
    return None
