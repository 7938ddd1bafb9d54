"""A few seconds of reading meters while nothing runs: how often they move, in what steps, how they spread."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from shardwatt.power.curve import Array, NoJoulesError, integral_curve
from shardwatt.power.protocol import Sample

#: Reads all devices of a meter once.
Read = Callable[[], Sequence[Sample]]

#: Time in s between looks at counters: short against their ticks, which are a tenth of a second on GPUs.
_LOOK_S = 0.005

#: Time in s over which a counter's power is taken for its spread, and how many of them make one.
_MEAN_S = 1.0
_FEWEST_MEANS = 3

#: A step's time is known where the look before it is at most so many times farther than usual: this process
#: may be kept waiting on a busy machine.
_SHARP = 3


@dataclass(frozen=True, slots=True)
class Spread:
    """Power over the reading; None where the reading does not tell.

    Attributes:
        mean_w: mean in W.
        sd_w: standard deviation in W: of samples, or for a counter of its means over 1 s.
    """

    mean_w: float | None
    sd_w: float | None


class CounterSteps:
    """The steps of an energy counter, as seen by looking often.

    Attributes:
        ran_backwards: whether it ever said less than before.
    """

    def __init__(self) -> None:
        self.ran_backwards = False
        self._looks: list[float] = []
        self._value_j: float | None = None
        # When it was seen to have moved, in s; how long before that it was last looked at; what it then said.
        self._steps: list[tuple[float, float, float]] = []

    def add(self, t_s: float, counter_j: float) -> None:
        """Take note of a look at it: when, in s of `time.monotonic()`, and what it said, in J."""
        if self._value_j is not None and counter_j != self._value_j:
            self.ran_backwards |= counter_j < self._value_j
            self._steps.append((t_s, t_s - self._looks[-1], counter_j))
        self._looks.append(t_s)
        self._value_j = counter_j

    @property
    def moved(self) -> bool:
        """Whether it was ever seen to move."""
        return bool(self._steps)

    @property
    def tick_s(self) -> float | None:
        """Median time in s between steps; never less than that between looks. None with fewer than three."""
        times_s = [t_s for t_s, _, _ in self._steps]
        return float(np.median(np.diff(times_s))) if len(times_s) > 2 else None

    @property
    def is_slower_than_looks(self) -> bool:
        """Whether the tick is the counter's, and not that of looking at it."""
        return self.tick_s is not None and self.tick_s > 2 * self._look_s

    @property
    def step_j(self) -> float | None:
        """Median of its steps in J; None with fewer than three."""
        said_j = [counter_j for _, _, counter_j in self._steps]
        return float(np.median(np.diff(said_j))) if len(said_j) > 2 else None

    @property
    def spread(self) -> Spread:
        """Power from its first step to its last."""
        t_s, counter_j = self._sharp()
        if len(t_s) < 2:
            return Spread(None, None)
        mean_w = float((counter_j[-1] - counter_j[0]) / (t_s[-1] - t_s[0]))
        marks_s = np.arange(t_s[0], t_s[-1], _MEAN_S)
        means_w = np.diff(np.interp(marks_s, t_s, counter_j)) / _MEAN_S
        return Spread(mean_w, float(np.std(means_w, ddof=1)) if len(means_w) >= _FEWEST_MEANS else None)

    def over_integral(self, samples: DeviceSamples) -> float | None:
        """Its joules over the integral of sampled power, from its first step to its last; None if unknown."""
        t_s, counter_j = self._sharp()
        curve = integral_curve(samples.column("t_s"), samples.column("power_w"))
        if len(t_s) < 2 or curve is None:
            return None
        try:
            integral_j, _ = curve.joules([(float(t_s[0]), float(t_s[-1]))])
        except NoJoulesError:
            return None
        return float(counter_j[-1] - counter_j[0]) / integral_j

    @property
    def _look_s(self) -> float:
        """Median time in s between looks."""
        return float(np.median(np.diff(self._looks)))

    def _sharp(self) -> tuple[Array, Array]:
        """Time in s and joules [steps] of the steps whose time is known: looks came close before them."""
        if self.ran_backwards or not self._steps:
            return np.empty(0), np.empty(0)
        most_s = _SHARP * self._look_s
        sharp = [(t_s, counter_j) for t_s, blind_s, counter_j in self._steps if blind_s <= most_s]
        steps = np.array(sharp, dtype=np.float64).reshape(-1, 2)
        return steps[:, 0], steps[:, 1]


@dataclass(slots=True)
class DeviceSamples:
    """The samples of one device, taken as the sampler of a cell does."""

    samples: list[Sample] = field(default_factory=list)

    def column(self, name: str) -> Array:
        """[samples] a field of Sample; NaN for unknown."""
        values = (getattr(sample, name) for sample in self.samples)
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    def mean(self, name: str) -> float | None:
        """Mean of a field; None where it is not known."""
        known = self.column(name)
        known = known[~np.isnan(known)]
        return float(known.mean()) if len(known) else None

    @property
    def spread(self) -> Spread:
        """Power of its samples."""
        known = self.column("power_w")
        known = known[~np.isnan(known)]
        return Spread(self.mean("power_w"), float(np.std(known, ddof=1)) if len(known) > 1 else None)

    @property
    def distances_s(self) -> Array:
        """[samples - 1] Times in s between samples."""
        return np.diff(self.column("t_s"))


@dataclass(slots=True)
class IdleReading:
    """What was read, by the meter's name and the device's index.

    Attributes:
        samples: at the sampler's period.
        steps: of counters, looked at in between.
    """

    samples: dict[tuple[str, int], DeviceSamples] = field(default_factory=lambda: defaultdict(DeviceSamples))
    steps: dict[tuple[str, int], CounterSteps] = field(default_factory=lambda: defaultdict(CounterSteps))


def read_idle(
    meters: Mapping[str, Read], counters: Mapping[str, Read], seconds: float, period_s: float
) -> IdleReading:
    """Read meters as the sampler of a cell does, and look at counters as often as can be in between.

    Args:
        meters: by name; read once a period.
        counters: by name; what is cheap to read, of which only `counter_j` counts.
        seconds: how long, in s.
        period_s: time in s between samples.
    """
    found = IdleReading()
    start_s = time.monotonic()
    tick = 0
    while True:
        for name, read in counters.items():
            for sample in read():
                if sample.counter_j is not None:
                    found.steps[name, sample.device].add(sample.t_s, sample.counter_j)
        now_s = time.monotonic()
        if now_s >= start_s + tick * period_s:
            for name, read in meters.items():
                for sample in read():
                    found.samples[name, sample.device].samples.append(sample)
            # Of one sample nothing could be told: a busy machine may take all the time for the first.
            if tick and now_s - start_s >= seconds:
                return found
            # Deadlines are multiples of the period, as the sampler's; none is caught up with.
            tick = max(tick + 1, int((time.monotonic() - start_s) / period_s) + 1)
        time.sleep(max(min(_LOOK_S, start_s + tick * period_s - time.monotonic()), 0.0))
