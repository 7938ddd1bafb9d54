"""Intervals: Student's t over repeats, and the delete-one jackknife over the batches of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

#: Probability that an interval is made for.
CONFIDENCE = 0.95

#: Fewest repeats, or batches, from which an interval is made.
FEWEST = 3

#: 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom (NIST/SEMATECH e-Handbook of
#: Statistical Methods, section 1.3.6.7.2).
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95 % interval, in the unit of what it was made from, and the number of values behind it."""

    low: float
    high: float
    n: int


def t_quantile(degrees: int) -> float:
    """97.5 % quantile of Student's t: the half-width of a 95 % interval in standard errors.

    Tabled to 30 degrees of freedom; above, the expansion about the normal quantile (Abramowitz and
    Stegun 1964, 26.7.5), there right to four decimals.

    Raises:
        ValueError: there is no degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom; expected at least 1")
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / degrees + second / degrees**2


def repeats_interval(values: Sequence[float]) -> Interval | None:
    """Student's t interval of the mean of independent repeats; None for fewer than three."""
    count = len(values)
    if count < FEWEST:
        return None
    half = t_quantile(count - 1) * stdev(values) / math.sqrt(count)
    mean = fmean(values)
    return Interval(mean - half, mean + half, count)


def jackknife_interval(numerators: Sequence[float], denominators: Sequence[float]) -> Interval | None:
    """Interval of the ratio of sums, from leaving out one batch at a time; None for fewer than three.

    The ratio is R = sum(numerators) / sum(denominators); R_i is the same without batch i. The standard
    error is sqrt((n - 1) / n * sum((L_i - mean(L_i))^2)) (Efron and Tibshirani 1993, chapter 11) over
    L_i = log(R_i), taken times Student's t of n - 1 degrees of freedom: on the logarithm, because these
    quantities are above zero and their interval must be too. None where a sum without one batch is zero.

    It says how far batches of one run differ, nothing about what another run would give.
    """
    count = len(numerators)
    if count < FEWEST or len(denominators) != count:
        return None
    above, below = math.fsum(numerators), math.fsum(denominators)
    if any(below - part <= 0 for part in denominators) or any(above - part <= 0 for part in numerators):
        return None
    left_out = [
        math.log((above - top) / (below - bottom))
        for top, bottom in zip(numerators, denominators, strict=True)
    ]
    centre = fmean(left_out)
    error = math.sqrt((count - 1) / count * math.fsum((value - centre) ** 2 for value in left_out))
    factor = math.exp(t_quantile(count - 1) * error)
    return Interval(above / below / factor, above / below * factor, count)


def paired_ratio_half(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Half of the 95 % interval of sum(numerators) / sum(denominators) over pairs; None for fewer than three.

    With R the ratio, the standard error is sqrt(sum((a_i - R b_i)^2) / (n (n - 1))) / mean(b), taken times
    Student's t of n - 1 degrees of freedom (ratio estimator: Cochran 1977, section 2.11). What a pair has in
    common, such as its GPUs, is not in it.
    """
    count = len(numerators)
    if count < FEWEST or len(denominators) != count or fmean(denominators) == 0:
        return None
    ratio = fmean(numerators) / fmean(denominators)
    squares = math.fsum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    return t_quantile(count - 1) * math.sqrt(squares / (count * (count - 1))) / fmean(denominators)


def unpaired_ratio_half(numerators: Sequence[float], denominators: Sequence[float]) -> float | None:
    """Half of the 95 % interval of mean(numerators) / mean(denominators) of independent values.

    To first order, the squared relative errors of both means add up; degrees of freedom after Welch (1947),
    rounded down. None for fewer than three of either.
    """
    if min(len(numerators), len(denominators)) < FEWEST:
        return None
    means = [fmean(values) for values in (numerators, denominators)]
    if 0 in means:
        return None
    parts = [
        (stdev(values) / mean) ** 2 / len(values)
        for values, mean in zip((numerators, denominators), means, strict=True)
    ]
    if sum(parts) == 0:
        return 0.0
    degrees = sum(parts) ** 2 / (
        parts[0] ** 2 / (len(numerators) - 1) + parts[1] ** 2 / (len(denominators) - 1)
    )
    return abs(means[0] / means[1]) * t_quantile(math.floor(degrees)) * math.sqrt(sum(parts))
