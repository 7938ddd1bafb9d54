"""Guards utilisation: means over the window's samples, and the names of what holds clocks back."""

from __future__ import annotations

import numpy as np
import pynvml
import pytest

from shardwatt.power.states import REASONS, throttled
from synthetic_traces import a_device, one_node


def test_reasons_are_nvmls_bits() -> None:
    names = {
        name.removeprefix("nvmlClocksThrottleReason"): value
        for name, value in vars(pynvml).items()
        if name.startswith("nvmlClocksThrottleReason")
    }
    bits = {value for name, value in names.items() if name not in ("All", "None", "GpuIdle")}
    assert set(REASONS) == bits
    for bit, name in REASONS.items():
        assert names[name.title().replace("_", "")] == bit


def test_shares_are_of_the_samples_that_are_known_and_idleness_is_no_reason() -> None:
    bits = np.array([0x4, 0x4 | 0x40, 0x0, 0x1])
    assert throttled(bits) == {"sw_power_cap": 0.5, "hw_thermal_slowdown": 0.25}
    assert throttled(np.array([])) == {}
    assert throttled(np.array([0x1, 0x1])) == {}


def test_means_and_reasons_are_of_the_window_over_all_devices() -> None:
    unknown = np.full(201, np.nan)
    hot, cold, reasons = unknown.copy(), unknown.copy(), unknown.copy()
    hot[10:120], cold[10:120], reasons[50:100] = 80.0, 40.0, 0x4
    hot[0:10] = 500.0
    first = a_device(temperature_c=hot, clock_sm_mhz=hot * 10, throttle_reasons=reasons)
    second = a_device(index=1, temperature_c=cold, clock_memory_mhz=cold, throttle_reasons=reasons * 0)
    found = one_node(first, second).utilisation(1.0, 15.0)
    assert (found.temperature_c.mean, found.temperature_c.max) == (60.0, 80.0)
    assert (found.clock_sm_mhz.mean, found.clock_sm_mhz.max) == (800.0, 800.0)
    assert found.clock_memory_mhz.mean == 40.0
    assert (found.sm_utilisation.mean, found.sm_utilisation.max) == (None, None)
    assert found.throttled == {"sw_power_cap": pytest.approx(0.5)}
