"""How near a cell came to what its devices can do: bytes and operations of its phases against peaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from shardwatt.architectures import Architecture
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.modelwork import PhaseName, Work, flop, moved_bytes
from shardwatt.readings import NonNegative
from shardwatt.recordfiles import RecordModel
from shardwatt.site import GpuType

Count = Annotated[int, Field(ge=0)]

#: Phases whose steps feed one token of every row, and so read weights and cache once a step.
STEPWISE: tuple[PhaseName, ...] = ("walk", "decode")


class PeakFigures(RecordModel):
    """What the devices of a cell can do at most."""

    data_sheet: str | None
    """Name in the catalogue of data sheets; null where the site gave figures of its own."""
    source: str
    """Where the figures come from."""
    devices: Annotated[int, Field(ge=1)]
    """How many there are: one a shard; for processors one a node."""
    memory_bandwidth_b_s: NonNegative | None
    """Memory bandwidth of one device in B/s; null where it is not known."""
    flop_per_s: NonNegative | None
    """Dense operations a second of one device in the cell's precision; null where that is not known, or the
    device does not calculate in it."""

    @property
    def all_b_s(self) -> float | None:
        """Memory bandwidth of all devices together in B/s."""
        return None if self.memory_bandwidth_b_s is None else self.devices * self.memory_bandwidth_b_s

    @property
    def all_flop_per_s(self) -> float | None:
        """Operations a second of all devices together."""
        return None if self.flop_per_s is None else self.devices * self.flop_per_s


class Arithmetic(RecordModel):
    """Operations of matrix products and attention, a multiplication and an addition counting as two."""

    flop_executed: Count
    """Of all that was computed: padding, rows that had ended, and tokens that were thrown away included.
    Attention is the causal half, by convention, also where an engine computes the other and masks it."""
    flop_useful: Count
    """Of what the responses need: each prompt once, and each output token before the end of sequence; logits,
    and what is behind the last layer's attention, only where a token is drawn that counts, or the end. Never
    more than `flop_executed`."""
    flop_utilisation_executed: NonNegative | None
    """`flop_executed` over what all devices can do in that time; null where that is not known."""
    flop_utilisation_useful: NonNegative | None
    """`flop_useful` likewise."""


class PhaseEfficiency(Arithmetic):
    """One phase of a cell, all batches and all devices together."""

    steps: Count
    """Forward passes."""
    tokens: Count
    """Token positions that were fed, in all rows; padding and rows that had ended included."""
    tokens_useful: Count
    """Those of them that the responses need."""
    tokens_per_s: NonNegative | None
    """`tokens` over the phase's time: how fast an engine computes, waste included; null without a time."""
    tokens_useful_per_s: NonNegative | None
    """`tokens_useful` over the phase's time: what engines are compared by. Prompt tokens without padding,
    each once, and output tokens that are fed, without those behind a row's end."""
    moved_bytes: Count | None
    """The least that its steps have to read: every weight once a step, and the keys and values of every
    position that is attended to. Null for prefill, where what is read of the cache depends on how kernels cut
    the attention up, and arithmetic is the limit."""
    bandwidth_utilisation: NonNegative | None
    """`moved_bytes` over what all devices can read in that time; above 1 where caches served. Null for
    prefill, and where the memory bandwidth is not known."""


class Efficiency(RecordModel):
    """How near a cell came to what its devices can do; definitions in docs/results.md."""

    peak: PeakFigures | None
    """What it is measured against; null where the site says nothing of it."""
    prefill: PhaseEfficiency
    walk: PhaseEfficiency
    decode: PhaseEfficiency
    window: Arithmetic
    """All phases, over the time of the whole window."""


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """One phase of a cell, all batches together.

    Attributes:
        duration_s: how long it took.
        steps: forward passes.
        executed: what was computed.
        useful: what the responses need of it.
    """

    duration_s: float = 0.0
    steps: int = 0
    executed: Work = field(default_factory=Work)
    useful: Work = field(default_factory=Work)

    def __add__(self, other: PhaseWork) -> PhaseWork:
        return PhaseWork(
            self.duration_s + other.duration_s,
            self.steps + other.steps,
            self.executed + other.executed,
            self.useful + other.useful,
        )


