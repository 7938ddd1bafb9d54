"""Guards the rules on readings: each fires beyond its border and is silent at it, with the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from shardwatt.power.curve import Array
from shardwatt.power.rules import check_joules, check_samples, violation
from shardwatt.power.trace import Trace
from shardwatt.readings import Method, Status, Violation
from synthetic_traces import a_device, a_node, a_trace, constant, one_node, times

WINDOW = (2.0, 12.0)


def codes(violations: list[Violation]) -> list[str]:
    return [one.code for one in violations]


def of_samples(trace: Trace, window: tuple[float, float] = WINDOW) -> list[str]:
    return codes(check_samples(trace, window))


def of_joules(
    trace: Trace, window: tuple[float, float] = WINDOW, limit_w: float | None = None
) -> list[Violation]:
    limits_w = {} if limit_w is None else {device.device: limit_w for device in trace.devices}
    return check_joules(trace.devices, window, [window], limits_w)


def without(t_s: Array, start_s: float, stop_s: float) -> Array:
    return t_s[(t_s < start_s) | (t_s > stop_s)]


def test_a_good_cell_breaks_no_rule() -> None:
    trace = one_node(
        a_device(index=0), a_device(index=1, power=lambda t_s: np.where(t_s % 2 > 1, 250.0, 150.0))
    )
    assert of_samples(trace) == []
    assert of_joules(trace, limit_w=250) == []


@pytest.mark.parametrize(("stop_s", "fires"), [(6.9, True), (7.0, False)])
def test_a_window_under_five_seconds_is_marked(stop_s: float, *, fires: bool) -> None:
    found = of_joules(one_node(), (2.0, stop_s))
    assert codes(found) == ["short_window"] * fires
    if fires:
        assert "4.9 s" in found[0].message


def test_a_cell_without_joules_has_nothing_to_doubt() -> None:
    device = a_device(counter_j=np.full(201, np.nan), power_w=np.full(201, np.nan))
    trace = a_trace(a_node([device], status=Status.UNAVAILABLE))
    assert of_joules(trace, (2.0, 3.0)) == []
    assert of_samples(trace) == []


@pytest.mark.parametrize(("stop_s", "fires"), [(4.0, False), (4.1, True)])
def test_a_counter_that_stands_still_for_more_than_two_seconds_has_no_energy(
    stop_s: float, *, fires: bool
) -> None:
    stuck = a_device(index=1, counter_j=np.full(201, 7e5))
    found = of_joules(one_node(a_device(), stuck), (2.0, stop_s))
    assert ("no_energy" in codes(found)) is fires
    if fires:
        message = next(one.message for one in found if one.code == "no_energy")
        assert "device 1 of host0: the energy counter stood still" in message
        assert "device 0" not in message


def test_a_counter_that_freezes_in_the_window_is_told_and_has_no_joules() -> None:
    t_s = times(0, 20)
    frozen = a_device(index=1, counter_j=7e5 + 100 * np.minimum(t_s, 6.0))
    found = of_joules(one_node(a_device(), frozen))
    assert codes(found) == ["counter_stood"]
    assert "device 1 of host0: the energy counter stood still for 6 s of it" in found[0].message
    assert "device 0" not in found[0].message
    assert frozen.part([WINDOW]).joules is None
    # What froze after the window is none of its business.
    later = a_device(counter_j=7e5 + 100 * np.minimum(t_s, 14.0))
    assert of_joules(one_node(later)) == []


# 40 J of 2000 are what both borders leave open (a tick of 0.1 s each), and 10 % more are allowed.
@pytest.mark.parametrize(("limit_w", "fires"), [(178.3, False), (178.1, True)])
def test_more_than_the_limit_allows_is_told(limit_w: float, *, fires: bool) -> None:
    trace = one_node(a_device(power=constant(200)))
    for window, job in (([WINDOW], [(3.0, 4.0)]), ([(3.0, 8.0)], [WINDOW])):
        found = check_joules(trace.devices, window[0], job, {trace.devices[0].device: limit_w})
        assert codes(found) == ["power_above_limit"] * fires
        if fires:
            what = "window" if window == [WINDOW] else "job"
            assert f"drew 2000 J in the 10 s of the {what}, 200 W on average" in found[0].message
            assert "under a limit of 178.1 W" in found[0].message


def test_an_unknown_limit_is_not_exceeded_nor_is_any_by_an_estimate() -> None:
    assert of_joules(one_node(a_device(power=constant(1e6)))) == []
    estimate = a_trace(a_node([a_device(method=Method.ESTIMATE)], status=Status.ESTIMATED))
    assert of_joules(estimate, limit_w=1) == []


# Over 10 s both meters together leave 4 % open: the 5 % decide. Over 4 s it is 10 %, and those do.
@pytest.mark.parametrize(
    ("sensor", "seconds", "fires"),
    [(0.953, 10, False), (0.951, 10, True), (1.052, 10, False), (1.054, 10, True), (0.93, 4, False)],
)
def test_counter_and_integral_may_differ_by_five_percent_or_what_borders_leave_open(
    sensor: float, seconds: float, *, fires: bool
) -> None:
    found = of_joules(one_node(a_device(sensor=sensor)), (2.0, 2.0 + seconds))
    assert ("counter_differs_from_integral" in codes(found)) is fires


def test_how_counter_and_integral_differ_is_told_with_numbers() -> None:
    (found,) = of_joules(one_node(a_device(sensor=0.5)))
    assert "its counter rose by 1000 J and its sampled power integrates to 500 J (+100.0%)" in found.message


def test_a_counter_that_ran_backwards_is_told_wherever_in_the_job_it_did() -> None:
    t_s = times(0, 20)
    for at_s, when in ((1.0, "1 s before"), (17.0, "15 s after")):
        fallen = np.where(t_s < at_s, 9e5, 0.0) + 100 * t_s
        (found,) = check_samples(one_node(a_device(counter_j=fallen)), WINDOW)
        assert found.code == "counter_ran_backwards"
        assert f"device 0 of host0 ran backwards {when} the window's begin" in found.message


def test_ten_periods_between_samples_are_no_gap_and_more_are() -> None:
    whole = times(0, 20)

    def pausing(until_s: float) -> Trace:
        kept = np.sort(np.append(without(whole, 4.05, until_s), until_s))
        return one_node(a_device(t_s=kept))

    assert "gap" not in of_samples(pausing(4.99))
    (gap, *_) = check_samples(pausing(5.01), WINDOW)
    assert gap.code == "gap"
    assert "device 0 of host0: 1, the longest of 1.01 s 2 s after the window's begin" in gap.message


def test_of_several_gaps_the_longest_is_told() -> None:
    kept = without(without(times(0, 20), 4.05, 5.95), 7.05, 9.95)
    (gap, *_) = check_samples(one_node(a_device(t_s=kept)), WINDOW)
    assert "2, the longest of 3 s 5 s after" in gap.message


def test_a_gap_over_the_windows_border_counts_and_one_outside_does_not() -> None:
    whole = times(0, 20)
    assert "gap" in of_samples(one_node(a_device(t_s=without(whole, 0.5, 2.5))))
    assert of_samples(one_node(a_device(t_s=without(whole, 13.0, 16.0)))) == []


def test_five_percent_of_the_samples_may_miss() -> None:
    whole = times(0, 20)
    inside = np.flatnonzero((whole > 2.0) & (whole < 12.0))
    for missing, fires in ((4, False), (8, True)):
        t_s = np.delete(whole, inside[:: len(inside) // missing][:missing])
        assert ("samples_missing" in of_samples(one_node(a_device(t_s=t_s)))) is fires
    (found,) = check_samples(one_node(a_device(t_s=t_s)), WINDOW)
    assert "device 0 of host0 has 93 of 100 samples" in found.message
    # Of few samples one is nothing.
    assert of_samples(one_node(a_device(t_s=np.delete(whole, [23, 26]))), (2.0, 3.0)) == []
    assert of_samples(one_node(a_device(t_s=np.delete(whole, [22, 24, 26]))), (2.0, 3.0)) != []


def test_gaps_of_an_estimate_are_bridged_by_its_means() -> None:
    device = a_device(t_s=without(times(0, 20), 4, 9), method=Method.ESTIMATE)
    assert of_samples(a_trace(a_node([device], status=Status.ESTIMATED))) == []


def test_sensors_that_failed_are_told_with_the_samplers_reason() -> None:
    trace = a_trace(a_node([a_device()], failures=["GPU 0 of host0: power: Unknown Error"]))
    (found,) = check_samples(trace, WINDOW)
    assert found.code == "sensor_failed"
    assert "GPU 0 of host0: power: Unknown Error" in found.message


@pytest.mark.parametrize(("ahead_s", "fires"), [(1.0, False), (1.1, True), (-1.0, False), (-100.0, True)])
def test_wall_clocks_a_second_apart_are_told(ahead_s: float, *, fires: bool) -> None:
    trace = a_trace(a_node([a_device()], wall_ahead_s=0.0), a_node([a_device("host1")], wall_ahead_s=ahead_s))
    found = check_samples(trace, WINDOW)
    assert codes(found) == ["clock_skew"] * fires
    if fires:
        side = "ahead of" if ahead_s > 0 else "behind"
        assert (
            f"the wall clock of host1 is {abs(ahead_s):g} s {side} that of rank 0's node" in found[0].message
        )


@pytest.mark.parametrize(
    ("bits", "share", "fires"),
    [
        (0x40, 0.02, True),
        (0x40, 0.01, False),
        (0x20, 1, True),
        (0x80, 1, True),
        (0x08, 1, True),
        (0x1 | 0x2 | 0x4, 1, False),
    ],
)
def test_heat_and_power_brakes_are_trouble_and_a_cap_or_idleness_is_none(
    bits: int, share: float, *, fires: bool
) -> None:
    # 101 samples are in the window.
    reasons = np.zeros(201)
    reasons[20 : 20 + int(share * 101)] = bits
    found = of_samples(one_node(a_device(throttle_reasons=reasons)))
    assert found == ["throttled"] * fires


def test_many_cases_of_a_violation_are_one_with_the_first_of_them() -> None:
    (found,) = violation("code", [f"case {number}" for number in range(20)], "none")
    assert found.message == "case 0; case 1; case 2; and 17 more; expected none"
    assert violation("code", [], "none") == []


def test_others_on_a_gpu_at_the_end_are_named() -> None:
    shared = a_trace(a_node([a_device()], strangers=["GPU 0 of host0: 4711, 4712", "GPU 3 of host0: 17"]))
    (found,) = check_samples(shared, WINDOW)
    assert found.code == "shared_gpu"
    assert "GPU 0 of host0: 4711, 4712" in found.message
    assert "GPU 3 of host0: 17" in found.message
