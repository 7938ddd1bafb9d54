"""Guards a cell's energy: every reading of it, by device too, idle baselines, ratios, and rules of a cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwatt.power.curve import Array
from shardwatt.power.host import HostTrace
from shardwatt.power.trace import Trace, union
from shardwatt.readings import (
    Device,
    DeviceEnergy,
    DriverLimits,
    Energy,
    LimitOfDevice,
    Method,
    PowerCap,
    PowerSource,
    Reading,
    Scope,
    Status,
)
from shardwatt.run.baseline import CoolDown
from shardwatt.run.energy import energy_of
from shardwatt.run.exchange import BatchRun, PhaseTime, RunReport
from shardwatt.run.measured import Baseline, DcgmMissing, Measured
from shardwatt.site import GpuType
from shardwatt.study import Constants
from synthetic_traces import Power, a_device, a_node, a_trace, one_node, times

CELL = "engine=reference/repeat=1"
CONSTANTS = Constants(prompts=3, idle_settle_s=5.0, idle_read_s=10.0)
CUDA = GpuType(kind="cuda", per_node=2, memory_gib=80)
#: The job is from 2 to 98 s: idle at 30 W, loaded and idle at 60 W, then 200 W times the device's factor.
SPAN, UNLOADED, LOADED, WINDOW = (2.0, 98.0), (5.0, 15.0), (30.0, 40.0), (50.0, 90.0)
SPENT_J = 40 * 200.0


def draws(factor: float = 1.0) -> Power:
    def power_w(t_s: Array) -> Array:
        idle_w = np.where(t_s < 20, 30.0, 60.0)
        return np.where((t_s >= 45) & (t_s < 95), 200.0 * factor, idle_w)

    return power_w


def a_gpu(node: str = "host0", index: int = 0, factor: float = 1.0, **more: Any) -> Any:
    return a_device(node, index, t_s=times(0, 100), power=draws(factor), **more)


def two_nodes() -> Trace:
    """Devices that draw 200, 300, 100 and 100 W in the window."""
    return a_trace(
        a_node([a_gpu(), a_gpu(index=1, factor=1.5)]),
        a_node([a_gpu("host1", factor=0.5), a_gpu("host1", 1, factor=0.5)]),
    )


def a_report(phases: list[tuple[str, float, float]] | None = None, **more: Any) -> RunReport:
    """Two batches; a second lies between their phases unless they are given."""
    told = phases or [
        ("prefill", 51, 55), ("walk", 56, 57.5), ("decode", 58.5, 70),
        ("prefill", 71, 75), ("decode", 76, 89),
    ]  # fmt: skip
    batch = BatchRun(
        start_s=50.5,
        stop_s=89.5,
        phases=[
            PhaseTime.model_validate(
                {"name": n, "start_s": a, "stop_s": b, "steps": 1, "tokens": 1, "attended": 1}
            )
            for n, a, b in told
        ],
        tokens=[],
        finish=[],
        generated_tokens=1,
    )
    known: dict[str, Any] = {
        "window_start_s": WINDOW[0],
        "window_stop_s": WINDOW[1],
        "rendezvous_s": 1.0,
        "load_s": 5.0,
        "warmup_s": 1.0,
        "idle_loaded": LOADED,
        "batches": [batch],
        "versions": {},
        "engine_notes": {},
    }
    return RunReport(**(known | more))


def measured(trace: Trace, **more: Any) -> Measured:
    nothing = Reading(
        joules=None,
        method=None,
        status=Status.UNSUPPORTED,
        scope=Scope.ALL_NODES,
        coverage=trace.coverage([], []),
    )
    known = Measured(
        trace=trace,
        host=HostTrace([]),
        job_span=SPAN,
        unloaded=UNLOADED,
        cool_down=None,
        power_cap=None,
        dcgm=DcgmMissing(Status.UNAVAILABLE, "the site has no key `dcgm`"),
        slurm_node=nothing,
    )
    return replace(known, **more)


def make(
    trace: Trace,
    report: RunReport | None = None,
    *,
    constants: Constants = CONSTANTS,
    gpu_type: GpuType = CUDA,
    was_loaded: bool = False,
    **more: Any,
) -> tuple[Energy, Baseline | None]:
    beside = measured(trace, **more)
    return energy_of(CELL, constants, gpu_type, report or a_report(), beside, was_loaded=was_loaded)


def parts(device: DeviceEnergy) -> list[float | None]:
    return [
        part.joules
        for part in (device.prefill, device.walk, device.decode, device.between, device.window, device.job)
    ]


def test_every_device_has_its_own_joules_and_they_add_up_to_the_readings() -> None:
    energy, _ = make(two_nodes())
    factors = [1.0, 1.5, 0.5, 0.5]
    for device, factor in zip(energy.devices, factors, strict=True):
        seconds = [8, 1.5, 24.5, 6, 40]
        expected = [200 * factor * s for s in seconds]
        # Without the 15 s of the loaded baseline, 5 s to settle and 10 s to read.
        job_j = 18 * 30 + (28 - 15) * 60 + 50 * 200 * factor
        assert parts(device) == pytest.approx([*expected, job_j])
        assert (device.method, device.status, device.detail) == (Method.NVML_COUNTER, Status.MEASURED, None)
        assert device.window.uncertainty_j == pytest.approx(2 * 0.1 * 200 * factor)
        assert device.integral_j == pytest.approx(8000 * factor)
        assert (device.idle_unloaded_w, device.idle_loaded_w) == pytest.approx((30, 60))
    assert [device.device.node for device in energy.devices] == ["host0", "host0", "host1", "host1"]
    for name in ("prefill", "walk", "decode", "between", "window", "job"):
        whole = getattr(energy, name)
        assert whole.joules == pytest.approx(sum(getattr(device, name).joules for device in energy.devices))
    assert energy.violations == []


def test_the_scope_ratio_tells_what_looking_at_one_node_costs() -> None:
    energy, _ = make(two_nodes())
    assert energy.window.joules == pytest.approx(3.5 * SPENT_J)
    assert energy.window_rank0_scaled.joules == pytest.approx(5 * SPENT_J)
    assert energy.scope_ratio == pytest.approx(5 / 3.5)


def test_joules_net_of_idle_are_those_of_all_devices_over_the_window() -> None:
    energy, baseline = make(two_nodes())
    unloaded, loaded = energy.idle_unloaded, energy.idle_loaded
    assert (unloaded.power_w, loaded.power_w) == pytest.approx((4 * 30, 4 * 60))
    assert unloaded.uncertainty_w == pytest.approx(4 * 30 * 2 * 0.1 / 10)
    assert (unloaded.settle_s, unloaded.read_s, unloaded.status) == (5.0, 10.0, Status.MEASURED)
    assert unloaded.net_j == pytest.approx(3.5 * SPENT_J - 120 * 40)
    assert loaded.net_j == pytest.approx(3.5 * SPENT_J - 240 * 40)
    # That of the window, and that of 10 s of idle over 40 s.
    assert energy.window.uncertainty_j == pytest.approx(700 * 2 * 0.1)
    assert unloaded.net_uncertainty_j == pytest.approx(140 + 120 * 2 * 0.1 * 4)
    assert loaded.net_uncertainty_j == pytest.approx(140 + 240 * 2 * 0.1 * 4)
    assert (unloaded.detail, loaded.detail) == (None, None)
    assert baseline is not None
    assert (baseline.cell, len(baseline.device_w)) == (CELL, 4)


def test_a_baseline_is_carried_to_the_next_cell_with_the_name_of_the_first() -> None:
    _, baseline = make(two_nodes())
    assert baseline is not None
    carried = replace(baseline, cell="another/cell")
    energy, again = make(two_nodes(), unloaded=carried, was_loaded=True)
    assert again == carried
    assert energy.idle_unloaded.power_w == pytest.approx(120)
    assert energy.idle_unloaded.net_j == pytest.approx(3.5 * SPENT_J - 120 * 40)
    assert energy.idle_unloaded.detail == "read before another cell of the job, another/cell"
    assert energy.devices[0].idle_unloaded_w == pytest.approx(30)


def test_a_baseline_that_was_not_read_says_why_and_is_not_carried() -> None:
    quick = CONSTANTS.model_copy(update={"idle_read_s": 0.0})
    for constants, was_loaded, words in (
        (quick, False, "idle_read_s is 0"),
        (CONSTANTS, True, "an earlier cell of the job had loaded its model"),
        (CONSTANTS, False, "it was not read"),
    ):
        energy, baseline = make(
            two_nodes(), a_report(idle_loaded=None), constants=constants, unloaded=None, was_loaded=was_loaded
        )
        assert baseline is None
        for idle in (energy.idle_unloaded, energy.idle_loaded):
            assert (idle.power_w, idle.net_j, idle.status) == (None, None, Status.UNAVAILABLE)
            assert idle.net_uncertainty_j is None
        assert energy.idle_unloaded.detail
        assert words in energy.idle_unloaded.detail
        assert energy.devices[0].idle_unloaded_w is None


def test_an_estimate_has_no_idle_even_where_a_time_was_kept_for_it() -> None:
    detail = "tdp_w 100 (source: a test)"
    trace = a_trace(a_node([a_gpu(method=Method.ESTIMATE)], status=Status.ESTIMATED, detail=detail))
    for unloaded in (UNLOADED, None):
        energy, baseline = make(trace, unloaded=unloaded)
        assert energy.window.joules == pytest.approx(SPENT_J)
        assert baseline is None
        for idle in (energy.idle_unloaded, energy.idle_loaded):
            assert (idle.power_w, idle.net_j, idle.status) == (None, None, Status.UNAVAILABLE)
            assert idle.net_uncertainty_j is None
            assert idle.detail
            assert "an estimate" in idle.detail
        (device,) = energy.devices
        assert (device.status, device.detail) == (Status.ESTIMATED, detail)
        assert (device.idle_unloaded_w, device.integral_j, energy.violations) == (None, None, [])


def test_of_two_unlike_devices_each_says_what_its_own_joules_are_worth() -> None:
    detail = "GPU 1 of host0: energy counter: Not Supported; sampled power is integrated instead"
    node = a_node(
        [a_gpu(), a_gpu(index=1, method=Method.POWER_INTEGRAL)], status=Status.DERIVED, detail=detail
    )
    energy, _ = make(a_trace(node))
    assert (energy.window.method, energy.window.status) == (Method.POWER_INTEGRAL, Status.DERIVED)
    assert [(device.method, device.status, device.detail) for device in energy.devices] == [
        (Method.NVML_COUNTER, Status.MEASURED, None),
        (Method.POWER_INTEGRAL, Status.DERIVED, detail),
    ]


def test_one_dead_meter_leaves_the_devices_that_were_read_and_no_sum() -> None:
    alive = a_node([a_gpu(), a_gpu(index=1)])
    dead = a_node([a_gpu("host1", counter_j=np.full(1001, np.nan), power_w=np.full(1001, np.nan))])
    dead = replace(dead, status=Status.PERMISSION_DENIED, detail="host1: no permission")
    energy, baseline = make(a_trace(alive, dead))
    for reading in (energy.window, energy.decode, energy.between, energy.job):
        assert (reading.joules, reading.status) == (None, Status.PERMISSION_DENIED)
        assert reading.detail == "host1: no permission"
    assert energy.window_rank0_scaled.joules == pytest.approx(2 * 2 * SPENT_J)
    assert [device.window.joules for device in energy.devices] == [
        pytest.approx(SPENT_J), pytest.approx(SPENT_J), None,
    ]  # fmt: skip
    lost = energy.devices[2]
    assert (lost.method, lost.status, lost.detail) == (None, Status.PERMISSION_DENIED, "host1: no permission")
    assert (energy.scope_ratio, baseline) == (None, None)
    assert (energy.idle_unloaded.power_w, energy.idle_unloaded.detail) == (None, "host1: no permission")


def test_a_sampler_that_died_in_the_window_takes_only_what_it_no_longer_saw() -> None:
    short = a_device("host1", t_s=times(0, 60), power=draws())
    energy, baseline = make(a_trace(a_node([a_gpu()]), a_node([short])))
    assert energy.window.joules is None
    assert "device 0 of host1: its samples end before" in (energy.window.detail or "")
    assert energy.idle_unloaded.power_w == pytest.approx(60)
    assert energy.idle_unloaded.net_j is None
    assert baseline is not None
    assert energy.devices[1].status is Status.UNAVAILABLE
    assert "end before" in (energy.devices[1].detail or "")


def test_phases_that_overlap_do_not_add_up() -> None:
    trace = a_trace(a_node([a_gpu()]))
    touching = a_report([("prefill", 51, 55), ("decode", 55, 89)])
    assert make(trace, touching)[0].violations == []
    # 40 J are open at the window's borders; at 200 W an overlap of 0.3 s counts 60 J twice.
    slightly = a_report([("prefill", 51, 55.15), ("decode", 55, 89)])
    assert make(trace, slightly)[0].violations == []
    overlapping = a_report([("prefill", 51, 55.3), ("decode", 55, 89)])
    (found,) = make(trace, overlapping)[0].violations
    assert found.code == "phases_do_not_add_up"
    assert "= 8060 J, and the window 8000 J; expected them to be the same within 40 J" in found.message


@settings(max_examples=30)
@given(
    borders_s=st.lists(
        st.integers(5000, 9000).map(lambda c: c / 100), min_size=2, max_size=20, unique=True
    ).map(sorted),
    factor=st.floats(0.1, 5),
)
def test_phases_and_the_rest_always_add_up_to_the_window(borders_s: list[float], factor: float) -> None:
    names = ("prefill", "walk", "decode")
    spans = list(zip(borders_s[::2], borders_s[1::2], strict=False))
    told = [(names[number % 3], start, stop) for number, (start, stop) in enumerate(spans)]
    energy, _ = make(a_trace(a_node([a_gpu(factor=factor)])), a_report(told))
    assert "phases_do_not_add_up" not in [one.code for one in energy.violations]
    known = [energy.prefill, energy.walk, energy.decode, energy.between]
    for name in names:
        joules = getattr(energy, name).joules
        merged = union([(start, stop) for phase, start, stop in told if phase == name])
        lengths_s = [stop - start for start, stop in merged]
        # What lies in stretches shorter than ten ticks is unknown, and never zero.
        assert joules is None or joules == pytest.approx(200 * factor * sum(lengths_s), rel=1e-6)
        resolved_s = sum(length_s for length_s in lengths_s if length_s > 1 - 1e-4)
        if abs(resolved_s - 0.9 * sum(lengths_s)) > 1e-6:
            assert (joules is None) == (resolved_s < 0.9 * sum(lengths_s))
        elif not lengths_s:
            assert joules is None
    if all(reading.joules is not None for reading in known):
        total_j = sum(reading.joules or 0 for reading in known)
        assert total_j == pytest.approx(energy.window.joules, rel=1e-6)


def a_cap(enforced_w: float | None, after_w: float | None, **device: Any) -> PowerCap:
    limit = LimitOfDevice(
        device=Device(node="host0", index=0, name="GPU", uuid="GPU-host0-0"),
        before_w=300,
        enforced_w=enforced_w,
        after_w=after_w,
        restored_w=300,
    )
    return PowerCap(asked_w=150, set_by="nvml", devices=[limit])


@pytest.mark.parametrize(
    ("enforced_w", "after_w", "words"),
    [
        (250.0, 250.6, None),
        (250.0, 249.4, None),
        (250.0, 251.0, "device 0 of host0 was under 250 W before and 251 W after"),
        (250.0, None, "250 W before and unknown after"),
    ],
)
def test_a_limit_that_was_changed_meanwhile_is_told(
    enforced_w: float, after_w: float | None, words: str | None
) -> None:
    energy, _ = make(a_trace(a_node([a_gpu()])), power_cap=a_cap(enforced_w, after_w))
    assert [one.code for one in energy.violations] == (["limit_changed"] if words else [])
    if words:
        assert words in energy.violations[0].message


def test_what_a_device_may_draw_is_its_enforced_limit_before_the_sites_words() -> None:
    trace = a_trace(a_node([a_gpu()]))
    site = GpuType(kind="cuda", per_node=1, memory_gib=80, power_limits_w=[100, 190], tdp_w=150)
    only_tdp = GpuType(kind="cuda", per_node=1, memory_gib=80, tdp_w=150)
    processors = GpuType(kind="cpu", per_node=1, memory_gib=80, tdp_w=150, meter="nvml")
    for gpu_type, cap, expected in (
        (site, a_cap(150, 150), "under a limit of 150 W"),
        (site, a_cap(300, 300), None),
        (site, None, None),
        (only_tdp, None, "under a limit of 150 W"),
        (processors, None, None),
    ):
        energy, _ = make(trace, gpu_type=gpu_type, power_cap=cap)
        assert [one.code for one in energy.violations] == (["power_above_limit"] if expected else [])
        if expected:
            assert expected in energy.violations[0].message


def limited(enforced_w: float | None, default_w: float | None) -> Trace:
    """One device that draws 200 W in the window, and whose driver told these limits."""
    limits = DriverLimits(enforced_w=enforced_w, default_w=default_w)
    return a_trace(a_node([replace(a_gpu(), limits=limits)]))


def test_without_a_cap_a_device_may_draw_what_its_driver_enforces_whatever_the_site_says() -> None:
    site = GpuType(kind="cuda", per_node=1, memory_gib=80, power_limits_w=[100, 500], tdp_w=500)
    strict = GpuType(kind="cuda", per_node=1, memory_gib=80, power_limits_w=[100, 150])
    processors = GpuType(kind="cpu", per_node=1, memory_gib=80, meter="nvml")
    for gpu_type, enforced_w, fires in (
        (site, 170.0, True),
        (processors, 170.0, True),
        (strict, 300.0, False),
        (site, None, False),
        (strict, None, True),
    ):
        energy, _ = make(limited(enforced_w, enforced_w), gpu_type=gpu_type)
        assert [one.code for one in energy.violations] == ["power_above_limit"] * fires
        assert energy.devices[0].limits == DriverLimits(enforced_w=enforced_w, default_w=enforced_w)


def test_what_was_drawn_while_loading_is_held_against_the_limit_too() -> None:
    """180 W in the window, and 400 W for 45 s before it."""
    hot = a_device(t_s=times(0, 100), power=lambda t_s: np.where(t_s < 45, 400.0, 180.0))
    site = GpuType(kind="cuda", per_node=1, memory_gib=80, power_limits_w=[100, 200])
    energy, _ = make(a_trace(a_node([hot])), gpu_type=site)
    (found,) = energy.violations
    assert found.code == "power_above_limit"
    assert "of the job" in found.message
    assert "of the window" not in found.message


@pytest.mark.parametrize(
    ("enforced_w", "default_w", "words"),
    [
        (300.0, 300.0, None),
        (299.5, 300.0, None),
        (300.0, None, None),
        (None, 300.0, None),
        (250.0, 300.0, "device 0 of host0 was under 250 W, its default is 300 W"),
        (350.0, 300.0, "device 0 of host0 was under 350 W, its default is 300 W"),
    ],
)
def test_a_cell_without_a_cap_under_another_limit_than_the_default_is_told(
    enforced_w: float | None, default_w: float | None, words: str | None
) -> None:
    energy, _ = make(limited(enforced_w, default_w))
    assert [one.code for one in energy.violations] == (["not_at_default_limit"] if words else [])
    if words:
        assert words in energy.violations[0].message
    capped, _ = make(limited(enforced_w, default_w), power_cap=a_cap(enforced_w or 250, enforced_w or 250))
    assert capped.violations == []


@pytest.mark.parametrize(
    ("cooled", "words"),
    [
        (CoolDown(12.0, reached=True, hottest_c=40.0), None),
        (
            CoolDown(600.0, reached=False, hottest_c=71.0),
            "the hottest device was at 71 degrees Celsius after 600 s; expected at most 45",
        ),
        (CoolDown(0.0, reached=False, hottest_c=None), "no meter told a temperature after 0 s"),
    ],
)
def test_devices_that_did_not_cool_down_are_told(cooled: CoolDown, words: str | None) -> None:
    constants = CONSTANTS.model_copy(update={"cool_down_c": 45.0})
    energy, _ = make(a_trace(a_node([a_gpu()])), constants=constants, cool_down=cooled)
    assert [one.code for one in energy.violations] == (["not_cooled"] if words else [])
    if words:
        assert words in energy.violations[0].message


def test_the_job_leaves_out_the_waits_for_dcgm() -> None:
    whole, _ = make(two_nodes())
    waited, _ = make(two_nodes(), a_report(gate_waits=[(48.0, 50.0), (90.0, 93.0)]))
    assert whole.job.joules is not None
    # In these 5 s the devices drew 200, 300, 100 and 100 W.
    assert waited.job.joules == pytest.approx(whole.job.joules - 5 * 700)
    assert waited.window.joules == whole.window.joules


def test_rapl_in_an_allocation_that_others_share_is_marked() -> None:
    processors = a_gpu(method=Method.RAPL)
    for has_whole_nodes, expected in [(False, ["shared_node"]), (True, []), (None, [])]:
        beside = measured(one_node(processors), has_whole_nodes=has_whole_nodes)
        energy, _ = energy_of(CELL, CONSTANTS, CUDA, a_report(), beside, was_loaded=False)
        assert [one.code for one in energy.violations] == expected
        if expected:
            assert "window has 8000 J" in energy.violations[0].message
    # GPUs are the job's own, whoever else is on the node.
    gpus = measured(one_node(a_gpu()), has_whole_nodes=False)
    energy, _ = energy_of(CELL, CONSTANTS, CUDA, a_report(), gpus, was_loaded=False)
    assert energy.violations == []


def test_a_device_says_where_its_power_comes_from() -> None:
    device = replace(a_gpu(), power_source=PowerSource.USAGE)
    energy, _ = energy_of(CELL, CONSTANTS, CUDA, a_report(), measured(one_node(device)), was_loaded=False)
    assert energy.devices[0].power_source is PowerSource.USAGE
