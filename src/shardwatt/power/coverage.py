"""What a reading covers: which nodes and devices, how densely and how punctually they were sampled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shardwatt.power.curve import COUNTERS, GAP_PERIODS, Array, Interval
from shardwatt.power.nodetrace import DeviceTrace, NodeTrace
from shardwatt.readings import Coverage

#: Of jitter and lateness, the percentile that is told.
_PERCENTILE = 95


def coverage(
    nodes: Sequence[NodeTrace], intervals: Sequence[Interval], *, nodes_expected: int, devices_expected: int
) -> Coverage:
    """What the samples of some nodes cover of a union of intervals.

    Args:
        nodes: that were to be read.
        intervals: in order, apart from each other.
        nodes_expected, devices_expected: of the job.
    """
    densities = [
        (node, density(device, intervals)) for node in nodes for device in node.devices if len(device.times_s)
    ]
    spacings_s = _joined(found.spacings_s for _, found in densities)
    jitter_s = _joined(
        np.abs(found.spacings_s - node.asked_period_s)
        for node, found in densities
        if node.asked_period_s is not None
    )
    devices = [device for node in nodes for device in node.devices]
    return Coverage(
        nodes=[node.name for node in nodes if node.devices],
        nodes_expected=nodes_expected,
        devices=[device.device for device in devices],
        devices_expected=devices_expected,
        samples=sum(found.samples for _, found in densities),
        asked_period_s=_largest(node.asked_period_s for node in nodes),
        period_s=float(np.median(spacings_s)) if len(spacings_s) else None,
        jitter_s=float(np.percentile(jitter_s, _PERCENTILE)) if len(jitter_s) else None,
        late_s=_largest(node.late_s for node in nodes),
        missed=max((node.missed for node in nodes if node.missed is not None), default=None),
        sampler_cpu_share=_largest(node.sampler_cpu_share for node in nodes),
        max_gap_s=float(np.max(spacings_s)) if len(spacings_s) else None,
        gaps=sum(len(found.gaps) for _, found in densities) if densities else None,
        tick_s=_largest(
            device.curve.tick_s for device in devices if device.curve and device.curve.method in COUNTERS
        ),
        clock_offset_s=_largest(abs(node.wall_ahead_s) for node in nodes if node.wall_ahead_s is not None),
        clock_drift_s=_largest(abs(node.drift_s) for node in nodes if node.drift_s is not None),
        counter_over_integral=_counter_over_integral(devices, intervals),
    )


@dataclass(frozen=True, slots=True)
class Density:
    """How densely a device was sampled in a union of intervals.

    Attributes:
        samples: samples inside, borders included.
        spacings_s: [spacings] times in s between two samples, where a part of that is inside.
        gaps: (start, stop) of those of them that are longer than ten periods.
    """

    samples: int
    spacings_s: Array
    gaps: list[Interval]


def density(device: DeviceTrace, intervals: Sequence[Interval]) -> Density:
    """How densely the samples that know a device's energy lie.

    Args:
        device: with at least one sample.
        intervals: in order, apart from each other.
    """
    times_s = device.times_s
    borders_s: Array = np.array(intervals, dtype=np.float64).reshape(-1, 2)
    inside = np.searchsorted(times_s, borders_s[:, 1], side="right") - np.searchsorted(
        times_s, borders_s[:, 0]
    )
    # The samples around an interval bear on it too: a gap over its border is one of its gaps.
    first = np.maximum(np.searchsorted(times_s, borders_s[:, 0], side="right") - 1, 0)
    last = np.minimum(np.searchsorted(times_s, borders_s[:, 1]), len(times_s) - 1)
    depth = np.zeros(len(times_s), dtype=np.int64)
    np.add.at(depth, first, 1)
    np.subtract.at(depth, np.maximum(first, last), 1)
    used = np.flatnonzero(np.cumsum(depth)[:-1] > 0)
    spacings_s = np.diff(times_s)
    period_s = float(np.median(spacings_s)) if len(spacings_s) else 0.0
    gaps = used[spacings_s[used] > GAP_PERIODS * period_s]
    return Density(
        int(np.sum(inside)),
        spacings_s[used],
        [(float(times_s[gap]), float(times_s[gap + 1])) for gap in gaps],
    )


def _counter_over_integral(devices: Iterable[DeviceTrace], intervals: Sequence[Interval]) -> float | None:
    counters_j = integrals_j = 0.0
    for device in devices:
        integral = device.integral_j(intervals)
        counter_j = device.part(intervals).joules
        if integral is not None and counter_j is not None:
            counters_j += counter_j
            integrals_j += integral[0]
    return counters_j / integrals_j if integrals_j else None


def _joined(parts: Iterable[Array]) -> Array:
    return np.concatenate([*parts, np.empty(0)])


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
