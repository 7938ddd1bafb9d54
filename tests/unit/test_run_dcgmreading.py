"""Guards the paper's accounting: DCGM's joules of rank 0's node times the nodes, beside NVML's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shardwatt.power.trace import Trace
from shardwatt.readings import DcgmDevice, DcgmJob, Method, Scope, Status
from shardwatt.run.dcgmreading import check_dcgm, dcgm_job, method_ratio, window_dcgm
from shardwatt.run.measured import DcgmMissing, DcgmRun
from synthetic_traces import a_device, a_node, a_trace, constant, times

WINDOW = (3.0, 13.0)


def two_nodes() -> Trace:
    """GPUs of 100 and 150 W on rank 0's node, and of 400 W on the other."""
    return a_trace(
        a_node([a_device(), a_device(index=1, power=constant(150))]),
        a_node([a_device("host1", 0, power=constant(400)), a_device("host1", 1, power=constant(400))]),
    )


def run(*joules: float | None, interval_ms: int = 100, **device: Any) -> DcgmRun:
    """DCGM from 2.8 to 13.2 s: 10.4 s."""
    devices = [
        DcgmDevice(uuid=f"GPU-host0-{index}", energy_j=energy_j, power_mean_w=100.0, **device)
        for index, energy_j in enumerate(joules)
    ]
    return DcgmRun("host0", interval_ms, 2.8, 13.2, devices)


def job_of(*joules: float | None) -> DcgmJob:
    job = dcgm_job(run(*joules), two_nodes(), WINDOW)
    assert job is not None
    return job


def test_rank_0s_node_is_scaled_and_wrong_by_what_the_others_draw() -> None:
    reading = window_dcgm(run(1040, 1559), two_nodes(), WINDOW)
    assert reading.joules == 2 * (1040 + 1559)
    assert (reading.method, reading.status) == (Method.DCGM_JOB, Status.DERIVED)
    assert reading.scope is Scope.RANK0_NODE_SCALED
    # Two intervals of 0.1 s at 100 and 149.9 W, and a joule for each GPU, all twice.
    assert reading.uncertainty_j == pytest.approx(2 * (0.2 * (1040 + 1559) / 10.4 + 2))
    coverage = reading.coverage
    assert (coverage.nodes, coverage.nodes_expected, coverage.devices_expected) == (["host0"], 2, 4)
    assert [device.index for device in coverage.devices] == [0, 1]
    assert coverage.asked_period_s == 0.1
    assert reading.detail
    assert (
        "from 0.2 s before the window to 0.2 s after it, one interval of 0.1 s on each side" in reading.detail
    )


def test_on_one_node_it_is_measured() -> None:
    trace = a_trace(two_nodes().nodes[0])
    reading = window_dcgm(run(1040, 1560), trace, WINDOW)
    assert (reading.joules, reading.status) == (2600, Status.MEASURED)


def test_nvml_is_read_over_dcgms_own_time() -> None:
    job = job_of(1040, 1559)
    assert (job.start_s, job.stop_s) == pytest.approx((-0.2, 10.2))
    assert [device.nvml_j for device in job.devices] == pytest.approx([1040, 1560])
    assert method_ratio(job) == pytest.approx(2599 / 2600)
    assert check_dcgm(job) == []


def test_one_gpu_without_joules_leaves_no_sum_and_no_ratio() -> None:
    reading = window_dcgm(run(1040, None, detail="Energy Consumed: Not Specified"), two_nodes(), WINDOW)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail == "GPU-host0-1: Energy Consumed: Not Specified"
    assert method_ratio(job_of(1040, None)) is None


@pytest.mark.parametrize("nothing", [None, 0.0])
def test_zero_joules_beside_power_are_no_joules_and_a_violation(nothing: float | None) -> None:
    assert window_dcgm(run(1040, nothing), two_nodes(), WINDOW).joules is None
    (found,) = check_dcgm(job_of(1040, nothing))
    assert found.code == "dcgm_zero_energy"
    assert "GPU-host0-1: 0 J, at 100 W on average" in found.message


def test_no_joules_without_power_are_missing_and_no_violation() -> None:
    silent = DcgmDevice(uuid="GPU-host0-0", energy_j=None, detail="Not Supported")
    job = DcgmJob(node="host0", interval_ms=100, start_s=-0.2, stop_s=10.2, devices=[silent])
    assert check_dcgm(job) == []


@pytest.mark.parametrize(
    ("share", "fires"), [(0.951, False), (0.949, True), (1.049, False), (1.051, True), (0.72, True)]
)
def test_more_than_five_percent_between_dcgm_and_nvml_is_told(share: float, *, fires: bool) -> None:
    found = check_dcgm(job_of(1040 * share, 1560 * share))
    assert [one.code for one in found] == ["method_differs"] * fires
    if fires:
        assert f"counted {share:.3f} of what NVML's counters did" in found[0].message
        assert "(10.4 s); expected 0.95 to 1.05" in found[0].message


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.UNSUPPORTED, Status.PERMISSION_DENIED])
def test_why_there_is_no_dcgm_reaches_the_reading(status: Status) -> None:
    missing = DcgmMissing(status, "the site has no key `dcgm`")
    reading = window_dcgm(missing, two_nodes(), WINDOW)
    assert (reading.joules, reading.status, reading.detail) == (None, status, "the site has no key `dcgm`")
    assert (reading.coverage.nodes, reading.coverage.devices) == ([], [])
    assert dcgm_job(missing, two_nodes(), WINDOW) is None
    assert (method_ratio(None), check_dcgm(None)) == (None, [])


def test_other_gpus_than_the_cells_are_not_counted() -> None:
    stranger = DcgmDevice(uuid="GPU-host0-7", energy_j=1560)
    mixed = replace(run(1040), devices=[*run(1040).devices, stranger])
    for told in (run(1040), run(1040, 1560, 900), mixed):
        reading = window_dcgm(told, two_nodes(), WINDOW)
        assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
        assert reading.detail
        assert "expected the cell's 2 GPUs on host0" in reading.detail


def test_without_nvmls_counter_there_is_no_ratio() -> None:
    integral = a_trace(a_node([a_device(method=Method.POWER_INTEGRAL)], status=Status.DERIVED))
    job = dcgm_job(run(1040), integral, WINDOW)
    assert job is not None
    assert (job.devices[0].nvml_j, method_ratio(job)) == (None, None)
    backwards = a_device(counter_j=-100 * times(0, 20))
    job = dcgm_job(run(1040), a_trace(a_node([backwards])), WINDOW)
    assert job is not None
    assert (job.devices[0].nvml_j, method_ratio(job)) == (None, None)
