"""The energy curve of one device: joules since its first sample, and what they are over intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shardwatt.readings import Method

Array = NDArray[np.float64]

#: Stretch of time in s, from start to stop, of `time.monotonic()` on node 0.
Interval = tuple[float, float]

#: Methods that read a counter of energy.
COUNTERS = frozenset({Method.NVML_COUNTER, Method.RAPL})

#: Periods that may lie between two samples; more is a gap: around a border there is then no joule to be had.
GAP_PERIODS = 10
#: Periods that a border may lie outside the samples.
_OUTSIDE_PERIODS = 3
#: Share of an interval that may lie in gaps between power samples before their integral is void.
_GAP_SHARE = 0.1
#: Ticks for which a counter may show no step in an interval: no device draws nothing for so long.
_STANDING_TICKS = 20
#: Share of a phase's length that must lie in stretches long enough to be resolved.
_RESOLVED_SHARE = 0.9
#: Of a tick: times in float are no whole multiples of it.
_ROUNDED = 1 - 1e-6


class NoJoulesError(Exception):
    """A curve does not know the joules that it was asked for; the message says why."""


class CounterStoodError(NoJoulesError):
    """A counter of energy stood still for a part of the time: what it shows then is less than was drawn."""


class StoodStillError(NoJoulesError):
    """A meter saw no energy at all, which no device gives it to see."""


@dataclass(frozen=True)
class Curve:
    """Cumulative energy of one device at its samples; between them it runs straight.

    Attributes:
        method: nvml_counter, rapl, power_integral or estimate.
        t_s: [points] times in s, growing.
        energy_j: [points] joules, from the counter's zero or from the first point.
        period_s: median time in s between points.
        tick_s: what a border's place is uncertain by, in s: the median time between steps of the
            counter, or the period, or the time of which a sensor shows the mean; None for a counter that
            never moved.
        open_j: [points] what sampling has left open up to each point, in J; None for none.
    """

    method: Method
    t_s: Array
    energy_j: Array
    period_s: float
    tick_s: float | None
    open_j: Array | None = None

    def joules(self, intervals: Sequence[Interval], minimum_ticks: int = 0) -> tuple[float, float]:
        """Energy over a union of intervals, and its uncertainty; both in J.

        The uncertainty adds up over the borders: of each, what the meter shows from one tick before it to one
        after, samples around included, on the side that shows more. A power integral adds what lies between
        its samples, and power x gap for gaps.

        Args:
            intervals: in order, apart from each other, none empty.
            minimum_ticks: shortest stretch that is resolved, in ticks; nine tenths of the length must lie in
                stretches as long.

        Raises:
            NoJoulesError: the samples do not tell.
        """
        if not intervals:
            raise NoJoulesError("lasted 0 s")
        borders_s = _as_array(intervals)
        lengths_s = borders_s[:, 1] - borders_s[:, 0]
        length_s = float(np.sum(lengths_s))
        if minimum_ticks:
            self._check_resolved(lengths_s, minimum_ticks)
        uncertainty_j = self.at_borders_j(intervals)
        first, last = self._around(borders_s)
        if np.any(self._falls[last] > self._falls[first]):
            raise NoJoulesError("the energy counter ran backwards")
        energy_j = self.rise_j(intervals)
        if self.method is Method.POWER_INTEGRAL:
            uncertainty_j += self._gaps_j(borders_s)
        if self.open_j is not None:
            uncertainty_j += float(np.sum(self.open_j[last] - self.open_j[first]))
        if self.method is not Method.ESTIMATE and energy_j == 0:
            # No device draws nothing: the counter is stuck, or the interval too short for it.
            what = "energy counter stood still" if self.method in COUNTERS else "power was 0 W"
            raise StoodStillError(f"the {what} for {length_s:.3g} s")
        if self.method in COUNTERS:
            self._check_running(borders_s)
        return energy_j, uncertainty_j

    def _check_resolved(self, lengths_s: Array, minimum_ticks: int) -> None:
        """Make sure that hardly any of a phase is in stretches shorter than the meter resolves.

        A meter smears power over its tick, so that of a short stretch a part is always counted beside
        it: over many of them that is an error to one side, which no number of them averages out.
        """
        shortest_s = math.inf if self.tick_s is None else minimum_ticks * self.tick_s * _ROUNDED
        length_s, resolved_s = np.sum(lengths_s), np.sum(lengths_s[lengths_s >= shortest_s])
        if resolved_s < _RESOLVED_SHARE * length_s:
            tick = "unknown" if self.tick_s is None else f"{self.tick_s:.3g} s"
            raise NoJoulesError(
                f"lasted {length_s:.3g} s, of which {resolved_s:.3g} s in stretches of {minimum_ticks} ticks "
                f"of the meter ({tick}) or more; needs {_RESOLVED_SHARE:.0%}"
            )

    def _check_running(self, borders_s: Array) -> None:
        """Make sure that a counter that was looked at moved all through the intervals [intervals, 2]."""
        starts_s, stops_s = self._stands_s
        overlaps_s = np.minimum(stops_s[:, None], borders_s[:, 1]) - np.maximum(
            starts_s[:, None], borders_s[:, 0]
        )
        longest_s = float(np.max(overlaps_s, initial=0.0))
        if longest_s > self._standing_s:
            raise CounterStoodError(f"the energy counter stood still for {longest_s:.3g} s of it")

    @property
    def _standing_s(self) -> float:
        """Time in s for which a counter may stand."""
        return _STANDING_TICKS * max(self.tick_s or 0.0, self.period_s)

    @cached_property
    def _stands_s(self) -> tuple[Array, Array]:
        """[stands] each: from when to when in s a counter showed one value for longer than it may."""
        moved = np.flatnonzero(np.diff(self.energy_j) != 0)
        starts_s = self.t_s[np.concatenate([[0], moved + 1])]
        stops_s = self.t_s[np.concatenate([moved, [len(self.t_s) - 1]])]
        long = stops_s - starts_s > self._standing_s
        return starts_s[long], stops_s[long]

    def rise_j(self, intervals: Sequence[Interval]) -> float:
        """By how much the curve rises over a union of intervals, in J, whatever that is worth."""
        at_borders_j = np.interp(_as_array(intervals), self.t_s, self.energy_j)
        return float(np.sum(at_borders_j[:, 1] - at_borders_j[:, 0]))

    @property
    def ran_backwards_s(self) -> Array:
        """[falls] Times in s of the points at which the counter was less than before."""
        return self.t_s[1:][np.diff(self.energy_j) < 0]

    @cached_property
    def _falls(self) -> NDArray[np.int64]:
        """[points] How often the counter has run backwards up to each point."""
        return np.concatenate([[0], np.cumsum(np.diff(self.energy_j) < 0)])

    def at_borders_j(self, intervals: Sequence[Interval]) -> float:
        """What the places of the intervals' borders leave open together, in J.

        Raises:
            NoJoulesError: a border lies outside the samples, or in a gap between them.
        """
        borders_s = _as_array(intervals).ravel()
        begin_s, end_s = self.t_s[0], self.t_s[-1]
        outside_s = np.maximum(np.maximum(begin_s - borders_s, borders_s - end_s), 0.0)
        far = int(np.argmax(outside_s))
        if outside_s[far] > _OUTSIDE_PERIODS * self.period_s:
            side = "begin after" if borders_s[far] < begin_s else "end before"
            raise NoJoulesError(f"its samples {side} the interval's border, by {outside_s[far]:.3g} s")
        after = np.clip(np.searchsorted(self.t_s, borders_s), 1, len(self.t_s) - 1)
        around_s = self.t_s[after] - self.t_s[after - 1]
        if np.max(around_s) > GAP_PERIODS * self.period_s:
            raise NoJoulesError(f"no sample for {np.max(around_s):.3g} s around an interval's border")
        # What a counter shows at a sample was drawn by then, and holds all drawn a tick before; a sensor may
        # be as late. So the joules at a border lie between what the samples beyond a tick of it show.
        tick_s = (self.tick_s or self.period_s) * _ROUNDED
        near_s = np.clip(borders_s, begin_s, end_s)
        first = np.maximum(np.searchsorted(self.t_s, near_s - tick_s, side="right") - 1, 0)
        last = np.minimum(np.searchsorted(self.t_s, near_s + tick_s), len(self.t_s) - 1)
        at_j = np.interp(near_s, self.t_s, self.energy_j)
        powers_w = (self.energy_j[last] - self.energy_j[first]) / (self.t_s[last] - self.t_s[first])
        # Beyond the samples power is taken to go on.
        before_s = np.maximum(begin_s - (near_s - tick_s), 0.0)
        after_s = np.maximum(near_s + tick_s - end_s, 0.0)
        before_j = at_j - self.energy_j[first] + powers_w * before_s
        after_j = self.energy_j[last] - at_j + powers_w * after_s
        # A side on which the counter fell tells nothing.
        open_j = np.maximum(np.maximum(before_j, after_j) + powers_w * outside_s, 0.0)
        return float(np.sum(open_j))

    def _around(self, borders_s: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """First and last point that bear on each of [intervals, 2]: those around its borders."""
        first = np.searchsorted(self.t_s, borders_s[:, 0], side="right") - 1
        last = np.searchsorted(self.t_s, borders_s[:, 1])
        return np.maximum(first, 0), np.minimum(last, len(self.t_s) - 1)

    def _gaps_j(self, borders_s: Array) -> float:
        """What gaps between power samples leave open in the intervals [intervals, 2], in J."""
        gaps = np.flatnonzero(np.diff(self.t_s) > GAP_PERIODS * self.period_s)
        starts_s, stops_s = self.t_s[gaps, None], self.t_s[gaps + 1, None]
        overlaps_s = np.minimum(stops_s, borders_s[:, 1]) - np.maximum(starts_s, borders_s[:, 0])
        missing_s = np.sum(np.maximum(overlaps_s, 0.0), axis=0)
        void = missing_s > _GAP_SHARE * (borders_s[:, 1] - borders_s[:, 0])
        if np.any(void):
            raise NoJoulesError(f"power samples miss for {np.max(missing_s[void]):.3g} s in an interval")
        inside = np.any(overlaps_s > 0, axis=1)
        return float(np.sum(np.diff(self.energy_j)[gaps[inside]]))


def counter_curve(t_s: Array, counter_j: Array, method: Method = Method.NVML_COUNTER) -> Curve | None:
    """The curve of an energy counter; None with fewer than two readings of it.

    Args:
        t_s, counter_j: [samples] s and J; NaN for unknown.
        method: whose counter it is.
    """
    known = ~np.isnan(counter_j)
    t_s, counter_j = t_s[known], counter_j[known]
    if len(t_s) < 2:
        return None
    steps_s = t_s[1:][np.diff(counter_j) > 0]
    tick_s = float(np.median(np.diff(steps_s))) if len(steps_s) > 1 else None
    return Curve(method, t_s, counter_j, float(np.median(np.diff(t_s))), tick_s)


def integral_curve(t_s: Array, power_w: Array, averaged_s: float = 0.0) -> Curve | None:
    """The integral of sampled power by the trapezoid rule; None with fewer than two samples of it.

    Args:
        t_s, power_w: [samples] s and W; NaN for unknown.
        averaged_s: time in s over which the sensor may take a mean: its power may be so late.
    """
    known = ~np.isnan(power_w)
    t_s, power_w = t_s[known], power_w[known]
    if len(t_s) < 2:
        return None
    spacings_s = np.diff(t_s)
    curve = _sampled(Method.POWER_INTEGRAL, t_s, spacings_s * (power_w[1:] + power_w[:-1]) / 2)
    # Power that goes from one sample's to the next's may do so at once, just after the one or just before
    # the other: half of the way lies open.
    open_j = np.concatenate([[0.0], np.cumsum(spacings_s * np.abs(np.diff(power_w)) / 2)])
    return replace(curve, tick_s=max(curve.period_s, averaged_s), open_j=open_j)


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


def _as_array(intervals: Sequence[Interval]) -> Array:
    """[intervals, 2] Starts and stops."""
    return np.array(intervals, dtype=np.float64).reshape(-1, 2)
