"""Rules that the energy of a whole cell must obey, beside those of its samples (power/rules.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shardwatt.power.curve import Interval
from shardwatt.power.nodetrace import DeviceTrace
from shardwatt.power.rules import name_of, violation
from shardwatt.power.trace import union
from shardwatt.readings import Device, Method, PowerCap, Reading, Violation
from shardwatt.run.baseline import CoolDown
from shardwatt.site import GpuType

#: Limits closer than this are the same, in W: they are set in whole watts, and drivers round.
_SAME_LIMIT_W = 1.0


def limits_of(
    devices: Sequence[DeviceTrace], power_cap: PowerCap | None, gpu_type: GpuType
) -> dict[Device, float]:
    """The power limit of each device in W: what the driver enforced, or the most that the site says.

    Processors have none here: they may draw more than their thermal design power for a while.
    """
    enforced_w = {one.device.uuid: one.enforced_w for one in power_cap.devices} if power_cap else {}
    most_w = gpu_type.power_limits_w[1] if gpu_type.power_limits_w else None
    if most_w is None and gpu_type.kind == "cuda":
        most_w = gpu_type.tdp_w
    found = {}
    for one in devices:
        told_w = one.limits.enforced_w if one.limits else None
        limit_w = enforced_w.get(one.device.uuid) or told_w or most_w
        if one.device.uuid is not None and limit_w is not None:
            found[one.device] = limit_w
    return found


def check_parts(
    devices: Sequence[DeviceTrace],
    window: Reading,
    whole: Interval,
    parts: Mapping[str, Sequence[Interval]],
) -> list[Violation]:
    """Whether the joules of the phases and of the rest are those of the window.

    The borders inside are each the end of one part and the beginning of another, so that what their places
    leave open cancels out: only that of the window's own two borders counts.

    Args:
        devices: of the job.
        window: their joules over the window.
        whole: the window.
        parts: when each phase was, and the rest.
    """
    if window.joules is None or window.uncertainty_j is None:
        return []
    curves = [device.curve for device in devices if device.curve]
    sums_j = {name: sum(curve.rise_j(union(spans)) for curve in curves) for name, spans in parts.items()}
    whole_j = sum(curve.rise_j([whole]) for curve in curves)
    found = []
    if abs(sum(sums_j.values()) - whole_j) > window.uncertainty_j:
        told = " + ".join(f"{name} {joules:.6g} J" for name, joules in sums_j.items())
        found.append(f"{told} = {sum(sums_j.values()):.6g} J, and the window {whole_j:.6g} J")
    return violation(
        "phases_do_not_add_up", found, f"them to be the same within {window.uncertainty_j:.3g} J"
    )


def check_cap(power_cap: PowerCap | None) -> list[Violation]:
    """Whether the limits of a capped cell held to its end."""
    changed = [
        f"{name_of(one.device)} was under {_watts(one.enforced_w)} before and {_watts(one.after_w)} after"
        for one in (power_cap.devices if power_cap else [])
        if one.enforced_w is None or one.after_w is None or abs(one.enforced_w - one.after_w) >= _SAME_LIMIT_W
    ]
    return violation("limit_changed", changed, "the limit that was set, from loading to the last rank's end")


def check_defaults(devices: Sequence[DeviceTrace]) -> list[Violation]:
    """Whether the devices of a cell without a cap had the limit that they have by themselves."""
    other = [
        f"{name_of(one.device)} was under {_watts(one.limits.enforced_w)}, its default is "
        f"{_watts(one.limits.default_w)}"
        for one in devices
        if one.limits is not None
        and one.limits.enforced_w is not None
        and one.limits.default_w is not None
        and abs(one.limits.enforced_w - one.limits.default_w) >= _SAME_LIMIT_W
    ]
    return violation("not_at_default_limit", other, "the default limit in a cell without a cap")


def check_nodes(has_whole_nodes: bool | None, readings: Mapping[str, Reading]) -> list[Violation]:
    """Whether joules of whole nodes are the job's.

    Args:
        has_whole_nodes: whether no other job can be on its nodes; None where nobody tells.
        readings: of the cell over its window, by name.
    """
    shared = [
        f"{name} has {reading.joules:.6g} J"
        for name, reading in readings.items()
        if has_whole_nodes is False and reading.method is Method.RAPL
    ]
    return violation(
        "shared_node", shared, "nodes that no other job can be on: RAPL counts everything that runs there"
    )


def check_cool_down(cool_down: CoolDown | None, gate_c: float | None) -> list[Violation]:
    """Whether the devices had cooled down before the cell."""
    if cool_down is None or cool_down.reached:
        return []
    hottest = "no meter told a temperature"
    if cool_down.hottest_c is not None:
        hottest = f"the hottest device was at {cool_down.hottest_c:g} degrees Celsius"
    found = f"{hottest} after {cool_down.waited_s:.4g} s"
    gate = "the study's cool_down_c" if gate_c is None else f"at most {gate_c:g} (the study's cool_down_c)"
    return violation("not_cooled", [found], gate)


def _watts(limit_w: float | None) -> str:
    return "unknown" if limit_w is None else f"{limit_w:g} W"
