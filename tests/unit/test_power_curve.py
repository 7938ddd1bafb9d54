"""Energy arithmetic of one device against analytic values."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.power.curve import (
    Array,
    CounterStoodError,
    Curve,
    NoJoulesError,
    StoodStillError,
    counter_curve,
    estimate_curve,
    integral_curve,
)
from shardwatt.readings import Method

PERIOD_S = 0.1


def times(seconds: float, start_s: float = 0.0) -> Array:
    return start_s + np.arange(round(seconds / PERIOD_S) + 1, dtype=np.float64) * PERIOD_S


def counter(energy_j: Array, t_s: Array | None = None) -> Curve:
    curve = counter_curve(times(len(energy_j) / 10)[: len(energy_j)] if t_s is None else t_s, energy_j)
    assert curve is not None
    return curve


def constant(power_w: float, seconds: float) -> Curve:
    return counter(1e6 + power_w * times(seconds))


def test_constant_power_on_a_counter_gives_power_times_time() -> None:
    joules, uncertainty_j = constant(200, 20).joules([(3.0, 13.0)])
    assert joules == pytest.approx(2000)
    assert uncertainty_j == pytest.approx(2 * 200 * 0.1)


def test_border_between_samples_is_interpolated() -> None:
    joules, _ = constant(200, 20).joules([(3.03, 3.57)])
    assert joules == pytest.approx(200 * 0.54)


def test_step_in_power_counts_on_its_own_side() -> None:
    t_s = times(20)
    curve = counter(np.where(t_s < 10, 100 * t_s, 1000 + 300 * (t_s - 10)))
    assert curve.joules([(5, 10)])[0] == pytest.approx(500)
    assert curve.joules([(10, 15)])[0] == pytest.approx(1500)
    # The border's uncertainty takes the higher of the powers beside it.
    assert curve.joules([(5, 10)])[1] == pytest.approx((100 + 300) * 0.1)


def test_tick_is_measured_from_the_steps_of_the_counter() -> None:
    t_s = times(20)
    slow = counter(50 * np.floor(t_s / 0.5 + 1e-9) * 0.5)
    assert slow.period_s == pytest.approx(0.1)
    assert slow.tick_s == pytest.approx(0.5)


@pytest.mark.parametrize("phase", [0.0, 0.03, 0.07])
def test_stepping_counter_is_right_to_one_tick(phase: float) -> None:
    t_s = times(20, start_s=phase)
    curve = counter(300 * np.floor(t_s / 0.1 + 1e-9) * 0.1, t_s)
    for start_s, stop_s in [(2.0, 7.0), (2.04, 9.99), (5.55, 12.21)]:
        joules, uncertainty_j = curve.joules([(start_s, stop_s)])
        assert abs(joules - 300 * (stop_s - start_s)) <= 300 * 0.1 + 1e-6
        assert uncertainty_j >= 300 * 0.1


def test_power_integral_of_a_ramp_is_exact() -> None:
    t_s = times(10)
    curve = integral_curve(t_s, 50 + 20 * t_s)
    assert curve is not None
    assert curve.joules([(0, 10)])[0] == pytest.approx(50 * 10 + 10 * 10**2)
    assert curve.joules([(2, 4)])[0] == pytest.approx(50 * 2 + 10 * (4**2 - 2**2))


def test_estimated_power_holds_over_the_time_before_its_sample() -> None:
    curve = estimate_curve(np.array([0.0, 1.0, 2.0, 3.0]), np.array([math.nan, 10.0, 50.0, 20.0]))
    assert curve is not None
    assert curve.joules([(0, 1)])[0] == pytest.approx(10)
    assert curve.joules([(1, 2)])[0] == pytest.approx(50)
    assert curve.joules([(1.5, 2.5)])[0] == pytest.approx(35)


def test_estimate_skips_samples_without_power_and_keeps_their_time() -> None:
    curve = estimate_curve(np.array([0.0, 1.0, 2.0, 3.0]), np.array([math.nan, 10.0, math.nan, 20.0]))
    assert curve is not None
    assert curve.joules([(0, 3)])[0] == pytest.approx(10 + 2 * 20)


def test_backwards_counter_voids_only_intervals_that_hold_the_jump() -> None:
    energy_j = 100 * times(20)
    energy_j[100:] -= 900
    curve = counter(energy_j)
    assert curve.joules([(1, 9)])[0] == pytest.approx(800)
    assert curve.joules([(11, 19)])[0] == pytest.approx(800)
    with pytest.raises(NoJoulesError, match="ran backwards"):
        curve.joules([(5, 15)])
    with pytest.raises(NoJoulesError, match="ran backwards"):
        curve.joules([(9.95, 12)])


def test_backwards_jump_hidden_by_later_growth_is_still_seen() -> None:
    energy_j = 100 * times(20)
    energy_j[100:] -= 50
    with pytest.raises(NoJoulesError, match="ran backwards"):
        counter(energy_j).joules([(1, 19)])


@pytest.mark.parametrize("interval", [(1.0, 9.0), (1.0, 1.5), (1.02, 1.04)])
def test_counter_that_stands_still_is_never_zero_joules(interval: tuple[float, float]) -> None:
    with pytest.raises(StoodStillError, match="stood still"):
        counter(np.full(101, 5e5)).joules([interval])


def test_stretches_under_their_ticks_are_unknown_however_many_there_are() -> None:
    curve = constant(100, 100)
    short = [(2.0 + start_s, 2.4 + start_s) for start_s in range(90)]
    assert curve.joules(short)[0] == pytest.approx(90 * 40)
    for number in (1, 2, 90):
        with pytest.raises(
            NoJoulesError, match=r"of which 0 s in stretches of 10 ticks of the meter \(0\.1 s\)"
        ):
            curve.joules(short[:number], minimum_ticks=10)
    assert curve.joules([(2.0, 3.1), (5.0, 6.2)], minimum_ticks=10)[0] == pytest.approx(230)
    with pytest.raises(NoJoulesError, match="meter \\(unknown\\)"):
        counter(np.full(101, 5e5)).joules([(2.0, 7.0)], minimum_ticks=10)


def test_a_tenth_of_a_phase_may_be_in_short_stretches() -> None:
    curve = constant(100, 100)
    long = [(2.0, 11.0)]
    few = long + [(20.0 + start_s, 20.099 + start_s) for start_s in range(10)]
    assert curve.joules(few, minimum_ticks=10)[0] == pytest.approx(900 + 99)
    many = long + [(20.0 + start_s, 20.101 + start_s) for start_s in range(10)]
    with pytest.raises(NoJoulesError, match=r"lasted 10 s, of which 9 s in stretches of 10 ticks"):
        curve.joules(many, minimum_ticks=10)


@pytest.mark.parametrize(
    ("stretch_s", "number", "counted", "known"),
    [
        (0.03, 500, 0.47, False),
        (0.1, 300, 0.66, False),
        (0.2, 150, 0.82, False),
        (0.5, 60, 0.93, False),
        (1.01, 30, 0.96, True),
        (2, 15, 0.98, True),
    ],
)
def test_short_prefills_between_long_decodes_are_right_or_unknown(
    stretch_s: float, number: int, counted: float, *, known: bool
) -> None:
    """Prefills of 400 W, each followed by a second at 150 W: the counter smears them over its tick.

    The shares that are counted are those of docs/energy-method.md.
    """
    every_s = stretch_s + 1.037
    starts_s = 5.0 + every_s * np.arange(number)
    borders_s = np.concatenate([[0.0], np.stack([starts_s, starts_s + stretch_s], axis=1).ravel()])
    powers_w = np.where(np.arange(len(borders_s)) % 2 == 1, 400.0, 150.0)
    ends_s = np.append(borders_s, borders_s[-1] + 10)
    truth_j = np.concatenate([[0.0], np.cumsum(powers_w * np.diff(ends_s))])
    t_s = times(float(ends_s[-1]) - 1, start_s=0.05)
    curve = counter(1e6 + np.interp(np.floor(t_s / 0.1 + 1e-9) * 0.1, ends_s, truth_j), t_s)
    spans = [(float(start_s), float(start_s) + stretch_s) for start_s in starts_s]
    true_j = 400 * stretch_s * number
    joules, uncertainty_j = curve.joules(spans)
    assert joules / true_j == pytest.approx(counted, abs=0.02)
    assert true_j - joules <= uncertainty_j
    if known:
        assert curve.joules(spans, minimum_ticks=10) == (joules, uncertainty_j)
        assert uncertainty_j <= 0.4 * joules
    else:
        with pytest.raises(NoJoulesError, match="in stretches of 10 ticks"):
            curve.joules(spans, minimum_ticks=10)


@pytest.mark.parametrize("method", [Method.NVML_COUNTER, Method.RAPL])
@pytest.mark.parametrize("until_s", [95.0, 60.0])
def test_a_counter_that_stops_in_mid_interval_has_no_joules_there(method: Method, until_s: float) -> None:
    t_s = times(100)
    frozen_j = np.where((t_s > 50) & (t_s < until_s), 200 * 50.0, 200 * t_s)
    curve = counter_curve(t_s, 1e6 + frozen_j, method)
    assert curve is not None
    with pytest.raises(CounterStoodError, match=r"the energy counter stood still for .* s of it"):
        curve.joules([(10.0, 90.0)])
    assert curve.joules([(10.0, 49.0)])[0] == pytest.approx(200 * 39)
    with pytest.raises(StoodStillError):
        curve.joules([(52.0, 58.0)])


@pytest.mark.parametrize(("stood_s", "known"), [(1.9, True), (2.3, False)])
def test_a_counter_may_stand_for_twenty_ticks(stood_s: float, *, known: bool) -> None:
    t_s = times(40)
    curve = counter(1e6 + np.where((t_s > 20) & (t_s < 20 + stood_s), 100 * 20.0, 100 * t_s))
    if known:
        assert curve.joules([(10, 30)])[0] == pytest.approx(2000)
    else:
        with pytest.raises(CounterStoodError):
            curve.joules([(10, 30)])


def test_a_counter_nobody_looked_at_did_not_stand_still() -> None:
    t_s = times(40)
    keep = (t_s < 10) | (t_s > 16)
    assert counter(100 * t_s[keep], t_s[keep]).joules([(2, 38)])[0] == pytest.approx(3600)


def test_no_interval_is_not_zero_joules() -> None:
    with pytest.raises(NoJoulesError, match="lasted 0 s"):
        constant(100, 10).joules([])
    with pytest.raises(NoJoulesError, match="lasted 0 s"):
        constant(100, 10).joules([], minimum_ticks=10)


@pytest.mark.parametrize(
    ("interval", "side"), [((-1.0, 5.0), "begin after"), ((5.0, 11.0), "end before"), ((-9, -5), "begin")]
)
def test_window_beyond_the_samples_is_not_extrapolated(interval: tuple[float, float], side: str) -> None:
    with pytest.raises(NoJoulesError, match=side):
        constant(100, 10).joules([interval])


def test_border_just_outside_the_samples_adds_to_the_uncertainty() -> None:
    joules, uncertainty_j = constant(100, 10).joules([(0, 10.2)])
    assert joules == pytest.approx(1000)
    assert uncertainty_j == pytest.approx(100 * (0.1 + 0.1 + 0.2))


def test_gap_inside_a_window_costs_a_counter_nothing() -> None:
    t_s = times(20)
    keep = (t_s < 8) | (t_s > 11)
    curve = counter(100 * t_s[keep], t_s[keep])
    assert curve.joules([(2, 18)]) == pytest.approx((1600, 20))


def test_border_in_a_gap_is_unknown_and_near_a_short_gap_uncertain() -> None:
    t_s = times(20)
    keep = (t_s < 8) | (t_s > 11)
    with pytest.raises(NoJoulesError, match="around an interval's border"):
        counter(100 * t_s[keep], t_s[keep]).joules([(2, 9)])
    keep = (t_s < 8) | (t_s > 8.45)
    joules, uncertainty_j = counter(100 * t_s[keep], t_s[keep]).joules([(2, 8.2)])
    assert joules == pytest.approx(620)
    assert uncertainty_j == pytest.approx(100 * 0.1 + 100 * 0.3)


def test_gap_in_a_power_integral_adds_to_its_uncertainty_and_voids_it_when_long() -> None:
    t_s = times(40)
    power_w = np.where((t_s > 9.95) & (t_s < 12.05), math.nan, 100.0)
    curve = integral_curve(t_s, power_w)
    assert curve is not None
    joules, uncertainty_j = curve.joules([(1, 39)])
    assert joules == pytest.approx(3800)
    assert uncertainty_j == pytest.approx(2 * 100 * 0.1 + 100 * 2.2)
    assert curve.joules([(15, 39)])[1] == pytest.approx(2 * 100 * 0.1)
    with pytest.raises(NoJoulesError, match="power samples miss"):
        curve.joules([(5, 15)])


@pytest.mark.parametrize("known", [0, 1])
def test_fewer_than_two_readings_are_no_curve(known: int) -> None:
    values = np.full(50, math.nan)
    values[:known] = 5.0
    assert counter_curve(times(4.9), values) is None
    assert integral_curve(times(4.9), values) is None


def test_power_of_zero_watts_is_never_zero_joules_and_an_idle_estimate_may_be() -> None:
    zero_w = np.zeros(101)
    curve = integral_curve(times(10), zero_w)
    assert curve is not None
    with pytest.raises(StoodStillError, match=r"power was 0 W for 5 s"):
        curve.joules([(2, 7)])
    estimate = estimate_curve(times(10), zero_w)
    assert estimate is not None
    assert estimate.joules([(2, 7)])[0] == 0


def test_sawtooth_is_analytic_on_a_counter_and_within_its_bound_as_an_integral() -> None:
    """From 100 to 300 W within each second, and back at once: 200 W on average."""
    t_s = times(30)
    power_w = 100 + 200 * np.mod(t_s + 1e-9, 1)
    whole_j = 100 * t_s + 100 * (np.floor(t_s + 1e-9) + np.mod(t_s + 1e-9, 1) ** 2)
    counted, integrated = counter(whole_j), integral_curve(t_s, power_w)
    assert integrated is not None
    for start_s, stop_s in [(2.0, 22.0), (3.5, 17.2)]:
        true_j = float(np.diff(np.interp([start_s, stop_s], t_s, whole_j))[0])
        assert counted.joules([(start_s, stop_s)])[0] == pytest.approx(true_j)
        joules, uncertainty_j = integrated.joules([(start_s, stop_s)])
        assert abs(joules - true_j) <= uncertainty_j


def test_rapls_counter_is_a_counter_of_its_own_name() -> None:
    curve = counter_curve(times(10), 50 * times(10), Method.RAPL)
    assert curve is not None
    assert curve.method is Method.RAPL
    assert curve.joules([(2, 7)])[0] == pytest.approx(250)
    still = counter_curve(times(10), np.zeros(101), Method.RAPL)
    assert still is not None
    with pytest.raises(StoodStillError, match="counter stood still"):
        still.joules([(2, 7)])


def test_a_sensor_that_takes_a_mean_is_late_by_as_much() -> None:
    curve = integral_curve(times(10), np.full(101, 100.0), averaged_s=1.0)
    assert curve is not None
    assert curve.joules([(2, 7)]) == pytest.approx((500, 2 * 100 * 1.0))


def test_when_a_counter_ran_backwards_is_known() -> None:
    energy_j = 100 * times(20)
    energy_j[100:] -= 900
    assert counter(energy_j).ran_backwards_s == pytest.approx([10.0])
    assert len(constant(100, 20).ran_backwards_s) == 0


def test_many_intervals_are_the_sum_of_each() -> None:
    t_s = times(20)
    curve = counter(1e5 + 100 * t_s + 3 * t_s**2)
    parts = [(1.03, 2.5), (4.0, 4.01), (7.77, 19.0)]
    one_by_one = [curve.joules([part]) for part in parts]
    joules, uncertainty_j = curve.joules(parts)
    assert joules == pytest.approx(sum(part[0] for part in one_by_one))
    assert uncertainty_j == pytest.approx(sum(part[1] for part in one_by_one))


@given(
    powers_w=st.lists(st.floats(1, 1000), min_size=60, max_size=60),
    borders_ms=st.lists(st.integers(0, 6000), min_size=3, max_size=8, unique=True),
    estimated=st.booleans(),
)
def test_energy_of_adjacent_intervals_adds_up(
    powers_w: list[float], borders_ms: list[int], estimated: bool
) -> None:
    t_s = times(6)
    power_w = np.array([math.nan, *powers_w])
    curve = (
        estimate_curve(t_s, power_w)
        if estimated
        else counter(np.concatenate([[7e5], 7e5 + np.cumsum(power_w[1:] * 0.1)]))
    )
    assert curve is not None
    borders_s = [border / 1000 for border in sorted(borders_ms)]
    parts = list(pairwise(borders_s))
    whole_j, _ = curve.joules([(borders_s[0], borders_s[-1])])
    assert sum(curve.joules([part])[0] for part in parts) == pytest.approx(whole_j, abs=1e-3)
    assert curve.joules(parts)[0] == pytest.approx(whole_j, abs=1e-3)


@given(
    powers_w=st.lists(st.floats(1, 1000), min_size=60, max_size=60),
    start_ms=st.integers(0, 3000),
    length_ms=st.integers(1, 3000),
    shift_s=st.floats(-1e5, 1e5),
)
def test_another_zero_of_the_clock_changes_no_joule(
    powers_w: list[float], start_ms: int, length_ms: int, shift_s: float
) -> None:
    t_s = times(6)
    energy_j = np.concatenate([[7e5], 7e5 + np.cumsum(np.array(powers_w) * 0.1)])
    here, there = counter(energy_j, t_s), counter(energy_j, t_s + shift_s)
    span = (start_ms / 1000, (start_ms + length_ms) / 1000)
    moved = (span[0] + shift_s, span[1] + shift_s)
    # A float of 1e5 s has places to 1e-11 s.
    assert there.joules([moved])[0] == pytest.approx(here.joules([span])[0], abs=1e-5)


@given(seed=st.integers(0, 2**32 - 1), tick_s=st.sampled_from([0.02, 0.1, 0.25]), pulse_s=st.floats(0.3, 5))
def test_pulsed_loads_are_within_the_uncertainty_of_counter_and_integral(
    seed: int, tick_s: float, pulse_s: float
) -> None:
    """Powers of 50 to 700 W, a counter that steps out of step with the samples, and samples that jitter."""
    random = np.random.default_rng(seed)
    pulses_w = random.uniform(50, 700, math.ceil(30 / pulse_s) + 1)
    borders_s = np.arange(len(pulses_w) + 1) * pulse_s
    borders_j = np.concatenate([[0.0], np.cumsum(pulses_w * pulse_s)])
    t_s = times(28, start_s=1.0) + random.uniform(-0.01, 0.01, 281)
    phase_s = random.uniform(0, tick_s)
    steps_s = np.floor((t_s - phase_s) / tick_s) * tick_s + phase_s
    counted = counter(1e5 + np.interp(steps_s, borders_s, borders_j), t_s)
    integrated = integral_curve(t_s, pulses_w[(t_s / pulse_s).astype(int)])
    assert integrated is not None
    start_s = random.uniform(3, 10)
    span = (start_s, start_s + random.uniform(2, 15))
    true_j = float(np.diff(np.interp(span, borders_s, borders_j))[0])
    for curve in (counted, integrated):
        joules, uncertainty_j = curve.joules([span])
        assert abs(joules - true_j) <= uncertainty_j


@pytest.mark.parametrize("tick_s", [0.02, 0.1, 0.25])
@pytest.mark.parametrize("pulse_s", [0.05, 0.15, 0.3])
def test_a_lone_short_pulse_at_a_border_is_within_the_uncertainty(tick_s: float, pulse_s: float) -> None:
    """100 W with a pulse of 400 W near one border: the power around it says little of that at it."""
    for phase_s in np.linspace(0, tick_s, 6):
        t_s = times(12, start_s=1.0) + 0.003 * np.sin(np.arange(121))
        steps_s = np.floor((t_s - phase_s) / tick_s) * tick_s + phase_s
        for start_s in np.arange(3.6, 4.4, 0.01):
            borders_s = np.array([0.0, start_s, start_s + pulse_s, 20.0])
            truth_j = np.concatenate([[0.0], np.cumsum(np.array([100, 400, 100]) * np.diff(borders_s))])
            curve = counter(1e5 + np.interp(steps_s, borders_s, truth_j), t_s)
            for span in ((4.021, 8.5), (2.5, 4.021)):
                true_j = float(np.diff(np.interp(span, borders_s, truth_j))[0])
                joules, uncertainty_j = curve.joules([span])
                assert abs(joules - true_j) <= uncertainty_j
