"""What `shardwatt meters` says of a node: a row for each meter, and one for each GPU."""

from __future__ import annotations

from enum import StrEnum

from shardwatt.checks.idle import CounterSteps
from shardwatt.readings import METERED, Device, Method, Status
from shardwatt.recordfiles import RecordModel


class MeterName(StrEnum):
    """A source of joules or watts."""

    NVML = "NVML"
    COUNTER = "NVML energy counter"
    POWER = "NVML power"
    PACKAGE = "RAPL package"
    DRAM = "RAPL dram"
    DCGM = "DCGM"
    SLURM = "Slurm node energy"
    ESTIMATE = "processor estimate"


class MeterRow(RecordModel):
    """One meter, of one device where it has several."""

    meter: MeterName
    device: Device | None = None
    status: Status | None
    """What its readings are worth, or why there are none; null where it answers, and is not read here."""
    detail: str | None = None
    """Why there is no reading, or what is to be known of it."""
    power_w: float | None = None
    """Mean power over the reading in W."""
    power_sd_w: float | None = None
    """Its standard deviation in W: of samples, or for a counter of its means over 1 s."""
    tick_s: float | None = None
    """Median time in s between steps of a counter; it is as short as could be seen where `tick_is_seen` is
    false."""
    tick_is_seen: bool = True
    """Whether the counter is slower than it was looked at."""
    step_j: float | None = None
    """Median step of a counter in J."""

    @property
    def measures(self) -> bool:
        """Whether it was read, and is more than an estimate."""
        return self.status in METERED


class GpuRow(RecordModel):
    """A GPU: how its meters agree, and its power limits in W as the driver tells them; null for unknown."""

    device: Device
    busy: float | None
    """Share of the time in which a kernel ran."""
    counter_over_integral: float | None
    """Joules of the energy counter over the integral of sampled power."""
    limit_set_w: float | None = None
    limit_enforced_w: float | None = None
    limit_least_w: float | None = None
    limit_most_w: float | None = None
    limit_default_w: float | None = None
    limit_detail: str | None = None
    """Why limits are not known."""


class Sampling(RecordModel):
    """How the samples of a device came, as those of a cell would on this node."""

    samples: int
    period_s: float
    """Median time in s between samples."""
    jitter_s: float
    """95th percentile in s of how far the time between two samples is from the one that was asked for."""
    max_gap_s: float
    """Longest time in s between two samples."""


class NodeMeters(RecordModel):
    """What `shardwatt meters` says of a node."""

    node: str
    seconds: float
    """Time in s for which meters were read."""
    asked_period_s: float
    """Time in s between samples that was asked for: that of a cell's sampler."""
    rows: list[MeterRow]
    gpus: list[GpuRow]
    setting_limits: str = "not tried"
    """Whether this user may set power limits."""
    sampling: Sampling
    processors_busy: float | None
    """Share of the time in which the node's processors were busy."""
    cell_method: Method | None
    """How the energy of a cell would be had here."""
    cell_status: Status
    """What it would be worth."""
    cell_detail: str | None
    warnings: list[str]

    @property
    def measures(self) -> bool:
        """Whether anything here is measured."""
        return any(row.measures for row in self.rows)


def counter_row(meter: MeterName, device: Device, steps: CounterSteps) -> MeterRow:
    """The row of a counter that could be opened, by what was seen of its steps."""
    spread = steps.spread
    if spread.mean_w is None:
        what = "moved too seldom to be read in this time; try again with more --seconds"
        if steps.ran_backwards:
            what = "ran backwards: a cell would have no joules of it"
        elif not steps.moved:
            what = "stood still: a cell would have no joules of it"
        return MeterRow(meter=meter, device=device, status=Status.UNAVAILABLE, detail=f"the counter {what}")
    return MeterRow(
        meter=meter,
        device=device,
        status=Status.MEASURED,
        power_w=spread.mean_w,
        power_sd_w=spread.sd_w,
        tick_s=steps.tick_s,
        tick_is_seen=steps.is_slower_than_looks,
        step_j=steps.step_j,
    )
