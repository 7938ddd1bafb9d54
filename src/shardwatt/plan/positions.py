"""How many cache positions fit on the paper's machines, and which numbers of them Table II allows."""

from __future__ import annotations

from shardwatt.architectures import CATALOGUE
from shardwatt.plan.memory import MemoryNeed, memory_need
from shardwatt.plan.published import V100, Published, published
from shardwatt.plan.reckoning import SITE


def need(model: str, shards: int, batch: int, cache_tokens: int) -> MemoryNeed:
    """Memory that a device needs for a model in fp16 with the published loop."""
    return memory_need(
        CATALOGUE[model],
        precision="fp16",
        shards=shards,
        batch=batch,
        length=cache_tokens,
        cache_tokens=cache_tokens,
        engine="reference",
    )


def most_positions(model: str, shards: int, batch: int, memory_gib: float) -> int:
    """The largest T that fits, up to the model's context; 0 where not even one position does."""
    fitting, above = 0, CATALOGUE[model].context + 1
    while above - fitting > 1:
        middle = (fitting + above) // 2
        if need(model, shards, batch, middle).total_gib <= memory_gib:
            fitting = middle
        else:
            above = middle
    return fitting


def is_of_memory(one: Published) -> bool:
    """Whether a row of Table II says what fits; of the small models on A100s more may fit than was run."""
    return one.quantity == "fewest_gpus" or one.gpu == V100 or one.model == "llama-65b"


def table_2_positions() -> tuple[int, int]:
    """Between what T all rows of Table II come out that say what fits, at batches of powers of two."""
    least, most = 1, max(CATALOGUE[one.model].context for one in published("Table II"))
    for one in filter(is_of_memory, published("Table II")):
        memory_gib = SITE.gpus[one.gpu].memory_gib
        if one.quantity == "fewest_gpus":
            shards, batch = round(one.value), one.batch or 64
            fewer = most_positions(one.model, shards // 2, batch, memory_gib) if shards > 1 else 0
            least = max(least, fewer + 1)
        else:
            shards, batch = one.shards or 1, round(one.value)
            least = max(least, most_positions(one.model, shards, 2 * batch, memory_gib) + 1)
        most = min(most, most_positions(one.model, shards, batch, memory_gib))
    return least, most
