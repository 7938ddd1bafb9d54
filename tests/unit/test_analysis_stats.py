"""Intervals against values worked out elsewhere."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from shardwatt.analysis.stats import jackknife_interval, repeats_interval, t_quantile


@pytest.mark.parametrize(
    ("degrees", "expected"),
    # Printed tables of Student's t (NIST e-Handbook; Abramowitz and Stegun, table 26.10).
    [(1, 12.706), (2, 4.303), (10, 2.228), (30, 2.042), (40, 2.021), (60, 2.000), (120, 1.980)],
)
def test_t_quantiles_are_those_of_the_printed_tables(degrees: int, expected: float) -> None:
    assert t_quantile(degrees) == pytest.approx(expected, abs=5e-4)


def test_t_quantile_falls_towards_the_normal_one_without_a_step() -> None:
    quantiles = [t_quantile(degrees) for degrees in range(1, 2000)]
    assert all(after <= before for before, after in pairwise(quantiles))
    assert quantiles[-1] == pytest.approx(1.9600, abs=2e-3)


def test_no_degree_of_freedom_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile(0)


def test_three_repeats_by_hand() -> None:
    # mean 12, standard deviation 2, standard error 2/sqrt(3), t 4.303
    interval = repeats_interval([10.0, 12.0, 14.0])
    assert interval is not None
    half = 4.303 * 2 / math.sqrt(3)
    assert (interval.low, interval.high) == pytest.approx((12 - half, 12 + half))
    assert interval.n == 3


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0]])
def test_fewer_than_three_repeats_have_no_interval(values: list[float]) -> None:
    assert repeats_interval(values) is None


def test_jackknife_of_a_ratio_by_hand() -> None:
    interval = jackknife_interval([10.0, 20.0, 33.0], [1.0, 2.0, 3.0])
    assert interval is not None
    left_out = [math.log(53 / 5), math.log(43 / 4), math.log(30 / 3)]
    centre = sum(left_out) / 3
    error = math.sqrt(2 / 3 * sum((value - centre) ** 2 for value in left_out))
    assert interval.low == pytest.approx(63 / 6 * math.exp(-4.303 * error))
    assert interval.high == pytest.approx(63 / 6 * math.exp(4.303 * error))


def test_jackknife_with_small_differences_is_nearly_the_interval_of_the_mean() -> None:
    # For a plain mean the jackknife's standard error is exactly s / sqrt(n); the logarithm bends little here.
    values = [100.0, 101.0, 99.5, 100.5]
    jackknife, mean = jackknife_interval(values, [1.0] * 4), repeats_interval(values)
    assert jackknife is not None
    assert mean is not None
    assert (jackknife.low, jackknife.high) == pytest.approx((mean.low, mean.high), rel=1e-3)


def test_jackknife_stays_above_zero_where_batches_differ_widely() -> None:
    interval = jackknife_interval([1.0, 1.0, 60.0], [1.0, 1.0, 1.0])
    assert interval is not None
    assert 0 < interval.low < 62 / 3 < interval.high


def test_jackknife_wants_three_batches_and_denominators_above_zero() -> None:
    assert jackknife_interval([1.0, 2.0], [1.0, 1.0]) is None
    assert jackknife_interval([1.0, 2.0, 3.0], [0.0, 0.0, 1.0]) is None
    assert jackknife_interval([0.0, 0.0, 3.0], [1.0, 1.0, 1.0]) is None
    assert jackknife_interval([], []) is None
