"""Idle baselines: what the devices of a job drew while they had nothing to do, and joules net of it."""

from __future__ import annotations

from shardwatt.power.curve import Interval
from shardwatt.power.trace import Trace
from shardwatt.readings import Idle, Method, Reading, Scope, Status
from shardwatt.run.measured import Baseline
from shardwatt.study import Constants

_ESTIMATE = "no idle power is read where energy is an estimate"


def read_baseline(trace: Trace, span: Interval, cell: str, settle_s: float) -> Baseline:
    """The baseline over a time in which the devices were left alone.

    Args:
        trace: all samples of the job.
        span: start and stop in s of node 0's `time.monotonic()`.
        cell: path of the cell before whose window that was.
        settle_s: time in s that they had been left alone before.
    """
    reading = trace.reading([span], Scope.ALL_NODES)
    length_s = span[1] - span[0]
    if reading.joules is None or reading.method is Method.ESTIMATE:
        estimated = reading.method is Method.ESTIMATE
        idle = Idle(
            power_w=None,
            status=Status.UNAVAILABLE if estimated else reading.status,
            detail=_ESTIMATE if estimated else reading.detail,
        )
        return Baseline(cell, idle, {})
    idle = Idle(
        power_w=reading.joules / length_s,
        uncertainty_w=None if reading.uncertainty_j is None else reading.uncertainty_j / length_s,
        status=reading.status,
        settle_s=settle_s,
        read_s=length_s,
    )
    parts = {device.device: device.part([span]).joules for device in trace.devices}
    powers_w = {device: None if joules is None else joules / length_s for device, joules in parts.items()}
    return Baseline(cell, idle, powers_w)


def no_baseline(window: Reading, constants: Constants, cell: str, *, was_loaded: bool) -> Baseline:
    """What stands in place of a baseline that was not read.

    Args:
        window: what the meters say of the window.
        constants: of the study.
        cell: path of the cell.
        was_loaded: whether the devices held an earlier cell's model before they could be read.
    """
    status, detail = Status.UNAVAILABLE, "it was not read"
    if window.status is Status.ESTIMATED:
        detail = _ESTIMATE
    elif not constants.idle_read_s:
        detail = "the study reads none: its idle_read_s is 0"
    elif window.status in (Status.UNSUPPORTED, Status.PERMISSION_DENIED):
        status, detail = window.status, window.detail or detail
    elif was_loaded:
        detail = "an earlier cell of the job had loaded its model, and none was read before that one"
    return Baseline(cell, Idle(power_w=None, status=status, detail=detail), {})


def idle_beside(baseline: Baseline, window: Reading, duration_s: float, cell: str) -> Idle:
    """A baseline beside a cell's window: with the joules that are net of it.

    Args:
        baseline: read before this cell, or before an earlier one of its job.
        window: all devices of the job over the window.
        duration_s: of the window, in s.
        cell: path of this cell.
    """
    idle = baseline.idle
    if idle.power_w is None or window.joules is None:
        return idle
    net_uncertainty_j = None
    if window.uncertainty_j is not None and idle.uncertainty_w is not None:
        net_uncertainty_j = window.uncertainty_j + idle.uncertainty_w * duration_s
    carried = f"read before another cell of the job, {baseline.cell}"
    return Idle(
        power_w=idle.power_w,
        uncertainty_w=idle.uncertainty_w,
        status=idle.status,
        settle_s=idle.settle_s,
        read_s=idle.read_s,
        net_j=window.joules - idle.power_w * duration_s,
        net_uncertainty_j=net_uncertainty_j,
        detail=carried if baseline.cell != cell else None,
    )
