"""What others have published of runs like these: values that the plan's models are checked against."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

#: What a published value is of.
Quantity = Literal[
    "fewest_gpus",
    "largest_batch",
    "duration_change_percent",
    "energy_change_percent",
    "token_rate_change_percent",
    "memory_activity_percent",
    "memory_activity_max_percent",
    "sm_utilisation_percent",
    "power_w",
    "energy_per_token_j",
    "throughput_ratio",
    "energy_per_token_ratio",
    "most_efficient_shards",
    "step_s",
]

PAPER = "Samsi et al., From Words to Watts, IEEE HPEC 2023 (arXiv:2310.03003)"
ML_ENERGY = "The ML.ENERGY leaderboard v3.0 (vLLM 0.11, December 2025; arXiv:2505.06371)"
INDEX = "Green Token Index (2026), from the ML.ENERGY leaderboard v3.0"


@dataclass(frozen=True, slots=True)
class Published:
    """One published value, with the run that it is of.

    Attributes:
        where: the table, figure or finding.
        quantity: what the value is of; `_percent` of a change is against the run at 250 W.
        low: the value, or the lower end of the range that is stated.
        high: the value, or the upper end.
        model: as `shardwatt.architectures.CATALOGUE` names it.
        gpu: name of a data sheet.
        shards: GPUs; None where it is what was found.
        batch: prompts answered together; None where it is what was found, or several.
        length: maximum new tokens.
        dataset: `alpaca`, `gsm8k`, `both` for the mean of the two, or `chat`.
        cap_w: limit of each GPU in W; None: the usual one.
        source: who published it.
    """

    where: str
    quantity: Quantity
    low: float
    high: float
    model: str
    gpu: str
    shards: int | None
    batch: int | None
    length: int
    dataset: str
    cap_w: int | None
    source: str

    @property
    def value(self) -> float:
        """The value, or the middle of its range."""
        return (self.low + self.high) / 2

    @property
    def is_range(self) -> bool:
        """Whether a range is stated."""
        return self.low != self.high


V100 = "v100-pcie-32gb"
A100 = "a100-pcie-80gb"
H100 = "h100-sxm-80gb"

#: Limit of each GPU in the paper, where it does not vary it.
USUAL_CAP_W = 250

#: Batch sizes that the paper ran.
BATCHES = (64, 128, 256, 512)


def _paper(
    where: str,
    quantity: Quantity,
    value: float | tuple[float, float],
    model: str,
    gpu: str,
    *,
    shards: int | None = None,
    batch: int | None = 64,
    length: int = 256,
    dataset: str = "both",
    cap_w: int = USUAL_CAP_W,
) -> Published:
    low, high = value if isinstance(value, tuple) else (value, value)
    return Published(where, quantity, low, high, model, gpu, shards, batch, length, dataset, cap_w, PAPER)


def _table_2() -> Iterator[Published]:
    """Bare minimum hardware at batch 64, and the largest batch on it, at maximum length 256."""
    for model, gpu, gpus, largest in (
        ("llama-7b", V100, 1, 64),
        ("llama-13b", V100, 2, 64),
        ("llama-65b", V100, 8, 64),
        ("llama-7b", A100, 1, 64),
        ("llama-13b", A100, 1, 64),
        ("llama-65b", A100, 4, 128),
    ):
        yield _paper("Table II", "fewest_gpus", gpus, model, gpu)
        yield _paper("Table II", "largest_batch", largest, model, gpu, shards=gpus, batch=None)


def _table_3() -> Iterator[Published]:
    """65B on four A100s, GSM8K, batch 64: time, energy and token rate under caps, against 250 W."""
    for length, at_175_w, at_150_w in (
        (256, (6.23, -21.82, -5.87), (15.33, -32.76, -13.15)),
        (512, (6.51, -23.95, -6.11), (21.70, -34.66, -17.83)),
        (1024, (7.40, -23.87, -6.89), (21.65, -34.59, -17.80)),
    ):
        for cap_w, changes in ((175, at_175_w), (150, at_150_w)):
            quantities: tuple[Quantity, ...] = (
                "duration_change_percent",
                "energy_change_percent",
                "token_rate_change_percent",
            )
            for quantity, value in zip(quantities, changes, strict=True):
                yield _paper(
                    "Table III",
                    quantity,
                    value,
                    "llama-65b",
                    A100,
                    shards=4,
                    length=length,
                    dataset="gsm8k",
                    cap_w=cap_w,
                )


def _tables_4_and_5() -> Iterator[Published]:
    """65B, batch 64: what the paper calls memory utilisation is the share of time in which memory is busy.

    Table IV gives a maximum of it, over what is not said, and the mean of SM utilisation; Table V does not
    say which of the two it gives, and is taken to give means.
    """
    for length, memory, sm in (
        (256, 23.36, 95.00),
        (512, 24.54, 98.81),
        (1024, 24.85, 98.85),
        (2048, 27.00, 98.00),
    ):
        yield _paper(
            "Table IV", "memory_activity_max_percent", memory, "llama-65b", A100, shards=4, length=length
        )
        yield _paper("Table IV", "sm_utilisation_percent", sm, "llama-65b", A100, shards=4, length=length)
    for shards, memory, sm in ((8, 24.25, 94.75), (16, 13.33, 95.00), (32, 6.66, 95.66)):
        yield _paper("Table V", "memory_activity_percent", memory, "llama-65b", V100, shards=shards)
        yield _paper("Table V", "sm_utilisation_percent", sm, "llama-65b", V100, shards=shards)


def _findings() -> Iterator[Published]:
    """What the paper says in words, of its figures 2 to 7; `about` is taken at its word."""
    for shards, power_w in ((8, 300.0), (32, 1000.0)):
        yield _paper("findings, figure 4", "power_w", power_w, "llama-65b", V100, shards=shards, length=512)
    yield _paper(
        "findings, figure 6", "energy_per_token_j", (3.0, 4.0), "llama-65b", V100, shards=8, length=512
    )
    rises = (1.0, math.inf)
    yield _paper(
        "findings, figure 6", "energy_per_token_ratio", rises, "llama-65b", V100, shards=32, length=512
    )
    yield _paper(
        "findings, figure 6",
        "most_efficient_shards",
        16,
        "llama-65b",
        V100,
        batch=None,
        length=512,
        dataset="gsm8k",
    )
    for model, ratio in (("llama-7b", 2.0), ("llama-13b", 1.25), ("llama-65b", (1.0, 1.25))):
        yield _paper("findings, figure 2", "throughput_ratio", ratio, model, A100)


def _peers() -> Iterator[Published]:
    """Llama 3.1 on H100s with vLLM, continuous batching, chat prompts (ML.ENERGY)."""
    for model, gpus, by_batch in (
        ("llama-3.1-8b", 1, {8: 0.455, 64: 0.119, 512: 0.070}),
        ("llama-3.1-70b", 4, {8: 3.76, 64: 0.797, 256: 0.479}),
    ):
        for batch, energy_j in by_batch.items():
            yield Published(
                f"ML.ENERGY, {gpus} x H100",
                "energy_per_token_j",
                energy_j,
                energy_j,
                model,
                H100,
                gpus,
                batch,
                CHAT_LENGTH,
                "chat",
                None,
                ML_ENERGY,
            )
    of = ("llama-3.1-8b", H100, 1, 512, CHAT_LENGTH, "chat", None, INDEX)
    yield Published("ML.ENERGY, 1 x H100", "power_w", 688.0, 688.0, *of)
    yield Published("ML.ENERGY, 1 x H100", "step_s", 0.0474, 0.0474, *of)


#: Maximum new tokens of the chat task of ML.ENERGY.
CHAT_LENGTH = 4096

#: Mean output tokens of Llama 3.1 8B in that task (Green Token Index, row llama-3-1-8b-instruct/H100/1/512).
CHAT_OUTPUT_TOKENS = 397.0

#: Every value.
PUBLISHED: tuple[Published, ...] = (
    *_table_2(),
    *_table_3(),
    *_tables_4_and_5(),
    *_findings(),
    *_peers(),
)


def published(where: str, quantity: Quantity | None = None) -> tuple[Published, ...]:
    """Values of a table, or of all findings or measurements of a name, of one quantity or of all.

    Raises:
        KeyError: there are none.
    """
    found = tuple(
        one for one in PUBLISHED if one.where.partition(",")[0] == where and quantity in (None, one.quantity)
    )
    if not found:
        known = ", ".join(sorted({one.where for one in PUBLISHED}))
        raise KeyError(f"nothing published under '{where}' ({quantity}); known: {known}")
    return found


def implied_power_ratio(cap_w: int, length: int) -> float:
    """Mean power under a cap over that at 250 W, as Table III implies it: energy ratio over time ratio."""
    of = {
        one.quantity: one.value
        for one in published("Table III")
        if one.cap_w == cap_w and one.length == length
    }
    return (1 + of["energy_change_percent"] / 100) / (1 + of["duration_change_percent"] / 100)
