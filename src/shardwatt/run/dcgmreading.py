"""The paper's accounting: DCGM's job statistics of rank 0's node, times the number of nodes."""

from __future__ import annotations

from shardwatt.power.curve import Interval
from shardwatt.power.rules import violation
from shardwatt.power.trace import Trace
from shardwatt.readings import (
    Coverage,
    DcgmDevice,
    DcgmJob,
    Device,
    Method,
    Reading,
    Scope,
    Status,
    Violation,
)
from shardwatt.run.measured import DcgmMissing, DcgmRun

#: DCGM over NVML, of the same counters: what is outside is a loss, not a tick.
_RATIO = (0.95, 1.05)

#: DCGM cuts joules off to whole ones.
_CUT_J = 1.0


def dcgm_job(found: DcgmRun | DcgmMissing, trace: Trace, window: Interval) -> DcgmJob | None:
    """DCGM's word beside NVML's of the same GPUs at the same time; None where it said nothing."""
    if isinstance(found, DcgmMissing):
        return None
    span = (found.start_s, found.stop_s)
    return DcgmJob(
        node=found.node,
        interval_ms=found.interval_ms,
        start_s=found.start_s - window[0],
        stop_s=found.stop_s - window[0],
        devices=[
            device.model_copy(update={"nvml_j": _nvml_j(trace, device.uuid, span)})
            for device in found.devices
        ],
    )


def window_dcgm(found: DcgmRun | DcgmMissing, trace: Trace, window: Interval) -> Reading:
    """The joules of rank 0's node, times the number of nodes.

    DCGM's time is longer than the window, by an interval on each side: its counter samples around the
    borders must be in it.
    """
    nodes = len(trace.nodes)
    coverage = _coverage(found, trace)

    def without(status: Status, detail: str) -> Reading:
        return Reading(
            joules=None,
            method=None,
            status=status,
            scope=Scope.RANK0_NODE_SCALED,
            coverage=coverage,
            detail=detail,
        )

    if isinstance(found, DcgmMissing):
        return without(found.status, found.detail)
    expected = {device.device.uuid for device in trace.nodes[0].devices}
    told = {device.uuid for device in found.devices}
    if told != expected or len(told) != trace.devices_per_node:
        return without(
            Status.UNAVAILABLE,
            f"DCGM told of {_listed(told)}; expected the cell's {trace.devices_per_node} GPUs on "
            f"{found.node}, of which NVML read {_listed(expected)}",
        )
    joules = uncertainty_j = 0.0
    for device in found.devices:
        # No GPU draws nothing.
        if not device.energy_j:
            return without(Status.UNAVAILABLE, f"{device.uuid}: {device.detail or 'no energy'}")
        joules += device.energy_j
        power_w = device.energy_j / (found.stop_s - found.start_s)
        uncertainty_j += power_w * 2 * found.interval_ms / 1000 + _CUT_J
    return Reading(
        joules=joules * nodes,
        method=Method.DCGM_JOB,
        status=Status.MEASURED if nodes == 1 else Status.DERIVED,
        scope=Scope.RANK0_NODE_SCALED,
        coverage=coverage,
        uncertainty_j=uncertainty_j * nodes,
        detail=(
            f"from {window[0] - found.start_s:.3g} s before the window to {found.stop_s - window[1]:.3g} s "
            f"after it, one interval of {found.interval_ms / 1000:g} s on each side and what dcgmi took"
        ),
    )


def method_ratio(job: DcgmJob | None) -> float | None:
    """DCGM's joules over NVML's, of the same GPUs and over the same time; None where one lacks either."""
    if job is None or not job.devices:
        return None
    pairs = [(device.energy_j, device.nvml_j) for device in job.devices]
    known = [(energy_j, nvml_j) for energy_j, nvml_j in pairs if energy_j and nvml_j]
    if len(known) < len(pairs):
        return None
    return sum(energy_j for energy_j, _ in known) / sum(nvml_j for _, nvml_j in known)


def check_dcgm(job: DcgmJob | None) -> list[Violation]:
    """Rules about DCGM's joules."""
    lost = [
        f"{device.uuid}: {device.detail or '0 J'}, at {device.power_mean_w:g} W on average"
        for device in (job.devices if job else [])
        if not device.energy_j and device.power_mean_w
    ]
    ratio = method_ratio(job)
    differs = []
    if ratio is not None and job is not None and not _RATIO[0] <= ratio <= _RATIO[1]:
        differs.append(
            f"DCGM, with a sample every {job.interval_ms / 1000:g} s, counted {ratio:.3f} of what NVML's "
            f"counters did between its start and its stop ({job.stop_s - job.start_s:.3g} s)"
        )
    return [
        *violation(
            "dcgm_zero_energy", lost, "energy wherever there is power: watch more often (interval_ms)"
        ),
        *violation("method_differs", differs, f"{_RATIO[0]:g} to {_RATIO[1]:g}"),
    ]


def _nvml_j(trace: Trace, uuid: str, span: Interval) -> float | None:
    """What NVML's counter of a GPU of rank 0's node rose by, in J."""
    for device in trace.nodes[0].devices:
        if device.device.uuid == uuid and device.curve and device.curve.method is Method.NVML_COUNTER:
            return device.part([span]).joules
    return None


def _coverage(found: DcgmRun | DcgmMissing, trace: Trace) -> Coverage:
    devices = [] if isinstance(found, DcgmMissing) else [_device(one, found, trace) for one in found.devices]
    return Coverage(
        nodes=[] if isinstance(found, DcgmMissing) else [found.node],
        nodes_expected=len(trace.nodes),
        devices=devices,
        devices_expected=len(trace.nodes) * trace.devices_per_node,
        # DCGM keeps them to itself.
        samples=0,
        asked_period_s=None if isinstance(found, DcgmMissing) else found.interval_ms / 1000,
    )


def _device(one: DcgmDevice, found: DcgmRun, trace: Trace) -> Device:
    known = {device.device.uuid: device.device for device in trace.nodes[0].devices}
    index = list(found.devices).index(one)
    return known.get(one.uuid) or Device(node=found.node, index=index, name="GPU", uuid=one.uuid)


def _listed(uuids: set[str | None] | set[str]) -> str:
    return ", ".join(sorted(map(str, uuids))) or "none"
