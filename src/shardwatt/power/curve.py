"""The energy curve of one device: joules since its first sample, and what they are over intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shardwatt.records import Method

Array = NDArray[np.float64]

#: Stretch of time in s, from start to stop, of `time.monotonic()` on node 0.
Interval = tuple[float, float]

#: Periods that may lie between the samples around a border; with more there is no joule to be had.
_BORDER_PERIODS = 10
#: Periods that a border may lie outside the samples.
_OUTSIDE_PERIODS = 3
#: Share of a window that may lie in gaps between power samples before their integral is void.
_GAP_SHARE = 0.1
#: Ticks on each side of a border over which the power at it is taken.
_LOCAL_TICKS = 10


class NoJoulesError(Exception):
    """A curve does not know the joules that it was asked for; the message says why."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Cumulative energy of one device at its samples; between them it runs straight.

    Attributes:
        method: nvml_counter, power_integral or estimate.
        t_s: [points] times in s, growing.
        energy_j: [points] joules, from the counter's zero or from the first point.
        period_s: median time in s between points.
        tick_s: what a border's place is uncertain by, in s: the median time between steps of the
            counter, or the period; None for a counter that never moved.
    """

    method: Method
    t_s: Array
    energy_j: Array
    period_s: float
    tick_s: float | None

    def joules(self, intervals: Sequence[Interval], minimum_ticks: int = 0) -> tuple[float, float]:
        """Energy over a union of intervals, and its uncertainty; both in J.

        The uncertainty is a bound that adds up over the borders: power x tick each, with the power the
        higher of the two sides, and the time between the samples around it where that is longer. Gaps
        in a power integral add power x gap.

        Args:
            intervals: in order, apart from each other, none empty.
            minimum_ticks: shortest total length that is resolved.

        Raises:
            NoJoulesError: the samples do not tell.
        """
        length_s = sum(stop - start for start, stop in intervals)
        if minimum_ticks and (self.tick_s is None or length_s < minimum_ticks * self.tick_s):
            tick = "unknown" if self.tick_s is None else f"{self.tick_s:.3g} s"
            raise NoJoulesError(f"lasted {length_s:.3g} s; needs {minimum_ticks} ticks of the meter ({tick})")
        if not intervals:
            raise NoJoulesError("lasted 0 s")
        energy_j = uncertainty_j = 0.0
        for interval in intervals:
            part_j, part_uncertainty_j = self._over(interval)
            energy_j += part_j
            uncertainty_j += part_uncertainty_j
        if self.method is Method.NVML_COUNTER and energy_j == 0:
            # No device draws nothing: the counter is stuck, or the interval too short for it.
            raise NoJoulesError(f"the energy counter stood still for {length_s:.3g} s")
        return energy_j, uncertainty_j

    def _over(self, interval: Interval) -> tuple[float, float]:
        # First and last point that bear on the interval: those around its borders.
        first = max(int(np.searchsorted(self.t_s, interval[0], side="right")) - 1, 0)
        last = min(int(np.searchsorted(self.t_s, interval[1], side="left")), len(self.t_s) - 1)
        if np.any(np.diff(self.energy_j[first : last + 1]) < 0):
            raise NoJoulesError("the energy counter ran backwards")
        start_j, stop_j = np.interp(interval, self.t_s, self.energy_j)
        uncertainty_j = sum(self._border_j(border_s) for border_s in interval)
        if self.method is Method.POWER_INTEGRAL:
            uncertainty_j += self._gaps_j(interval, first, last)
        return float(stop_j - start_j), uncertainty_j

    def _border_j(self, border_s: float) -> float:
        """What the place of one border leaves open, in J."""
        outside_s = max(float(self.t_s[0]) - border_s, border_s - float(self.t_s[-1]), 0.0)
        if outside_s > _OUTSIDE_PERIODS * self.period_s:
            side = "begin after" if border_s < self.t_s[0] else "end before"
            raise NoJoulesError(f"its samples {side} the interval's border, by {outside_s:.3g} s")
        after = min(max(int(np.searchsorted(self.t_s, border_s)), 1), len(self.t_s) - 1)
        around_s = float(self.t_s[after] - self.t_s[after - 1])
        if around_s > _BORDER_PERIODS * self.period_s:
            raise NoJoulesError(f"no sample for {around_s:.3g} s around an interval's border")
        tick_s = max(self.tick_s or 0.0, around_s)
        near_s = _LOCAL_TICKS * tick_s
        times = np.clip([border_s - near_s, border_s, border_s + near_s], self.t_s[0], self.t_s[-1])
        risen_j, passed_s = np.diff(np.interp(times, self.t_s, self.energy_j)), np.diff(times)
        power_w = float(np.max(risen_j[passed_s > 0] / passed_s[passed_s > 0]))
        return max(power_w, 0.0) * (tick_s + outside_s)

    def _gaps_j(self, interval: Interval, first: int, last: int) -> float:
        """What gaps between power samples leave open, in J."""
        times = np.clip(self.t_s[first : last + 1], *interval)
        spacing_s = np.diff(self.t_s[first : last + 1])
        gaps = spacing_s > _BORDER_PERIODS * self.period_s
        missing_s = float(np.sum(np.diff(times)[gaps]))
        if missing_s > _GAP_SHARE * (interval[1] - interval[0]):
            raise NoJoulesError(f"power samples miss for {missing_s:.3g} s in an interval")
        return float(np.sum(np.diff(self.energy_j[first : last + 1])[gaps]))


def counter_curve(t_s: Array, counter_j: Array) -> Curve | None:
    """The curve of an energy counter; None with fewer than two readings of it.

    Args:
        t_s, counter_j: [samples] s and J; NaN for unknown.
    """
    known = ~np.isnan(counter_j)
    t_s, counter_j = t_s[known], counter_j[known]
    if len(t_s) < 2:
        return None
    steps_s = t_s[1:][np.diff(counter_j) > 0]
    tick_s = float(np.median(np.diff(steps_s))) if len(steps_s) > 1 else None
    return Curve(Method.NVML_COUNTER, t_s, counter_j, float(np.median(np.diff(t_s))), tick_s)


def integral_curve(t_s: Array, power_w: Array) -> Curve | None:
    """The integral of sampled power by the trapezoid rule; None with fewer than two samples of it.

    Args:
        t_s, power_w: [samples] s and W; NaN for unknown.
    """
    known = ~np.isnan(power_w)
    t_s, power_w = t_s[known], power_w[known]
    if len(t_s) < 2:
        return None
    parts_j = np.diff(t_s) * (power_w[1:] + power_w[:-1]) / 2
    return _sampled(Method.POWER_INTEGRAL, t_s, parts_j)


def estimate_curve(t_s: Array, power_w: Array) -> Curve | None:
    """The integral of powers that are each the mean since the sample before.

    Args:
        t_s, power_w: [samples] s and W; NaN for unknown, as at the first sample.

    Returns:
        The curve from the first sample on; None with fewer than two samples.
    """
    known = ~np.isnan(power_w)
    known[:1] = True
    t_s, power_w = t_s[known], power_w[known]
    if len(t_s) < 2:
        return None
    return _sampled(Method.ESTIMATE, t_s, np.diff(t_s) * power_w[1:])


def _sampled(method: Method, t_s: Array, parts_j: Array) -> Curve:
    period_s = float(np.median(np.diff(t_s)))
    energy_j = np.concatenate([[0.0], np.cumsum(parts_j)])
    return Curve(method, t_s, energy_j, period_s, period_s)
