"""The samples of a node's devices, on rank 0's clock: what traces are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shardwatt.errors import RecordError
from shardwatt.power.clock import NodeClock
from shardwatt.power.curve import (
    Array,
    Curve,
    Interval,
    NoJoulesError,
    counter_curve,
    estimate_curve,
    integral_curve,
)
from shardwatt.power.sampling.files import MeterFile, SamplerFile
from shardwatt.power.sampling.table import read_samples
from shardwatt.readings import KNOWN, Device, DriverLimits, Method, Part, PowerSource, Status
from shardwatt.recordfiles import read

#: Time in s over which nvmlDeviceGetPowerUsage takes a mean (nvml.h: Ampere and newer, but not GA100).
_USAGE_MEAN_S = 1.0


@dataclass(frozen=True, slots=True)
class DeviceTrace:
    """The samples of one device.

    Attributes:
        device: whose they are.
        columns: a field of Sample -> [samples]; NaN for unknown; `t_s` on node 0's monotonic clock.
        curve: its energy; None where fewer than two samples know it.
        integral: its sampled power, integrated, beside a counter; None where there are not both.
        limits: its power limit when its meter was opened; None where there is none, or it was not asked.
        power_source: where its sampled power comes from; None where it has none.
    """

    device: Device
    columns: dict[str, Array]
    curve: Curve | None
    integral: Curve | None = None
    limits: DriverLimits | None = None
    power_source: PowerSource | None = None

    @property
    def times_s(self) -> Array:
        """[samples] Times in s of the samples that know its energy; of all where none does."""
        return self.curve.t_s if self.curve else self.columns["t_s"]

    def between(self, start_s: float, stop_s: float) -> slice:
        """Its samples from start to stop, both included."""
        times = self.columns["t_s"]
        return slice(int(np.searchsorted(times, start_s)), int(np.searchsorted(times, stop_s, side="right")))

    def joules(self, intervals: Sequence[Interval], minimum_ticks: int = 0) -> tuple[Method, float, float]:
        """Energy over a union of intervals: how it was obtained, joules and their uncertainty in J.

        Raises:
            NoJoulesError: the samples do not tell.
        """
        if self.curve is None:
            raise NoJoulesError("fewer than two samples know its energy")
        return self.curve.method, *self.curve.joules(intervals, minimum_ticks)

    def part(self, intervals: Sequence[Interval], minimum_ticks: int = 0) -> Part:
        """Its joules over a union of intervals, or why there are none."""
        try:
            _, joules, uncertainty_j = self.joules(intervals, minimum_ticks)
        except NoJoulesError as problem:
            return Part(joules=None, detail=str(problem))
        return Part(joules=joules, uncertainty_j=uncertainty_j)

    def integral_j(self, intervals: Sequence[Interval]) -> tuple[float, float] | None:
        """Its sampled power integrated over a union of intervals, and what the borders leave open of that, in
        J; None without a counter beside it, or where power samples miss."""
        if self.integral is None:
            return None
        try:
            return self.integral.joules(intervals)[0], self.integral.at_borders_j(intervals)
        except NoJoulesError:
            return None


@dataclass(frozen=True, slots=True)
class NodeTrace:
    """What one node's meter gave.

    Attributes:
        name: host name, or `node K` where its meter never became ready.
        status: what its joules are worth.
        detail: constants of an estimate, or why there are no joules.
        devices: what was read.
        asked_period_s: time in s between samples that was asked for; None where the meter never became
            ready.
        late_s: 95th percentile in s of how late its samples were; None where its sampler left no word.
        missed: deadlines at which it was not sampled; None where its sampler left no word.
        sampler_cpu_share: processor time of its sampler over the time that it ran; likewise.
        failures: first reason of each of its sensors that failed on the way.
        strangers: devices on which others than this job computed at the end, with their pids.
        wall_ahead_s: its wall clock less that of rank 0's node, in s; None where no barrier told.
        drift_s: by how much its monotonic clock and that of rank 0's node ran apart over the window, in s;
            None where no two barriers told.
    """

    name: str
    status: Status
    detail: str | None
    devices: list[DeviceTrace]
    asked_period_s: float | None = None
    late_s: float | None = None
    missed: int | None = None
    sampler_cpu_share: float | None = None
    failures: Sequence[str] = ()
    strangers: Sequence[str] = ()
    wall_ahead_s: float | None = None
    drift_s: float | None = None


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """What a sampler wrote about one node.

    Attributes:
        meter: what its meter is.
        samples: a column of samples-K.csv -> [samples]; none where there are no devices
        sampler: how well it kept its time; None where it was killed.
    """

    meter: MeterFile
    samples: dict[str, Array]
    sampler: SamplerFile | None

    @classmethod
    def read(cls, meter: Path, samples: Path, sampler: Path) -> NodeFiles:
        """Read them.

        Raises:
            FileNotFoundError: the meter never became ready.
            RecordError: a file is torn.
        """
        about = read(MeterFile, meter)
        # A meter without devices samples nothing.
        return cls(about, read_samples(samples) if about.devices else {}, _sampler_file(sampler))

    def trace(self, clock: NodeClock) -> NodeTrace:
        """The node's trace on rank 0's clock.

        Args:
            clock: the node's.
        """
        sources = self.meter.power_sources or [None] * len(self.meter.devices)
        limits = self.meter.limits or [None] * len(self.meter.devices)
        devices = []
        for device, source, limit in zip(self.meter.devices, sources, limits, strict=True):
            is_own = self.samples["device"] == device.index
            columns = {name: values[is_own] for name, values in self.samples.items() if name != "device"}
            columns["t_s"] = clock.on_rank0_s(columns["t_s"])
            devices.append(DeviceTrace(device, columns, *self._curves(columns, source), limit, source))
        kept = self.sampler
        return NodeTrace(
            self.meter.node,
            self.meter.status,
            self.meter.detail,
            devices,
            asked_period_s=self.meter.period_s,
            late_s=kept.late_p95_s if kept else None,
            missed=kept.missed if kept else None,
            sampler_cpu_share=kept.cpu_s / kept.wall_s if kept and kept.wall_s else None,
            failures=kept.failures if kept else (),
            strangers=kept.strangers if kept else (),
            wall_ahead_s=clock.wall_ahead_s,
            drift_s=clock.drift_s,
        )

    def _curves(
        self, columns: dict[str, Array], source: PowerSource | None
    ) -> tuple[Curve | None, Curve | None]:
        """The energy of a device, and its power's integral as a cross-check."""
        if self.meter.status not in KNOWN:
            # Somebody else's joules may be among them.
            return None, None
        t_s, counter_j, power_w = columns["t_s"], columns["counter_j"], columns["power_w"]
        if self.meter.method is Method.RAPL:
            return counter_curve(t_s, counter_j, Method.RAPL), None
        averaged_s = _USAGE_MEAN_S if source is PowerSource.USAGE else 0.0
        if not np.all(np.isnan(counter_j)):
            return counter_curve(t_s, counter_j), integral_curve(t_s, power_w, averaged_s)
        # What a meter is worth is what its worst device is: others of it may be better.
        if source is PowerSource.ESTIMATE or (source is None and self.meter.method is Method.ESTIMATE):
            return estimate_curve(t_s, power_w), None
        # Of GPUs before Volta it is the sensor's latest; newer ones whose counter is refused take a mean.
        return integral_curve(t_s, power_w, averaged_s), None


def _sampler_file(path: Path) -> SamplerFile | None:
    """How well a sampler kept its time; its joules do without."""
    try:
        return read(SamplerFile, path)
    except (FileNotFoundError, RecordError):
        return None
