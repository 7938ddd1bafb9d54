"""The estimate for processors, and the choice of a meter."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from powercap import add_domain
from shardwatt.power.meters.choose import metered_devices, open_host_meter, open_meter
from shardwatt.power.meters.estimate import CpuEstimate
from shardwatt.power.meters.processors import BESIDE_S
from shardwatt.readings import Method, Status
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


def cpu(**words: Any) -> GpuType:
    return GpuType(kind="cpu", per_node=4, memory_gib=2, tdp_w=65, tdp_source="data sheet", **words)


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a made-up power cap tree."""
    monkeypatch.setenv("SHARDWATT_POWERCAP", str(tmp_path))
    return tmp_path


def test_processors_are_measured_where_rapl_can_be_read_and_estimated_where_not(powercap: Path) -> None:
    estimate = open_meter(cpu(), [])
    assert isinstance(estimate, CpuEstimate)
    assert estimate.detail
    # What kept them from being measured stands beside the estimate.
    assert re.search(r"an estimate.*not measured: RAPL .*no package", estimate.detail)
    add_domain(powercap, "intel-rapl:0", "package-0")
    add_domain(powercap, "intel-rapl:0:0", "dram")
    measured = open_meter(cpu(), [])
    assert (measured.method, measured.status) == (Method.RAPL, Status.MEASURED)
    # Both are one device, however many ranks there are.
    for meter in (estimate, measured):
        assert len(meter.devices) == len(meter.power_sources) == metered_devices(cpu(), 4) == 1
        meter.close()


def test_the_sites_choice_of_a_meter_is_not_replaced(powercap: Path) -> None:
    rapl = open_meter(cpu(meter="rapl"), [])
    assert (rapl.method, rapl.status) == (None, Status.UNAVAILABLE)
    add_domain(powercap, "intel-rapl:0", "package-0")
    estimate = open_meter(cpu(meter="estimate"), [])
    assert (estimate.method, estimate.status) == (Method.ESTIMATE, Status.ESTIMATED)
    assert estimate.detail
    assert "not measured" not in estimate.detail.replace("not a measurement", "")


def test_host_meter_reads_processors_and_memory(powercap: Path) -> None:
    add_domain(powercap, "intel-rapl:0", "package-0")
    add_domain(powercap, "intel-rapl:0:0", "dram")
    host = open_host_meter()
    assert [device.name.split(" (")[0] for device in host.devices] == ["RAPL package", "RAPL dram"]
    host.close()


def test_host_meter_without_rapl_is_no_estimate_but_knows_how_busy_the_node_is(powercap: Path) -> None:
    host = open_host_meter()
    assert (host.method, host.status) == (None, Status.UNAVAILABLE)
    assert host.detail
    assert "no package" in host.detail
    assert len(host.devices) == len(host.power_sources) == len(host.limits) == 1
    (first,) = host.sample()
    assert first.cpu_utilisation is None
    # Once a second is enough, and costs a tenth.
    while again := host.sample():
        assert again[0].t_s - first.t_s >= BESIDE_S, "this was not kept waiting in between"
        (first,) = again
    busy_for(BESIDE_S)
    (sample,) = host.sample()
    assert sample.device == host.devices[0].index
    assert (sample.power_w, sample.counter_j) == (None, None)
    assert sample.cpu_utilisation is not None
    assert 0 < sample.cpu_utilisation <= 1
    assert sample.memory_filled is not None


@pytest.mark.parametrize(
    ("words", "devices"),
    [
        ({"kind": "cuda"}, 4),
        ({"kind": "cuda", "meter": "nvml"}, 4),
        ({"kind": "cpu", "meter": "nvml"}, 4),
        ({"kind": "cpu"}, 1),
        ({"kind": "cpu", "meter": "rapl"}, 1),
        ({"kind": "cpu", "meter": "estimate"}, 1),
    ],
)
def test_nvml_reads_a_gpu_a_rank_and_other_meters_one_device(words: dict[str, str], devices: int) -> None:
    gpu_type = GpuType.model_validate({"per_node": 4, "memory_gib": 80, **words})
    assert metered_devices(gpu_type, 4) == devices
