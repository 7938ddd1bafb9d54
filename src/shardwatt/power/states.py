"""How busy and in what state devices were: means over samples, and why their clocks were held back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardwatt.power.curve import Array
from shardwatt.power.nodetrace import DeviceTrace
from shardwatt.readings import Mean, Utilisation

#: NVML's bits of why clocks are not the highest (nvml.h, nvmlClocksEventReason* and their older names
#: nvmlClocksThrottleReason*). The first bit is left out: an idle GPU lowers its clocks, nothing holds them.
REASONS = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}


def utilisation(devices: Sequence[DeviceTrace], start_s: float, stop_s: float) -> Utilisation:
    """Mean and maximum over the samples of devices from start to stop; null where none knows."""

    def values(column: str) -> Array:
        inside = [device.columns[column][device.between(start_s, stop_s)] for device in devices]
        known: Array = np.concatenate([*inside, np.empty(0)])
        return known[~np.isnan(known)]

    def mean(column: str) -> Mean:
        known = values(column)
        if not len(known):
            return Mean(mean=None, max=None)
        return Mean(mean=float(known.mean()), max=float(known.max()))

    return Utilisation(
        sm_utilisation=mean("sm_utilisation"),
        memory_activity=mean("memory_activity"),
        memory_filled=mean("memory_filled"),
        cpu_utilisation=mean("cpu_utilisation"),
        clock_sm_mhz=mean("clock_sm_mhz"),
        clock_memory_mhz=mean("clock_memory_mhz"),
        temperature_c=mean("temperature_c"),
        throttled=throttled(values("throttle_reasons")),
    )


def throttled(bits: Array) -> dict[str, float]:
    """Share of samples in which each reason stood; one that never stood is left out.

    Args:
        bits: [samples] NVML's bits as numbers, none unknown.
    """
    if not len(bits):
        return {}
    whole = bits.astype(np.int64)
    shares = {name: float(np.mean((whole & bit) != 0)) for bit, name in REASONS.items()}
    return {name: share for name, share in shares.items() if share > 0}
