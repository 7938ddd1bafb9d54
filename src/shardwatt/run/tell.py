"""Rank 0 tells how far it is, from a thread of its own: a slow file system must not show in the window."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

from shardwatt.run.exchange import Progress, Stage, write_progress

#: Time in s between two progress files.
PERIOD_S = 1.0


class Teller:
    """Writes the progress file about once a second until it is stopped or the process ends.

    Attributes:
        generated_tokens: in this stage so far; whoever counts adds to it.
        prompts_done: in this stage so far, likewise.
    """

    def __init__(self, work: Path) -> None:
        self.generated_tokens = 0
        self.prompts_done = 0
        self._work = work
        self._stage: tuple[Stage, float] = ("load", time.monotonic())
        self._stopped = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._tell, name="teller", daemon=True).start()

    def begin(self, stage: Stage) -> None:
        self._stage = (stage, time.monotonic())

    def stop(self) -> None:
        self._stopped.set()

    def _tell(self) -> None:
        while not self._stopped.is_set():
            stage, since_s = self._stage
            progress = Progress(
                stage=stage,
                generated_tokens=self.generated_tokens,
                prompts_done=self.prompts_done,
                since_s=since_s,
            )
            # A display that cannot be written ends no cell.
            with contextlib.suppress(OSError):
                write_progress(self._work, progress)
            self._stopped.wait(PERIOD_S)
