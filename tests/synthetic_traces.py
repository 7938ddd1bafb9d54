"""Traces made of arrays, with joules that can be worked out by hand; for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shardwatt.power.curve import Array, counter_curve, estimate_curve, integral_curve
from shardwatt.power.nodetrace import DeviceTrace, NodeTrace
from shardwatt.power.protocol import Sample
from shardwatt.power.sampling.files import COLUMNS, MeterFile, meter_path, sample_line, samples_path
from shardwatt.power.trace import Trace
from shardwatt.readings import Device, Method, PowerSource, Status
from shardwatt.recordfiles import write

PERIOD_S = 0.1

#: Power in W at times in s.
Power = Callable[[Array], Array]


def constant(power_w: float) -> Power:
    return lambda t_s: np.full(len(t_s), power_w)


_ALWAYS_100_W = constant(100)


def times(start_s: float, stop_s: float, period_s: float = PERIOD_S) -> Array:
    """A time each period, both ends included."""
    return start_s + np.arange(round((stop_s - start_s) / period_s) + 1, dtype=np.float64) * period_s


def counted(t_s: Array, power_w: Array) -> Array:
    """An energy counter that holds each power until the next time."""
    return 5e5 + np.concatenate([[0.0], np.cumsum(power_w[:-1] * np.diff(t_s))])


def a_device(
    node: str = "host0",
    index: int = 0,
    *,
    t_s: Array | None = None,
    power: Power = _ALWAYS_100_W,
    sensor: float = 1.0,
    method: Method = Method.NVML_COUNTER,
    **columns: Array,
) -> DeviceTrace:
    """A device that was sampled from 0 to 20 s.

    Args:
        node, index: where it is.
        t_s: [samples] times in s instead of those.
        power: what it draws.
        sensor: what its power sensor shows of that.
        method: how its joules are obtained.
        columns: other columns of a sample, or instead of these.
    """
    t_s = times(0, 20) if t_s is None else t_s
    known: dict[str, Array] = {name: np.full(len(t_s), np.nan) for name in COLUMNS if name != "device"}
    known |= {"t_s": t_s, "power_w": power(t_s) * sensor}
    if method in (Method.NVML_COUNTER, Method.RAPL):
        known["counter_j"] = counted(t_s, power(t_s))
    known |= columns
    curve = integral = None
    if method in (Method.NVML_COUNTER, Method.RAPL):
        curve = counter_curve(known["t_s"], known["counter_j"], method)
        integral = integral_curve(known["t_s"], known["power_w"])
    elif method is Method.ESTIMATE:
        curve = estimate_curve(known["t_s"], known["power_w"])
    else:
        curve = integral_curve(known["t_s"], known["power_w"])
    uuid = None if method in (Method.ESTIMATE, Method.RAPL) else f"GPU-{node}-{index}"
    return DeviceTrace(Device(node=node, index=index, name="GPU", uuid=uuid), known, curve, integral)


def a_node(
    devices: Sequence[DeviceTrace],
    *,
    status: Status = Status.MEASURED,
    detail: str | None = None,
    late_s: float | None = None,
    failures: Sequence[str] = (),
    wall_ahead_s: float | None = None,
    **more: Any,
) -> NodeTrace:
    return NodeTrace(
        devices[0].device.node,
        status,
        detail,
        list(devices),
        asked_period_s=PERIOD_S,
        late_s=late_s,
        failures=failures,
        wall_ahead_s=wall_ahead_s,
        **more,
    )


def a_trace(*nodes: NodeTrace, devices_per_node: int | None = None) -> Trace:
    return Trace(nodes, devices_per_node or len(nodes[0].devices))


def one_node(*devices: DeviceTrace) -> Trace:
    return a_trace(a_node(devices or [a_device()]))


def write_node(
    folder: Path,
    index: int,
    powers_w: Sequence[float],
    *,
    seconds: float = 20.0,
    clock_ahead_s: float = 0.0,
    method: Method | None = Method.NVML_COUNTER,
    status: Status = Status.MEASURED,
    detail: str | None = None,
    wall_ahead_s: float = 0.0,
    power_sources: Sequence[PowerSource | None] = (),
) -> None:
    """Write a sampler's files of a node: constant power on each device, on a monotonic clock that is ahead
    of node 0's, and so is its wall clock."""
    devices = [
        Device(node=f"host{index}", index=place, name="GPU", uuid=f"GPU-{index}-{place}")
        for place in range(len(powers_w))
    ]
    meter = MeterFile(
        node=f"host{index}",
        method=method,
        status=status,
        detail=detail,
        devices=devices,
        period_s=0.1,
        power_sources=list(power_sources),
        wall_minus_monotonic_s=1e9 + wall_ahead_s - clock_ahead_s,
    )
    lines = [",".join(COLUMNS) + "\n"]
    for tick in range(round(seconds * 10) + 1):
        for place, power_w in enumerate(powers_w):
            sample = Sample(
                t_s=tick * 0.1 + clock_ahead_s,
                device=place,
                power_w=None if method is Method.ESTIMATE and tick == 0 else power_w,
                counter_j=5e5 + power_w * tick * 0.1 if method is Method.NVML_COUNTER else None,
                sm_utilisation=0.5 if place == 0 else 1.0,
            )
            lines.append(sample_line(sample))
    samples_path(folder, index).write_text("".join(lines))
    write(meter, meter_path(folder, index))
