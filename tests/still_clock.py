"""A clock in the place of a module's `time`, so that how busy the machine is changes nothing."""

from __future__ import annotations


class StillClock:
    """Stands still but for pauses, and for what a test adds.

    Args:
        long: how many times as long as asked each pause lasts.

    Attributes:
        now_s: what `monotonic` says, in s.
        pauses_s: the pauses that were asked for, in s.
    """

    def __init__(self, long: float = 1.0) -> None:
        self.now_s = 1000.0
        self.pauses_s: list[float] = []
        self._long = long

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self.now_s += self._long * pause_s
