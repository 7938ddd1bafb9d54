"""Showing how far a cell is: rich on a terminal, one plain heartbeat line every 30 s elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from shardwatt.run.exchange import read_progress

#: Time in s between two heartbeat lines.
HEARTBEAT_S = 30.0

#: Time in s between two updates on a terminal: what is shown is not written more often.
REFRESH_S = 1.0

log = logging.getLogger(__name__)


class ProgressDisplay:
    """Shows a cell's progress until it is left.

    Args:
        work: the cell's work folder, where rank 0 keeps its progress.
        name: the cell, as shown.
        prompts: how many there are to answer.
        power_w: gives the power of this node's devices in W, None where unknown.
        estimated: whether that power is an estimate.
    """

    def __init__(
        self,
        work: Path,
        *,
        name: str,
        prompts: int,
        power_w: Callable[[], float | None],
        estimated: bool,
    ) -> None:
        self._work = work
        self._name = name
        self._prompts = prompts
        self._power_w = power_w
        self._estimated = estimated
        self._beaten_s = self._refreshed_s = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> ProgressDisplay:
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=self._prompts, speed="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def look(self) -> None:
        """Bring the display up to date; writes a heartbeat line when one is due."""
        now_s = time.monotonic()
        due = now_s - self._beaten_s >= HEARTBEAT_S
        stale = self._bar is not None and now_s - self._refreshed_s >= REFRESH_S
        if not due and not stale:
            return
        progress = read_progress(self._work)
        stage = "start" if progress is None else progress.stage
        done = 0 if progress is None else progress.prompts_done
        generated = 0 if progress is None else progress.generated_tokens
        elapsed_s = 0.0 if progress is None else now_s - progress.since_s
        speed = describe_speed(
            prompts_done=done,
            prompts=self._prompts,
            generated_tokens=generated,
            elapsed_s=elapsed_s,
            power_w=self._power_w(),
            estimated=self._estimated,
        )
        if self._bar is not None:
            self._refreshed_s = now_s
            self._bar.update(self._task, completed=done, description=stage, speed=speed)
        if due:
            self._beaten_s = now_s
            log.info("heartbeat: %s: %s: %s", self._name, stage, speed)


def describe_speed(
    *,
    prompts_done: int,
    prompts: int,
    generated_tokens: int,
    elapsed_s: float,
    power_w: float | None,
    estimated: bool,
) -> str:
    """One line: prompts and tokens done, tokens/s, W, time to go; what is not known yet is a dash."""
    rate = f"{generated_tokens / elapsed_s:.1f}" if generated_tokens and elapsed_s else "-"
    watts = "-" if power_w is None else f"{power_w:.0f}{' (estimated)' if estimated else ''}"
    eta = "-"
    if prompts_done:
        eta = f"{elapsed_s * (prompts - prompts_done) / prompts_done:.0f} s"
    return (
        f"{prompts_done}/{prompts} prompts, {generated_tokens} tokens generated, "
        f"{rate} tokens/s, {watts} W, ETA {eta}"
    )
