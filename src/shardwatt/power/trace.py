"""The trace of a job: every node's samples on one clock, and readings over any part of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shardwatt.errors import RecordError
from shardwatt.power.curve import (
    Array,
    Curve,
    Interval,
    NoJoulesError,
    counter_curve,
    estimate_curve,
    integral_curve,
)
from shardwatt.power.samplefiles import COLUMNS, MeterFile, meter_path, read_samples, samples_path
from shardwatt.records import Coverage, Device, Mean, Method, Reading, Scope, Status, Utilisation, read

_KNOWN = (Status.MEASURED, Status.DERIVED, Status.ESTIMATED)

#: Time in s by which the samplers of a job may start, or end, apart.
_STAGGER_S = 5.0


@dataclass(frozen=True, slots=True)
class DeviceTrace:
    """The samples of one device.

    Attributes:
        device: whose they are.
        columns: a field of Sample -> [samples]; NaN for unknown; `t_s` on node 0's monotonic clock.
        curve: its energy; None where fewer than two samples know it.
    """

    device: Device
    columns: dict[str, Array]
    curve: Curve | None

    def between(self, start_s: float, stop_s: float) -> slice:
        """Its samples from start to stop, both included."""
        times = self.columns["t_s"]
        return slice(int(np.searchsorted(times, start_s)), int(np.searchsorted(times, stop_s, side="right")))


@dataclass(frozen=True, slots=True)
class NodeTrace:
    """What one node's meter gave.

    Attributes:
        name: host name, or `node K` where its meter never became ready.
        status: what its joules are worth.
        detail: constants of an estimate, or why there are no joules.
        devices: what was read.
    """

    name: str
    status: Status
    detail: str | None
    devices: list[DeviceTrace]


class Trace:
    """All samples of a job; times in s of node 0's `time.monotonic()`."""

    def __init__(self, nodes: Sequence[NodeTrace], devices_per_node: int) -> None:
        self.nodes = list(nodes)
        self.devices_per_node = devices_per_node

    @property
    def span(self) -> Interval | None:
        """The time in which every device was sampled; None without samples.

        Where samplers started or ended more than 5 s apart it is the time in which any was, so that
        the reading over it says what is missing instead of being over less.
        """
        ends = [
            (times[0], times[-1])
            for node in self.nodes
            for device in node.devices
            if len(times := device.curve.t_s if device.curve else device.columns["t_s"])
        ]
        if not ends:
            return None
        starts, stops = (np.array(side) for side in zip(*ends, strict=True))
        start_s = starts.max() if np.ptp(starts) <= _STAGGER_S else starts.min()
        stop_s = stops.min() if np.ptp(stops) <= _STAGGER_S else stops.max()
        return float(start_s), float(stop_s)

    def reading(self, intervals: Sequence[Interval], scope: Scope, *, minimum_ticks: int = 0) -> Reading:
        """Joules over a union of intervals.

        One interval of a counter is `measured`; several, or a phase, are `derived`, since their borders
        are interpolated. What the samples do not tell is null with a reason, never extrapolated.

        Args:
            intervals: (start, stop) in s of node 0's `time.monotonic()`; may touch or overlap.
            scope: all nodes summed, or node 0 times the number of nodes.
            minimum_ticks: shortest total length that is resolved, in ticks of the meter; above 0 for
                phases.

        Raises:
            ValueError: an interval stops before it starts; a defect of the caller.
        """
        merged = _union(intervals)
        nodes = self.nodes[:1] if scope is Scope.RANK0_NODE_SCALED else self.nodes
        coverage = self._coverage(nodes, merged)

        def without(status: Status, detail: str | None) -> Reading:
            return Reading(
                joules=None, method=None, status=status, scope=scope, coverage=coverage, detail=detail
            )

        for node in nodes:
            if node.status not in _KNOWN:
                return without(node.status, node.detail)
        energy_j = uncertainty_j = 0.0
        methods = set()
        for node in nodes:
            for device in node.devices:
                try:
                    if device.curve is None:
                        raise NoJoulesError("fewer than two samples know its energy")
                    part_j, part_uncertainty_j = device.curve.joules(merged, minimum_ticks)
                except NoJoulesError as problem:
                    where = f"device {device.device.index} of {node.name}"
                    return without(Status.UNAVAILABLE, f"{where}: {problem}")
                energy_j += part_j
                uncertainty_j += part_uncertainty_j
                methods.add(device.curve.method)
        scale = len(self.nodes) if scope is Scope.RANK0_NODE_SCALED else 1
        method = _weakest(methods)
        direct = len(merged) == 1 and not minimum_ticks and scale == 1
        return Reading(
            joules=energy_j * scale,
            method=method,
            status=_status(method, direct=direct),
            scope=scope,
            coverage=coverage,
            uncertainty_j=uncertainty_j * scale,
            detail="; ".join(dict.fromkeys(node.detail for node in nodes if node.detail)) or None,
        )

    def _coverage(self, nodes: Sequence[NodeTrace], intervals: Sequence[Interval]) -> Coverage:
        devices = [device for node in nodes for device in node.devices]
        inside = [
            device.columns["t_s"][device.between(*interval)] for device in devices for interval in intervals
        ]
        spacings = np.concatenate([np.diff(times) for times in inside] or [np.empty(0)])
        return Coverage(
            nodes=[node.name for node in nodes if node.devices],
            nodes_expected=len(self.nodes),
            devices=[device.device for device in devices],
            devices_expected=len(self.nodes) * self.devices_per_node,
            samples=sum(len(times) for times in inside),
            period_s=float(np.median(spacings)) if len(spacings) else None,
            max_gap_s=float(np.max(spacings)) if len(spacings) else None,
        )

    def utilisation(self, start_s: float, stop_s: float) -> Utilisation:
        """Mean and maximum over the samples of all devices from start to stop; null where none knows."""
        devices = [device for node in self.nodes for device in node.devices]

        def mean(column: str) -> Mean:
            values = [device.columns[column][device.between(start_s, stop_s)] for device in devices]
            known = np.concatenate([*values, np.empty(0)])
            known = known[~np.isnan(known)]
            if not len(known):
                return Mean(mean=None, max=None)
            return Mean(mean=float(known.mean()), max=float(known.max()))

        return Utilisation(**{column: mean(column) for column in Utilisation.model_fields})

    def rows(self, origin_s: float) -> list[dict[str, Any]]:
        """Rows of power.parquet, by node, device and time; `t_s` counts from the origin."""
        rows = []
        for node in self.nodes:
            for device in node.devices:
                known = {
                    name: [None if np.isnan(value) else float(value) for value in values]
                    for name, values in device.columns.items()
                }
                known["t_s"] = (device.columns["t_s"] - origin_s).tolist()
                identity = {
                    "node": node.name,
                    "device": device.device.index,
                    "uuid": device.device.uuid,
                }
                rows += [
                    identity | dict(zip(known, values, strict=True))
                    for values in zip(*known.values(), strict=True)
                ]
        return rows


