"""From the real time of a simulated cell to the planned one: its window is stretched, its power unchanged.

Meters are judged in real time: their ticks, gaps and borders are those of the seconds in which they were
read. What they give of the window is then stretched with it, joules like seconds. What lies around the
window is real time and stays: nothing was loaded there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shardwatt.cellfiles import Column
from shardwatt.power.curve import Array
from shardwatt.readings import DeviceEnergy, Energy, Idle, Mean, Part, Reading, Utilisation
from shardwatt.records import Timings
from shardwatt.run.exchange import BatchRun, RunReport

#: Parts of the window that have readings of their own.
_PHASES = ("prefill", "walk", "decode", "between")

#: What says that a real window is too short for real counters.
_SHORT = "short_window"

_UNKNOWN = Mean(mean=None, max=None)

#: What simulated or replayed devices say of themselves beside power and temperature is nobody's plan.
_MEANINGLESS = (
    "sm_utilisation",
    "memory_activity",
    "memory_filled",
    "cpu_utilisation",
    "clock_sm_mhz",
    "clock_memory_mhz",
)


@dataclass(frozen=True, slots=True)
class Stretch:
    """How the real time of a cell becomes the planned one.

    Attributes:
        lapse: planned time of the window over real time.
        window_s: real time of the window.
        planned: utilisation by the plan, by its name in a record.
    """

    lapse: float
    window_s: float
    planned: Mapping[str, Mean] = field(default_factory=dict)

    def report(self, report: RunReport) -> RunReport:
        """What rank 0 reported, its window and batches stretched from when the window began."""

        def moved(time_s: float) -> float:
            return report.window_start_s + self.lapse * (time_s - report.window_start_s)

        batches = moved_runs(report.batches, moved)
        return report.model_copy(update={"window_stop_s": moved(report.window_stop_s), "batches": batches})

    def timings(self, timings: Timings) -> Timings:
        """Durations of a cell: those of the window stretched, and the job's by as much as it."""
        inside = ("duration_s", *(f"{phase}_s" for phase in _PHASES))
        changed = {name: self.lapse * getattr(timings, name) for name in inside}
        job_duration_s = timings.job_duration_s + self._added(timings.duration_s)
        return timings.model_copy(update={**changed, "job_duration_s": job_duration_s})

    def energy(self, energy: Energy) -> Energy:
        """Readings of a cell: those of the window and its phases stretched, and the job's by as much."""
        inside = ("window", "window_rank0_scaled", "window_dcgm", *_PHASES)
        return energy.model_copy(
            update={
                **{name: self._reading(getattr(energy, name)) for name in inside},
                "job": self._job(energy.job, energy.window),
                "devices": [self._device(device) for device in energy.devices],
                "idle_unloaded": self._idle(energy.idle_unloaded),
                "idle_loaded": self._idle(energy.idle_loaded),
                "violations": [found for found in energy.violations if found.code != _SHORT],
            }
        )

    def utilisation(self, utilisation: Utilisation) -> Utilisation:
        """How busy devices were that computed nothing: as the plan says; what it does not say is unknown."""
        return utilisation.model_copy(update={**dict.fromkeys(_MEANINGLESS, _UNKNOWN), **self.planned})

    def batches(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows of batches.parquet: their times and joules stretched; what is null stays so."""
        return [
            {
                name: self.lapse * value if name.endswith(("_s", "_j")) and value is not None else value
                for name, value in row.items()
            }
            for row in rows
        ]

    def samples(self, parts: Iterable[Mapping[str, Column]]) -> Iterator[dict[str, Column]]:
        """Parts of power.parquet: those of the window stretched, counters by as much as time.

        Args:
            parts: columns whose `t_s` counts from when the window began, in real s.
        """
        for part in parts:
            times_s, counter_j = part["t_s"], part["counter_j"]
            assert isinstance(times_s, np.ndarray), "a column of a trace"
            assert isinstance(counter_j, np.ndarray), "a column of a trace"
            inside_s = np.clip(times_s, 0.0, self.window_s)
            unknown = np.full(len(times_s), np.nan)
            yield {
                **part,
                **dict.fromkeys(_MEANINGLESS, unknown),
                "t_s": times_s + self._added(1.0) * inside_s,
                "counter_j": counter_j + self._added(1.0) * _risen(times_s, counter_j, inside_s),
            }

    def _added(self, amount: float) -> float:
        """What stretching adds to an amount of the window."""
        return (self.lapse - 1) * amount

    def _reading(self, reading: Reading) -> Reading:
        return reading.model_copy(
            update={name: self._times(getattr(reading, name)) for name in ("joules", "uncertainty_j")}
        )

    def _job(self, job: Reading | Part, window: Reading | Part) -> Any:
        """A reading of the job, and the same of a device: what the window gains is the job's too."""
        if job.joules is None or window.joules is None:
            return job
        uncertainty_j = job.uncertainty_j
        if uncertainty_j is not None and window.uncertainty_j is not None:
            uncertainty_j += max(self._added(window.uncertainty_j), 0.0)
        joules = job.joules + self._added(window.joules)
        return job.model_copy(update={"joules": joules, "uncertainty_j": uncertainty_j})

    def _device(self, device: DeviceEnergy) -> DeviceEnergy:
        parts = {name: getattr(device, name) for name in ("window", *_PHASES)}
        stretched = {
            name: part.model_copy(
                update={"joules": self._times(part.joules), "uncertainty_j": self._times(part.uncertainty_j)}
            )
            for name, part in parts.items()
        }
        job, integral_j = self._job(device.job, device.window), self._times(device.integral_j)
        return device.model_copy(update={**stretched, "job": job, "integral_j": integral_j})

    def _idle(self, idle: Idle) -> Idle:
        """Idle power is power; what is net of it is of the window."""
        return idle.model_copy(
            update={
                "net_j": self._times(idle.net_j),
                "net_uncertainty_j": self._times(idle.net_uncertainty_j),
            }
        )

    def _times(self, value: float | None) -> float | None:
        return None if value is None else self.lapse * value


def moved_runs(runs: Iterable[BatchRun], moved: Callable[[float], float]) -> list[BatchRun]:
    """Batches at other times, given what becomes of a time in s."""
    return [
        run.model_copy(
            update={
                "start_s": moved(run.start_s),
                "stop_s": moved(run.stop_s),
                "phases": [
                    phase.model_copy(update={"start_s": moved(phase.start_s), "stop_s": moved(phase.stop_s)})
                    for phase in run.phases
                ],
            }
        )
        for run in runs
    ]


def _risen(times_s: Array, counter_j: Array, inside_s: Array) -> Array:
    """[samples] By how much a counter has risen in the window, up to times within it; NaN where unknown.

    Args:
        times_s, counter_j: [samples] since the window began, in real s, and J; NaN for unknown.
        inside_s: [samples] the times, those outside of the window moved to its borders.
    """
    known = ~np.isnan(counter_j)
    if not known.any():
        return counter_j
    at_j: Array = np.interp(np.append(0.0, inside_s), times_s[known], counter_j[known])
    risen_j: Array = at_j[1:] - at_j[0]
    return risen_j
