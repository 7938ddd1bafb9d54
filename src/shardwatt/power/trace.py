"""The trace of a job: every node's samples on one clock, and readings over any part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shardwatt.errors import RecordError
from shardwatt.power.clock import NodeClock
from shardwatt.power.coverage import coverage
from shardwatt.power.curve import COUNTERS, Array, Interval, NoJoulesError
from shardwatt.power.nodetrace import DeviceTrace, NodeFiles, NodeTrace
from shardwatt.power.sampling.files import meter_path, sampler_path, samples_path
from shardwatt.power.states import utilisation
from shardwatt.readings import KNOWN, Coverage, Method, Reading, Scope, Status, Utilisation


class Trace:
    """All samples of a job; times in s of node 0's `time.monotonic()`.

    Attributes:
        nodes: what each node's meter gave, that of rank 0 first.
        devices_per_node: devices that the meter of one node should read.
    """

    def __init__(self, nodes: Sequence[NodeTrace], devices_per_node: int) -> None:
        self.nodes = list(nodes)
        self.devices_per_node = devices_per_node

    @property
    def devices(self) -> list[DeviceTrace]:
        """What was read, by node."""
        return [device for node in self.nodes for device in node.devices]

    def reading(self, intervals: Sequence[Interval], scope: Scope, *, minimum_ticks: int = 0) -> Reading:
        """Joules over a union of intervals.

        One interval of a counter is `measured`; several, or a phase, are `derived`, since their borders
        are interpolated. What the samples do not tell is null with a reason, never extrapolated.

        Args:
            intervals: (start, stop) in s of node 0's `time.monotonic()`; may touch or overlap.
            scope: all nodes summed, or node 0 times the number of nodes.
            minimum_ticks: shortest stretch that is resolved, in ticks of the meter; above 0 for phases.

        Raises:
            ValueError: an interval stops before it starts; a defect of the caller.
        """
        merged = union(intervals)
        nodes = self.nodes[:1] if scope is Scope.RANK0_NODE_SCALED else self.nodes
        covered = self.coverage(nodes, merged)
        try:
            energy_j, uncertainty_j, methods = _sum(nodes, merged, minimum_ticks)
        except _UnknownError as problem:
            return Reading(
                joules=None,
                method=None,
                status=problem.status,
                scope=scope,
                coverage=covered,
                detail=problem.detail,
            )
        scale = len(self.nodes) if scope is Scope.RANK0_NODE_SCALED else 1
        method = _weakest(methods)
        return Reading(
            joules=energy_j * scale,
            method=method,
            status=status_of(method, direct=len(merged) == 1 and not minimum_ticks and scale == 1),
            scope=scope,
            coverage=covered,
            uncertainty_j=uncertainty_j * scale,
            detail="; ".join(dict.fromkeys(node.detail for node in nodes if node.detail)) or None,
        )

    def joules(self, intervals: Sequence[Interval], *, minimum_ticks: int = 0) -> float | None:
        """Joules of all nodes over a union of intervals, without what they cover; None where unknown."""
        try:
            return _sum(self.nodes, union(intervals), minimum_ticks)[0]
        except _UnknownError:
            return None

    def coverage(self, nodes: Sequence[NodeTrace], intervals: Sequence[Interval]) -> Coverage:
        """What the samples of some of its nodes cover of a union of intervals."""
        return coverage(
            nodes,
            intervals,
            nodes_expected=len(self.nodes),
            devices_expected=len(self.nodes) * self.devices_per_node,
        )

    def utilisation(self, start_s: float, stop_s: float) -> Utilisation:
        """Mean and maximum over the samples of all devices from start to stop; null where none knows."""
        return utilisation(self.devices, start_s, stop_s)

    def columns(self, origin_s: float) -> Iterator[dict[str, Array | str | int | None]]:
        """Columns of power.parquet, device by device; `t_s` counts from the origin, NaN is unknown."""
        for node in self.nodes:
            for device in node.devices:
                yield {
                    **device.columns,
                    "t_s": device.columns["t_s"] - origin_s,
                    "node": node.name,
                    "device": device.device.index,
                    "uuid": device.device.uuid,
                }


def load_trace(
    folder: Path, nodes: int, devices_per_node: int, clocks: Sequence[NodeClock] | None = None
) -> Trace:
    """Read what the samplers of a job wrote.

    A node whose files are missing, torn, or of other devices than expected stays in the trace: energy
    over all nodes is then unavailable, never extrapolated.

    Args:
        folder: where the samplers wrote.
        nodes: nodes of the job.
        devices_per_node: what the meter of one node should read: the job's GPUs there, or 1 for
            processors (`metered_devices`).
        clocks: of the nodes, in their order; None brings them together by their wall clocks.
    """

    def read_node(index: int) -> NodeFiles:
        return NodeFiles.read(
            meter_path(folder, index), samples_path(folder, index), sampler_path(folder, index)
        )

    traces = [
        _as_expected(trace, devices_per_node) for trace in traces_on_one_clock(nodes, read_node, clocks)
    ]
    return Trace(traces, devices_per_node)


def traces_on_one_clock(
    nodes: int, read_node: Callable[[int], NodeFiles], clocks: Sequence[NodeClock] | None
) -> list[NodeTrace]:
    """Read the nodes of a job and bring them to rank 0's clock.

    Args:
        nodes: how many there are.
        read_node: reads the files of one; raises FileNotFoundError or RecordError.
        clocks: of the nodes, in their order; None brings them together by their wall clocks.
    """
    traces: list[NodeTrace] = []
    wall_s: float | None = None
    for index in range(nodes):
        try:
            files = read_node(index)
        except FileNotFoundError as problem:
            missing = Path(problem.filename).name
            detail = f"node {index} has no {missing}: its sampler never became ready"
            traces.append(NodeTrace(f"node {index}", Status.UNAVAILABLE, detail, []))
            continue
        except RecordError as problem:
            traces.append(NodeTrace(f"node {index}", Status.UNAVAILABLE, str(problem), []))
            continue
        meter = files.meter
        if index == 0:
            wall_s = meter.wall_minus_monotonic_s
        if clocks is not None and clocks[index].node == meter.node:
            traces.append(files.trace(clocks[index]))
        elif clocks is not None:
            # Joules of one node would be taken for those of another.
            detail = f"{meter.node}: as node {index} it has a meter, and {clocks[index].node} has its ranks"
            traces.append(NodeTrace(meter.node, Status.UNAVAILABLE, detail, []))
        elif wall_s is not None:
            traces.append(files.trace(NodeClock(meter.node, meter.wall_minus_monotonic_s - wall_s, None)))
        else:
            detail = f"{meter.node}: without node 0's meter its clock cannot be brought to node 0's"
            traces.append(NodeTrace(meter.node, Status.UNAVAILABLE, detail, []))
    return traces


def union(intervals: Sequence[Interval]) -> list[Interval]:
    """Sort intervals, join those that touch or overlap, drop empty ones.

    Raises:
        ValueError: one stops before it starts.
    """
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


def status_of(method: Method, *, direct: bool) -> Status:
    """What joules are worth that were obtained so.

    Args:
        method: how.
        direct: whether over one interval, and not scaled.
    """
    if method is Method.ESTIMATE:
        return Status.ESTIMATED
    return Status.MEASURED if method in COUNTERS and direct else Status.DERIVED


class _UnknownError(Exception):
    """A sum over devices that is not known."""

    def __init__(self, status: Status, detail: str | None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def _sum(
    nodes: Sequence[NodeTrace], intervals: Sequence[Interval], minimum_ticks: int
) -> tuple[float, float, set[Method]]:
    """Joules of the nodes' devices, the uncertainty of that, and how they were obtained.

    Raises:
        _UnknownError: one of them is not known.
    """
    for node in nodes:
        if node.status not in KNOWN:
            raise _UnknownError(node.status, node.detail)
    energy_j = uncertainty_j = 0.0
    methods = set()
    for node in nodes:
        for device in node.devices:
            try:
                method, part_j, part_uncertainty_j = device.joules(intervals, minimum_ticks)
            except NoJoulesError as problem:
                where = f"device {device.device.index} of {node.name}"
                raise _UnknownError(Status.UNAVAILABLE, f"{where}: {problem}") from None
            energy_j += part_j
            uncertainty_j += part_uncertainty_j
            methods.add(method)
    if not methods:
        raise _UnknownError(Status.UNAVAILABLE, "no device was read")
    return energy_j, uncertainty_j, methods


def _as_expected(node: NodeTrace, devices: int) -> NodeTrace:
    """A node's trace; without joules for sums where its meter read more or fewer devices."""
    if node.status not in KNOWN or len(node.devices) == devices:
        return node
    detail = f"{node.name}: its meter read {len(node.devices)} devices; expected {devices}"
    return replace(node, status=Status.UNAVAILABLE, detail=detail)


def _weakest(methods: set[Method]) -> Method:
    """The method that bounds what a sum over devices is worth."""
    order = (Method.ESTIMATE, Method.POWER_INTEGRAL, Method.RAPL, Method.NVML_COUNTER)
    return next(method for method in order if method in methods)
