"""The energy of a cell: every reading of it, from what the meters gave."""

from __future__ import annotations

from shardwatt.power.curve import Interval
from shardwatt.power.nodetrace import DeviceTrace, NodeTrace
from shardwatt.power.rules import check_joules, check_samples
from shardwatt.power.trace import status_of, union
from shardwatt.readings import KNOWN, DeviceEnergy, Energy, Scope, Status
from shardwatt.run import spans
from shardwatt.run.dcgmreading import check_dcgm, dcgm_job, method_ratio, window_dcgm
from shardwatt.run.exchange import RunReport
from shardwatt.run.idle import idle_beside, no_baseline, read_baseline
from shardwatt.run.measured import Baseline, Measured
from shardwatt.run.rules import (
    check_cap,
    check_cool_down,
    check_defaults,
    check_nodes,
    check_parts,
    limits_of,
)
from shardwatt.site import GpuType
from shardwatt.study import Constants

#: A batch, or a stretch of a phase, shorter than so many ticks of its meter is not resolved: its joules would
#: be interpolation, not reading (docs/results.md).
MINIMUM_TICKS = 10


def energy_of(
    cell: str,
    constants: Constants,
    gpu_type: GpuType,
    report: RunReport,
    measured: Measured,
    *,
    was_loaded: bool,
) -> tuple[Energy, Baseline | None]:
    """The energy of a cell, and the unloaded baseline for the next cells of its job; None if there is none.

    Args:
        cell: its path.
        constants: of its study.
        gpu_type: what it ran on.
        report: what rank 0 measured.
        measured: what the meters gave.
        was_loaded: whether the ranks had run another cell before.
    """
    trace = measured.trace
    whole = spans.window_of(report)
    parts: dict[str, list[Interval]] = {
        **{phase: spans.phase_of(report, phase) for phase in spans.PHASES},
        "between": spans.between(report),
    }
    readings = {
        name: trace.reading(own, Scope.ALL_NODES, minimum_ticks=MINIMUM_TICKS) for name, own in parts.items()
    }
    job = spans.job_of(report, measured.job_span, constants.idle_settle_s)
    window = trace.reading([whole], Scope.ALL_NODES)
    scaled = trace.reading([whole], Scope.RANK0_NODE_SCALED)
    unloaded = no_baseline(window, constants, cell, was_loaded=was_loaded)
    if isinstance(measured.unloaded, Baseline):
        unloaded = measured.unloaded
    elif measured.unloaded is not None:
        unloaded = read_baseline(trace, measured.unloaded, cell, constants.idle_settle_s)
    loaded = no_baseline(window, constants, cell, was_loaded=False)
    if report.idle_loaded is not None:
        loaded = read_baseline(trace, report.idle_loaded, cell, constants.idle_settle_s)
    dcgm = dcgm_job(measured.dcgm, trace, whole)
    cpu, dram = measured.host.reading("package", whole), measured.host.reading("dram", whole)
    limits_w = limits_of(trace.devices, measured.power_cap, gpu_type)
    energy = Energy(
        window=window,
        window_rank0_scaled=scaled,
        window_dcgm=window_dcgm(measured.dcgm, trace, whole),
        **readings,
        job=trace.reading(job, Scope.ALL_NODES),
        devices=[
            _device(node, device, whole, parts, job, unloaded, loaded)
            for node in trace.nodes
            for device in node.devices
        ],
        idle_unloaded=idle_beside(unloaded, window, whole[1] - whole[0], cell),
        idle_loaded=idle_beside(loaded, window, whole[1] - whole[0], cell),
        scope_ratio=scaled.joules / window.joules if scaled.joules and window.joules else None,
        method_ratio=method_ratio(dcgm),
        dcgm=dcgm,
        cpu=cpu,
        dram=dram,
        slurm_node=measured.slurm_node,
        violations=[
            *check_joules(trace.devices, whole, job, limits_w),
            *check_samples(trace, whole),
            *check_parts(trace.devices, window, whole, parts),
            *check_dcgm(dcgm),
            *check_cap(measured.power_cap),
            *(check_defaults(trace.devices) if measured.power_cap is None else ()),
            *check_nodes(measured.has_whole_nodes, {"window": window, "cpu": cpu, "dram": dram}),
            *check_cool_down(measured.cool_down, constants.cool_down_c),
        ],
    )
    return energy, unloaded if unloaded.idle.power_w is not None else None


def _device(
    node: NodeTrace,
    device: DeviceTrace,
    whole: Interval,
    parts: dict[str, list[Interval]],
    job: list[Interval],
    unloaded: Baseline,
    loaded: Baseline,
) -> DeviceEnergy:
    """The energy of one device, whatever the others' is."""
    window = device.part([whole])
    is_known = device.curve is not None and window.joules is not None
    integral = device.integral_j([whole])
    status = node.status if node.status not in KNOWN else Status.UNAVAILABLE
    method = device.curve.method if device.curve and is_known else None
    if method is not None:
        status = status_of(method, direct=True)
    # What an estimate or an integral is made of; of what is unknown, why.
    detail = node.detail if status is not Status.MEASURED else None
    return DeviceEnergy(
        device=device.device,
        method=method,
        status=status,
        detail=detail or window.detail,
        window=window,
        **{name: device.part(union(own), MINIMUM_TICKS) for name, own in parts.items()},
        job=device.part(job),
        integral_j=integral[0] if integral else None,
        power_source=device.power_source,
        limits=device.limits,
        idle_unloaded_w=unloaded.device_w.get(device.device),
        idle_loaded_w=loaded.device_w.get(device.device),
    )
