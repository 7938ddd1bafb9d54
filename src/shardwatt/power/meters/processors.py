"""What the kernel tells of a node's processors and memory: how busy, how full, and their name."""

from __future__ import annotations

import math
import platform
import time
from pathlib import Path

import psutil

#: Time in s between two looks beside a counter: each costs as much as a GPU's sample.
BESIDE_S = 0.95


class Processors:
    """How busy the processors of this machine are and how full its memory is, other processes included.

    Args:
        every_s: shortest time in s between two looks; a read before that knows nothing.
    """

    def __init__(self, every_s: float = 0.0) -> None:
        self._every_s = every_s
        self._looked_s = -math.inf
        self._times: tuple[float, float] | None = None

    def read(self) -> tuple[float | None, float | None]:
        """Busy share of all processors, the mean over the time since the look before, which the first does
        not know; and the share of the machine's memory that is in use."""
        now_s = time.monotonic()
        if now_s - self._looked_s < self._every_s:
            return None, None
        self._looked_s = now_s
        memory = psutil.virtual_memory()
        return self._busy_share(), 1 - memory.available / memory.total

    def _busy_share(self) -> float | None:
        """Busy share of the time since the last call that knew one; None where no time was counted."""
        busy_s, total_s = _busy_and_total_s()
        if self._times is None:
            self._times = (busy_s, total_s)
            return None
        passed_s = total_s - self._times[1]
        if passed_s <= 0:
            return None
        share = (busy_s - self._times[0]) / passed_s
        self._times = (busy_s, total_s)
        # The kernel's idle times can step back a little; a share cannot leave 0 to 1.
        return min(max(share, 0.0), 1.0)


def _busy_and_total_s() -> tuple[float, float]:
    """Time of all processors since boot: busy, and altogether; processor-seconds.

    Time that a hypervisor took (`steal`) counts as passed but not as busy: it was spent elsewhere.
    """
    times = psutil.cpu_times()
    busy_s = times.user + times.nice + times.system + times.irq + times.softirq
    return busy_s, busy_s + times.idle + times.iowait + times.steal


def processor_name() -> str:
    """Model name as the kernel gives it; the architecture's where it gives none, as on ARM."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.machine()
