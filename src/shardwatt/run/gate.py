"""The gates around the window: rank 0 asks, the supervisor does what must be done there, and answers.

Both are on the first node of the job, so that a file is seen at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from shardwatt.layout import is_there

Gate = Literal["open", "close"]

_POLL_S = 0.02


def pass_gate(work: Path, gate: Gate) -> tuple[float, float]:
    """Ask for a gate and wait until it is open; called by rank 0.

    Without end: a supervisor that is gone, or wants the ranks to end, ends this process.

    Returns:
        When it asked and when it went through, in s of `time.monotonic()`.
    """
    asked_s = time.monotonic()
    _asked(work, gate).touch()
    while not is_there(_answered(work, gate)):
        time.sleep(_POLL_S)
    return asked_s, time.monotonic()


class Gates:
    """The supervisor's side.

    Args:
        work: the cell's work folder.
        actions: what is done at each gate before it opens.
    """

    def __init__(self, work: Path, actions: Mapping[Gate, Callable[[], None]]) -> None:
        self._work = work
        self._waiting = dict(actions)

    def look(self) -> None:
        """Open the gates that rank 0 has asked for since."""
        for gate in list(self._waiting):
            if _asked(self._work, gate).exists():
                self._waiting.pop(gate)()
                _answered(self._work, gate).touch()


def _asked(work: Path, gate: Gate) -> Path:
    return work / f"gate-{gate}.asked"


def _answered(work: Path, gate: Gate) -> Path:
    return work / f"gate-{gate}.open"