def load_trace(folder: Path, nodes: int, devices_per_node: int) -> Trace:
    """Read what the samplers of a job wrote.

    A node whose files are missing, torn, or of other devices than expected stays in the trace without
    devices: energy over all nodes is then unavailable, never extrapolated.

    Args:
        folder: where the samplers wrote.
        nodes: nodes of the job.
        devices_per_node: what the meter of one node should read: the job's GPUs there, or 1 for
            processors (`metered_devices`).
    """
    traces: list[NodeTrace] = []
    clock_s: float | None = None
    for index in range(nodes):
        try:
            meter = read(MeterFile, meter_path(folder, index))
            samples = read_samples(samples_path(folder, index))
        except FileNotFoundError:
            detail = f"node {index} has no {meter_path(folder, index).name}: its sampler never became ready"
            traces.append(NodeTrace(f"node {index}", Status.UNAVAILABLE, detail, []))
            continue
        except RecordError as problem:
            traces.append(NodeTrace(f"node {index}", Status.UNAVAILABLE, str(problem), []))
            continue
        if index == 0:
            clock_s = meter.wall_minus_monotonic_s
        if clock_s is None:
            detail = f"{meter.node}: without node 0's meter its clock cannot be brought to node 0's"
            traces.append(NodeTrace(meter.node, Status.UNAVAILABLE, detail, []))
            continue
        offset_s = meter.wall_minus_monotonic_s - clock_s
        traces.append(_node_trace(meter, samples, offset_s, devices_per_node))
    return Trace(traces, devices_per_node)


def _node_trace(
    meter: MeterFile, samples: Sequence[Sequence[float]], offset_s: float, devices_expected: int
) -> NodeTrace:
    table = np.array(samples, dtype=np.float64).reshape(-1, len(COLUMNS))
    devices = []
    for device in meter.devices:
        own = table[table[:, COLUMNS.index("device")] == device.index]
        columns = {name: own[:, place] for place, name in enumerate(COLUMNS) if name != "device"}
        columns["t_s"] = columns["t_s"] + offset_s
        devices.append(DeviceTrace(device, columns, _curve(meter, columns)))
    status, detail = meter.status, meter.detail
    if status in _KNOWN and len(devices) != devices_expected:
        status = Status.UNAVAILABLE
        detail = f"{meter.node}: its meter read {len(devices)} devices; expected {devices_expected}"
    return NodeTrace(meter.node, status, detail, devices)


def _curve(meter: MeterFile, columns: dict[str, Array]) -> Curve | None:
    if meter.status not in _KNOWN:
        return None
    t_s, counter_j, power_w = columns["t_s"], columns["counter_j"], columns["power_w"]
    if meter.method is Method.ESTIMATE:
        return estimate_curve(t_s, power_w)
    if np.any(~np.isnan(counter_j)):
        return counter_curve(t_s, counter_j)
    return integral_curve(t_s, power_w)


def _union(intervals: Sequence[Interval]) -> list[Interval]:
    """Sort intervals, join those that touch or overlap, drop empty ones."""
    merged: list[Interval] = []
    for start_s, stop_s in sorted(intervals):
        if stop_s < start_s:
            raise ValueError(f"interval from {start_s} to {stop_s} s stops before it starts")
        if stop_s == start_s:
            continue
        if merged and start_s <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop_s))
        else:
            merged.append((start_s, stop_s))
    return merged


def _weakest(methods: set[Method]) -> Method:
    """The method that bounds what a sum over devices is worth."""
    order = (Method.ESTIMATE, Method.POWER_INTEGRAL, Method.NVML_COUNTER)
    return next(method for method in order if method in methods)


def _status(method: Method, *, direct: bool) -> Status:
    if method is Method.ESTIMATE:
        return Status.ESTIMATED
    return Status.MEASURED if method is Method.NVML_COUNTER and direct else Status.DERIVED
