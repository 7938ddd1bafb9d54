"""When the phases of a cell were: the stretches of time that rank 0 noted."""

from __future__ import annotations

from collections.abc import Sequence

from shardwatt.engine.protocol import PhaseName
from shardwatt.power.curve import Interval
from shardwatt.run.exchange import BatchRun, RunReport

PHASES: tuple[PhaseName, ...] = ("prefill", "walk", "decode")


def window_of(report: RunReport) -> Interval:
    """The inference run, barrier to barrier."""
    return report.window_start_s, report.window_stop_s


def phase_of_batch(run: BatchRun, phase: PhaseName) -> list[Interval]:
    """When one batch was in a phase."""
    return [(p.start_s, p.stop_s) for p in run.phases if p.name == phase]


def phase_of(report: RunReport, phase: PhaseName) -> list[Interval]:
    """When any batch was in a phase."""
    return [span for run in report.batches for span in phase_of_batch(run, phase)]


def job_of(report: RunReport, span: Interval, settle_s: float) -> list[Interval]:
    """The job without the waits for the loaded baseline and for DCGM: only who measures pays for those.

    Args:
        report: what rank 0 measured.
        span: from before the ranks were started to after the last one ended.
        settle_s: time in s that the devices had been left alone before the baseline was read.
    """
    waits = list(report.gate_waits)
    if report.idle_loaded is not None:
        waits.append((report.idle_loaded[0] - settle_s, report.idle_loaded[1]))
    return _without(span, waits)


def between(report: RunReport) -> list[Interval]:
    """The parts of the window that belong to no phase."""
    return _without(window_of(report), [(p.start_s, p.stop_s) for run in report.batches for p in run.phases])


def length_s(spans: Sequence[Interval]) -> float:
    """How long spans are together, in s."""
    return sum(stop - start for start, stop in spans)


def _without(whole: Interval, parts: Sequence[Interval]) -> list[Interval]:
    """What is left of a stretch of time without parts of it that lie apart from each other."""
    borders = [whole[0], *(border for part in sorted(parts) for border in part), whole[1]]
    return [(start, stop) for start, stop in zip(borders[::2], borders[1::2], strict=True) if stop > start]
