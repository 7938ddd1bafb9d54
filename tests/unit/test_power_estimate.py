"""The estimate for processors, and the choice of a meter."""

from __future__ import annotations

import time

from shardwatt.power.choose import metered_devices, open_meter
from shardwatt.power.estimate import CpuEstimate
from shardwatt.records import Method, Status
from shardwatt.site import GpuType


def busy_for(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


def test_power_is_tdp_times_busy_share_and_unknown_at_first() -> None:
    meter = CpuEstimate(120.0, "data sheet")
    (first,) = meter.sample()
    assert (first.power_w, first.cpu_utilisation, first.counter_j) == (None, None, None)
    busy_for(0.3)
    (second,) = meter.sample()
    assert second.power_w is not None
    assert second.cpu_utilisation is not None
    assert 0 < second.cpu_utilisation <= 1
    assert second.power_w == 120.0 * second.cpu_utilisation
    assert second.memory_filled is not None
    assert 0 < second.memory_filled < 1
    assert second.sm_utilisation is None
    assert second.t_s > first.t_s


def test_two_samples_at_once_do_not_lose_the_time_between_others() -> None:
    meter = CpuEstimate(100.0, None)
    meter.sample()
    for _ in range(20):
        meter.sample()
    busy_for(0.3)
    (last,) = meter.sample()
    assert last.power_w is not None
    assert last.power_w > 0


def test_estimate_names_itself_and_its_constants() -> None:
    meter = CpuEstimate(120.0, "vendor's data sheet")
    assert (meter.method, meter.status) == (Method.ESTIMATE, Status.ESTIMATED)
    assert meter.detail
    for words in ("estimate, not a measurement", "120", "vendor's data sheet", "other processes included"):
        assert words in meter.detail
    (device,) = meter.devices
    assert device.name
    assert device.uuid is None


def test_without_tdp_there_is_no_estimate_but_utilisation() -> None:
    meter = CpuEstimate(None, None)
    assert (meter.method, meter.status) == (None, Status.UNAVAILABLE)
    assert meter.detail
    assert "tdp_w" in meter.detail
    meter.sample()
    busy_for(0.1)
    (sample,) = meter.sample()
    assert sample.power_w is None
    assert sample.cpu_utilisation is not None


def test_processors_are_one_device_however_many_ranks() -> None:
    cpu = GpuType(kind="cpu", per_node=4, memory_gib=2, tdp_w=65, tdp_source="data sheet")
    cuda = GpuType(kind="cuda", per_node=4, memory_gib=80)
    meter = open_meter(cpu, [])
    assert isinstance(meter, CpuEstimate)
    assert len(meter.devices) == metered_devices(cpu, 4) == 1
    assert metered_devices(cuda, 4) == 4
