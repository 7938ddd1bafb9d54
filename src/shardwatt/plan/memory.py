"""Memory that a cell needs on each device, from the model's shape; an estimate, in GiB."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from shardwatt.architectures import Architecture
from shardwatt.engines import ENGINES
from shardwatt.units import GIB

#: Bytes of one number in each precision.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

#: Prompt tokens assumed for each row where no cache size is given: the longest Alpaca and GSM8K prompts
#: of a batch are mostly below this.
ASSUMED_PROMPT_TOKENS = 256

#: Prompt tokens that engine `fast` takes in at once, unless a single prompt is longer
#: (`shardwatt.engine.fast.packing` has the same figure).
FAST_PREFILL_TOKENS = 2048

#: Device memory in GiB that the CUDA context and library workspaces take (an assumption).
CONTEXT_GIB = 0.75


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Memory of one device in GiB, by what takes it; the CUDA context is part of the workspace."""

    weights_gib: float
    kv_cache_gib: float
    workspace_gib: float

    @property
    def total_gib(self) -> float:
        """What the device has to have."""
        return self.weights_gib + self.kv_cache_gib + self.workspace_gib

    @property
    def allocated_gib(self) -> float:
        """What of it torch allocates, and so counts as its peak: all but the CUDA context."""
        return self.total_gib - CONTEXT_GIB


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
    engine: str,
    cache_tokens: int | None = None,
) -> MemoryNeed:
    """Estimate the memory of one device.

    weights: all but the norms are split over the shards; key and value heads only as far as there are any. A
    tied embedding is one table on one device, and on several a part by width and a part by vocabulary. On
    processors, which this does not describe, `fast` holds two tables of it: oneDNN's layout of the output
    layer is a copy.
    KV cache: 2 x layers x batch x T x KV heads of a device x head size.
    workspace: the CUDA context, and what the engine's loop has beside weights and cache at its fullest:

    - `published`: logits, probabilities, sorted probabilities (4 bytes each) and indices (8) of every row;
      attention scores of the prefill in the precision and in 32 bits. An engine that makes logits of all
      positions has those of the prompts in the precision and in 32 bits beside.
    - `fast`: no scores, since attention is fused. Either the activations of the prompt tokens that are taken
      in at once, or sampling, whichever is more: logits, probabilities and those of the nucleus (4 bytes
      each), and random integers twice (8 each) of every row.
    - `transformers`: as `fast`, with all prompts at once; its sampling has logits, scaled logits, sorted
      ones, probabilities and their sums (4 bytes each), indices (8), and logits in the precision. Its cache
      is written anew at each step, layer by layer, so that one layer's is there twice; and where query heads
      share key and value heads, that layer's is repeated for each of them.

    Activations of a token are those of one layer: the residual stream, its norm in the precision and in 32
    bits, and queries, keys, values and what attention gives, or the three products of the feed-forward
    layer.
    """
    number = BYTES[precision]
    positions = cache_positions(architecture, length, cache_tokens)
    per_position = 2 * architecture.kv_heads_per_shard(shards) * architecture.head_dim * number
    layer_cache = batch * positions * per_position
    prompt = min(ASSUMED_PROMPT_TOKENS, positions)
    logits = batch * architecture.vocab_size
    facts = ENGINES[engine]
    match facts.loop:
        case "published":
            scores = batch * (architecture.n_heads / shards) * prompt * prompt * (number + 4)
            workspace = logits * (4 + 4 + 4 + 8) + scores
            if facts.logits == "all":
                workspace += logits * prompt * (number + 4)
        case "fast":
            at_once = min(batch * prompt, max(prompt, FAST_PREFILL_TOKENS))
            activations = at_once * _token_bytes(architecture, shards, number)
            workspace = max(activations, logits * (4 + 4 + 4 + 8 + 8))
        case "transformers":
            activations = batch * prompt * _token_bytes(architecture, shards, number)
            workspace = max(activations, logits * (number + 4 + 4 + 4 + 4 + 4 + 8))
            repeated = architecture.n_heads / architecture.n_kv_heads
            workspace += layer_cache * (1 + (repeated if repeated > 1 else 0))
    return MemoryNeed(
        weights_gib=architecture.parameters_per_shard(shards) * number / GIB,
        kv_cache_gib=architecture.n_layers * layer_cache / GIB,
        workspace_gib=workspace / GIB + CONTEXT_GIB,
    )


def _token_bytes(architecture: Architecture, shards: int, number: int) -> float:
    """Bytes of a prompt token's activations in the widest part of a layer."""
    heads = 2 * architecture.n_heads / shards + 2 * architecture.kv_heads_per_shard(shards)
    widest = max(heads * architecture.head_dim, 3 * architecture.hidden_dim / shards)
    return architecture.dim * (2 * number + 4) + widest * number


def fewest_shards(
    architecture: Architecture,
    *,
    memory_gib: float,
    precision: str,
    batch: int,
    length: int,
    engine: str,
    cache_tokens: int | None = None,
    counts: Iterable[int] | None = None,
) -> int | None:
    """The smallest shard count whose need is at most a device's memory; None if none is.

    Args:
        engine: a name of `shardwatt.engines.ENGINES`, which decides over the workspace.
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
            engine=engine,
        )
        if need.total_gib <= memory_gib:
            return shards
    return None
