"""GPUs of this node for `shardwatt meters`: which there are, what NVML tells of each, and their limits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pynvml

from shardwatt.checks.idle import IdleReading
from shardwatt.checks.metertable import GpuRow, MeterName, MeterRow, counter_row
from shardwatt.devices import VISIBLE, has_gpus, names
from shardwatt.power.limits.setting import LimitError, read_limits
from shardwatt.power.meters.gpus import Gpu, GpuError, find_gpus, nvml, status_of
from shardwatt.power.protocol import Sample
from shardwatt.readings import PowerSource, Status
from shardwatt.site import GpuType
from shardwatt.units import MILLI

#: Share by which counter and integral may differ before it is worth a warning.
DISAGREEMENT = 0.05
#: Share of time above which a device is not idle.
BUSY = 0.05

#: What the power of NVML is.
_SOURCES = {
    PowerSource.INSTANT: "field 186: the sensor's latest value",
    PowerSource.USAGE: "power usage: from Ampere on, but for A100, a mean over 1 s",
}


def gpus_here(stack: ExitStack, kind: GpuType | None) -> tuple[list[Gpu], list[GpuError], list[str]]:
    """GPUs that can be opened, why others cannot, and how all were named; the stack closes the driver."""
    try:
        stack.enter_context(nvml())
        if (visible := os.environ.get(VISIBLE)) is not None:
            selectors = names(visible)
        else:
            count = kind.per_node if kind is not None and has_gpus(kind) else _count()
            selectors = [str(index) for index in range(count)]
        return (*find_gpus(selectors), selectors)
    except GpuError as error:
        return [], [error], []


def _count() -> int:
    try:
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        raise GpuError(status_of(error), f"NVML does not tell how many GPUs there are: {error}") from None


def look(gpu: Gpu) -> Sample:
    """The energy counter alone."""
    try:
        counter_j = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) * MILLI
    except pynvml.NVMLError:
        counter_j = None
    return Sample(t_s=time.monotonic(), device=gpu.device.index, counter_j=counter_j)


def _error(call: Callable[[Any], object], gpu: Gpu) -> pynvml.NVMLError | None:
    try:
        call(gpu.handle)
    except pynvml.NVMLError as error:
        return error
    return None


def energy_row(gpu: Gpu, reading: IdleReading) -> MeterRow:
    """What the energy counter of a GPU is worth."""
    error = _error(pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu)
    if error is not None:
        return MeterRow(
            meter=MeterName.COUNTER, device=gpu.device, status=status_of(error), detail=str(error)
        )
    steps = reading.steps[MeterName.NVML, gpu.device.index]
    return counter_row(MeterName.COUNTER, gpu.device, steps)


def power_row(gpu: Gpu, source: PowerSource | None, reading: IdleReading) -> MeterRow:
    """What the power sensor of a GPU is worth.

    Args:
        gpu: which.
        source: where its meter takes power from; None: from nowhere.
        reading: what was read.
    """
    error = _error(pynvml.nvmlDeviceGetPowerUsage, gpu) if source is None else None
    if error is not None:
        return MeterRow(meter=MeterName.POWER, device=gpu.device, status=status_of(error), detail=str(error))
    samples = reading.samples[MeterName.NVML, gpu.device.index]
    spread = samples.spread
    if spread.mean_w is None:
        return MeterRow(
            meter=MeterName.POWER,
            device=gpu.device,
            status=Status.UNAVAILABLE,
            detail="no sample had a power above 0 W",
        )
    return MeterRow(
        meter=MeterName.POWER,
        device=gpu.device,
        status=Status.DERIVED,
        detail=_SOURCES.get(source) if source else None,
        power_w=spread.mean_w,
        power_sd_w=spread.sd_w,
    )


def gpu_row(gpu: Gpu, reading: IdleReading) -> GpuRow:
    """How the meters of a GPU agree, and its limits."""
    key = (MeterName.NVML, gpu.device.index)
    row = GpuRow(
        device=gpu.device,
        busy=reading.samples[key].mean("sm_utilisation"),
        counter_over_integral=reading.steps[key].over_integral(reading.samples[key]),
    )
    try:
        limits = read_limits(gpu)
    except LimitError as problem:
        return row.model_copy(update={"limit_detail": str(problem)})
    return row.model_copy(
        update={
            "limit_set_w": limits.set_w,
            "limit_enforced_w": limits.enforced_w,
            "limit_least_w": limits.least_w,
            "limit_most_w": limits.most_w,
            "limit_default_w": limits.default_w,
        }
    )


def warnings_of(rows: Sequence[GpuRow]) -> Iterator[str]:
    """What spoils the reading of a GPU, or its trust."""
    for row in rows:
        name = f"GPU {row.device.index}"
        if row.busy is not None and row.busy > BUSY:
            yield f"{name} was busy for {100 * row.busy:.0f} % of the time: this is no idle reading"
        ratio = row.counter_over_integral
        if ratio is not None and abs(ratio - 1) > DISAGREEMENT:
            side = "above" if ratio > 1 else "below"
            yield (
                f"{name}: its energy counter is {100 * abs(ratio - 1):.1f} % {side} the integral of its "
                f"sampled power; expected within {100 * DISAGREEMENT:g} %. Cells take the counter; a sensor "
                "that sleeps part of the time is one cause, a load that changes is another"
            )
