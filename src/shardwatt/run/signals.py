"""Signals that end a cell: the first one ends it cleanly, later ones do not disturb the clean end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """A signal asked this process to end. No `Exception`: libraries catch and drop those."""


class EndingSignals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP raises `Ended`; later ones do nothing.

    What was ignored before, as under nohup, stays ignored.
    """

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Callable[..., object] | int | None] = {}
        self._received: signal.Signals | None = None
        self._held = False

    def __enter__(self) -> EndingSignals:
        for number in _ENDING:
            before = signal.getsignal(number)
            if before is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._end)
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def hold(self) -> None:
        """From now on, let nothing interrupt: what has begun is finished."""
        self._held = True

    def release(self) -> None:
        """Heed signals again.

        Raises:
            Ended: one came meanwhile, or before.
        """
        self._held = False
        self.check()

    def check(self) -> None:
        """Raise again what a signal raised where it could not be passed on, as in a destructor.

        Raises:
            Ended: a signal has come.
        """
        if self._received is not None and not self._held:
            raise Ended(self._received.name)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._received is None:
            self._received = signal.Signals(number)
            self.check()
