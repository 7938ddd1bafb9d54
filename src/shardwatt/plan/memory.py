"""Memory that a cell needs on each device, from the model's shape; an estimate, in GiB."""

from __future__ import annotations

from dataclasses import dataclass

from shardwatt.architectures import Architecture
from shardwatt.cell import Cell
from shardwatt.engines import ENGINES, EngineFacts
from shardwatt.study import Constants
from shardwatt.units import GIB

#: Bytes of one number in each precision.
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}

#: Prompt tokens assumed for each row where a data set does not say how long its longest prompt is; and the
#: most that the published loop is taken to prefill at once, which is the shortest prompt of a batch.
ASSUMED_PROMPT_TOKENS = 256

#: Prompt tokens that engine `fast` takes in at once, unless a single prompt is longer
#: (`shardwatt.engine.fast.packing` has the same figure).
FAST_PREFILL_TOKENS = 2048

#: Device memory in GiB that the CUDA context and library workspaces take (an assumption).
CONTEXT_GIB = 0.75


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Memory of one device in GiB, by what takes it.

    Attributes:
        weights_gib: this rank's part of the model.
        kv_cache_gib: keys and values of all rows and positions, allocated for the whole run.
        activations_gib: what the engine's loop has beside them at its fullest.
        workspace_gib: the CUDA context and library workspaces, which torch does not allocate.
    """

    weights_gib: float
    kv_cache_gib: float
    activations_gib: float
    workspace_gib: float

    @property
    def total_gib(self) -> float:
        """What the device has to have."""
        return self.allocated_gib + self.workspace_gib

    @property
    def allocated_gib(self) -> float:
        """What of it torch allocates, and so counts as its peak: all but the workspace."""
        return self.weights_gib + self.kv_cache_gib + self.activations_gib


def cache_positions(
    architecture: Architecture, length: int, cache_tokens: int | None, longest_prompt: int | None = None
) -> int:
    """Positions T of the KV cache as far as they can be known before the prompts are read.

    It is allocated once for all batches, so that the longest prompt of all counts.

    Args:
        architecture: its context is the most.
        length: new tokens.
        cache_tokens: what the study fixes in place of prompt and length, or None.
        longest_prompt: tokens of the data set's longest prompt; None: `ASSUMED_PROMPT_TOKENS`.
    """
    wanted = cache_tokens or (longest_prompt or ASSUMED_PROMPT_TOKENS) + length
    return min(architecture.context, wanted)


def held_positions(engine: str, positions: int, length: int, longest_prompt: int) -> int:
    """Positions of a row that are in memory at its fullest: T, and of transformers as many as it grows to.

    Its batch is as wide as the longest prompt, shorter ones padded, and goes on until each row has its
    `length` tokens or fills T itself, padding left out; the last token is not fed. So the shortest prompt
    decides, which is taken to have one token.

    Args:
        engine: a name of `shardwatt.engines.ENGINES`.
        positions: T, that prompt and response of a row may fill.
        length: new tokens of a row.
        longest_prompt: tokens of the longest prompt of a batch.
    """
    if ENGINES[engine].loop != "transformers":
        return positions
    return longest_prompt + min(length, positions - 1) - 1


def memory_need(
    architecture: Architecture,
    *,
    precision: str,
    shards: int,
    batch: int,
    length: int,
    engine: str,
    cache_tokens: int | None = None,
    longest_prompt: int | None = None,
) -> MemoryNeed:
    """Estimate the memory of one device.

    weights: all but the norms are split over the shards; key and value heads only as far as there are any. A
    tied embedding is one table on one device, and on several a part by width and a part by vocabulary. On
    processors, which this does not describe, `fast` holds two tables of it: oneDNN's layout of the output
    layer is a copy.
    KV cache: 2 x layers x batch x T (of transformers what its cache grows to, `held_positions`) x KV heads of
    a device x head size.
    activations: what the engine's loop has beside weights and cache at its fullest:

    - `published`: logits, probabilities, sorted probabilities (4 bytes each) and indices (8) of every row;
      and of one layer's attention what is most. At the last step its copies of the cache: where each query
      head has a key head of its own, matrix products copy the keys into another order, and then the values,
      half of a layer's cache at once; where r query heads share one, keys and values are first repeated r
      times, and both are there while either is copied, 1.5 r times a layer's cache. In the prefill scores and
      shares in the precision, with the copies of as many positions; or, while the softmax runs, scores, their
      copy in 32 bits (none in fp32) and its result in 32 bits, beside what is repeated. The prefill is of the
      shortest prompt of a batch, taken to have at most 256 tokens. An engine that makes logits of all
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

    A simulated engine needs nothing; what is estimated is what the engine that it stands for needs.

    Args:
        architecture: the model's shape.
        precision: of weights and cache.
        shards: devices that the model is split over.
        batch: rows.
        length: new tokens of a row.
        engine: a name of `shardwatt.engines.ENGINES`.
        cache_tokens: positions that the study fixes for the cache, or None.
        longest_prompt: tokens of the data set's longest prompt; None: `ASSUMED_PROMPT_TOKENS`.
    """
    number = BYTES[precision]
    positions = cache_positions(architecture, length, cache_tokens, longest_prompt)
    per_position = 2 * architecture.kv_heads_per_shard(shards) * architecture.head_dim * number
    prompt = min(longest_prompt or ASSUMED_PROMPT_TOKENS, positions)
    layer_cache = batch * held_positions(engine, positions, length, prompt) * per_position
    activations = _activation_bytes(
        architecture,
        ENGINES[engine],
        number=number,
        shards=shards,
        batch=batch,
        prompt=prompt,
        positions=positions,
        layer_cache=layer_cache,
    )
    return MemoryNeed(
        weights_gib=architecture.parameters_per_shard(shards) * number / GIB,
        kv_cache_gib=architecture.n_layers * layer_cache / GIB,
        activations_gib=activations / GIB,
        workspace_gib=CONTEXT_GIB,
    )


def cell_memory(
    cell: Cell, architecture: Architecture, constants: Constants, longest_prompt: int | None
) -> MemoryNeed:
    """Memory of one device in a cell, whose batch has no more rows than the study has prompts.

    Args:
        cell: the cell.
        architecture: its model's shape.
        constants: the study's.
        longest_prompt: tokens of its data set's longest prompt; None where that is not known.
    """
    return memory_need(
        architecture,
        precision=cell.precision,
        shards=cell.shards,
        batch=min(cell.batch, constants.prompts),
        length=cell.length,
        engine=cell.engine,
        cache_tokens=constants.cache_tokens,
        longest_prompt=longest_prompt,
    )


def _activation_bytes(
    architecture: Architecture,
    facts: EngineFacts,
    *,
    number: int,
    shards: int,
    batch: int,
    prompt: int,
    positions: int,
    layer_cache: int,
) -> float:
    """Bytes that an engine's loop has beside weights and cache at its fullest; see `memory_need`."""
    logits = batch * architecture.vocab_size
    shared = architecture.n_heads / shards / architecture.kv_heads_per_shard(shards)
    match facts.loop:
        case "published":
            repeated = shared if shared > 1 else 0
            copies = layer_cache * (1.5 * repeated or 0.5)
            filled = min(prompt, ASSUMED_PROMPT_TOKENS)
            share = filled / positions
            scores = batch * (architecture.n_heads / shards) * filled * filled
            product = 2 * number * scores + share * copies
            softmax = (8 if number == 4 else number + 8) * scores + share * repeated * layer_cache
            attention = max(copies, product, softmax)
            of_all_positions = logits * filled * (number + 4) if facts.logits == "all" else 0
            return logits * (4 + 4 + 4 + 8) + attention + of_all_positions
        case "fast":
            at_once = min(batch * prompt, max(prompt, FAST_PREFILL_TOKENS))
            tokens = at_once * _token_bytes(architecture, shards, number)
            return max(tokens, logits * (4 + 4 + 4 + 8 + 8))
        case "transformers":
            tokens = batch * prompt * _token_bytes(architecture, shards, number)
            of_a_layer = layer_cache * (1 + (shared if shared > 1 else 0))
            return max(tokens, logits * (number + 4 + 4 + 4 + 4 + 4 + 8)) + of_a_layer


def _token_bytes(architecture: Architecture, shards: int, number: int) -> float:
    """Bytes of a prompt token's activations in the widest part of a layer."""
    heads = 2 * architecture.n_heads / shards + 2 * architecture.kv_heads_per_shard(shards)
    widest = max(heads * architecture.head_dim, 3 * architecture.hidden_dim / shards)
    return architecture.dim * (2 * number + 4) + widest * number