def peak_figures(gpu_type: GpuType, *, precision: str, shards: int, nodes: int) -> PeakFigures | None:
    """What the devices of a cell can do at most, as the site says; None where it says nothing."""
    devices = nodes if gpu_type.kind == "cpu" else shards
    if gpu_type.data_sheet is not None:
        sheet = DATA_SHEETS[gpu_type.data_sheet]
        return PeakFigures(
            data_sheet=sheet.name,
            source=sheet.source,
            devices=devices,
            memory_bandwidth_b_s=sheet.memory_bandwidth_b_s,
            flop_per_s=sheet.flop_per_s[precision],
        )
    if gpu_type.peak is None:
        return None
    own = gpu_type.peak
    bandwidth = own.memory_bandwidth_gb_s
    tflops: float | None = getattr(own.tflops, precision, None)
    return PeakFigures(
        data_sheet=None,
        source=own.source,
        devices=devices,
        memory_bandwidth_b_s=None if bandwidth is None else bandwidth * 1e9,
        flop_per_s=None if tflops is None else tflops * 1e12,
    )


def efficiency(
    architecture: Architecture,
    phases: Mapping[PhaseName, PhaseWork],
    peak: PeakFigures | None,
    *,
    precision: str,
    shards: int,
    duration_s: float,
) -> Efficiency:
    """Set the work of a cell's phases against what its devices can do.

    Args:
        architecture: the model's shape.
        phases: the work of each; one that is left out did not occur.
        peak: what the devices can do at most.
        precision: of weights and cache.
        shards: ranks.
        duration_s: of the window.
    """
    made = {
        name: _phase(architecture, name, phases.get(name, PhaseWork()), peak, precision, shards)
        for name in ("prefill", *STEPWISE)
    }
    executed = sum(phase.flop_executed for phase in made.values())
    useful = sum(phase.flop_useful for phase in made.values())
    return Efficiency(peak=peak, window=_arithmetic(executed, useful, peak, duration_s), **made)


def _phase(
    architecture: Architecture,
    name: PhaseName,
    phase: PhaseWork,
    peak: PeakFigures | None,
    precision: str,
    shards: int,
) -> PhaseEfficiency:
    moved = None
    if name in STEPWISE:
        moved = moved_bytes(
            architecture, phase.executed, steps=phase.steps, precision=precision, shards=shards
        )
    executed, useful = flop(architecture, phase.executed, shards), flop(architecture, phase.useful)
    return PhaseEfficiency(
        steps=phase.steps,
        tokens=phase.executed.tokens,
        tokens_useful=phase.useful.tokens,
        tokens_per_s=_rate(phase.executed.tokens, phase.duration_s),
        tokens_useful_per_s=_rate(phase.useful.tokens, phase.duration_s),
        moved_bytes=moved,
        bandwidth_utilisation=_share(moved, peak.all_b_s if peak else None, phase.duration_s),
        **_arithmetic(executed, useful, peak, phase.duration_s).model_dump(),
    )


def _arithmetic(executed: int, useful: int, peak: PeakFigures | None, duration_s: float) -> Arithmetic:
    rate = peak.all_flop_per_s if peak else None
    return Arithmetic(
        flop_executed=executed,
        flop_useful=useful,
        flop_utilisation_executed=_share(executed, rate, duration_s),
        flop_utilisation_useful=_share(useful, rate, duration_s),
    )


def _rate(tokens: int, duration_s: float) -> float | None:
    return tokens / duration_s if duration_s > 0 else None


def _share(amount: int | None, most_per_s: float | None, duration_s: float) -> float | None:
    """An amount over the most that is possible in a time; None where either is not known."""
    if amount is None or most_per_s is None or duration_s <= 0:
        return None
    return amount / (most_per_s * duration_s)
