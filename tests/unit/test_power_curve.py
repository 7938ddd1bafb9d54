"""Energy arithmetic of one device against analytic values."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.power.curve import Array, Curve, NoJoulesError, counter_curve, estimate_curve, integral_curve

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
    with pytest.raises(NoJoulesError, match="stood still"):
        counter(np.full(101, 5e5)).joules([interval])


def test_phase_under_its_ticks_is_unknown() -> None:
    curve = constant(100, 20)
    parts = [(2.0, 2.4), (5.0, 5.4)]
    assert curve.joules(parts)[0] == pytest.approx(80)
    with pytest.raises(NoJoulesError, match=r"lasted 0\.8 s; needs 10 ticks"):
        curve.joules(parts, minimum_ticks=10)
    assert curve.joules([(2.0, 2.4), (5.0, 5.7)], minimum_ticks=10)[0] == pytest.approx(110)


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
    assert uncertainty_j == pytest.approx(100 * 0.1 + 100 * 0.6)


def test_gap_in_a_power_integral_adds_to_its_uncertainty_and_voids_it_when_long() -> None:
    t_s = times(40)
    power_w = np.where((t_s > 9.95) & (t_s < 12.05), math.nan, 100.0)
    curve = integral_curve(t_s, power_w)
    assert curve is not None
    joules, uncertainty_j = curve.joules([(1, 39)])
    assert joules == pytest.approx(3800)
    assert uncertainty_j == pytest.approx(2 * 100 * 0.1 + 100 * 2.2)
    with pytest.raises(NoJoulesError, match="power samples miss"):
        curve.joules([(5, 15)])


@pytest.mark.parametrize("known", [0, 1])
def test_fewer_than_two_readings_are_no_curve(known: int) -> None:
    values = np.full(50, math.nan)
    values[:known] = 5.0
    assert counter_curve(times(4.9), values) is None
    assert integral_curve(times(4.9), values) is None


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
