"""An estimate for processors: thermal design power times the share of time they are busy."""

from __future__ import annotations

import platform
import socket
import time
from pathlib import Path

import psutil

from shardwatt.power.protocol import Sample
from shardwatt.records import Device, Method, Status


class CpuEstimate:
    """The processors of this machine together, as one device.

    Power in W = `tdp_w` x busy share, the mean over the time since the sample before; the first sample
    knows none. Idle power is not in it, nor memory, fans and power supply.

    Args:
        tdp_w: thermal design power of the machine's processors together, in W; without it only
            utilisation is sampled.
        tdp_source: where that figure comes from.
    """

    def __init__(self, tdp_w: float | None, tdp_source: str | None) -> None:
        self.devices = [Device(node=socket.gethostname(), index=0, name=_processor_name())]
        self._tdp_w = tdp_w
        self.method: Method | None
        if tdp_w is None:
            self.method, self.status = None, Status.UNAVAILABLE
            self.detail: str | None = (
                "no estimate: the site gives no tdp_w for this GPU type, and nothing here can be measured"
            )
        else:
            self.method, self.status = Method.ESTIMATE, Status.ESTIMATED
            self.detail = (
                f"an estimate, not a measurement: tdp_w {tdp_w:g} (source: {tdp_source or 'not given'}) x "
                "share of time in which the machine's processors were busy, other processes included"
            )
        self._times: tuple[float, float] | None = None

    def sample(self) -> list[Sample]:
        now_s = time.monotonic()
        share = self._busy_share()
        memory = psutil.virtual_memory()
        return [
            Sample(
                t_s=now_s,
                device=0,
                power_w=None if share is None or self._tdp_w is None else self._tdp_w * share,
                memory_filled=1 - memory.available / memory.total,
                cpu_utilisation=share,
            )
        ]

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

    def close(self) -> None:
        """Nothing is held open."""


def _busy_and_total_s() -> tuple[float, float]:
    """Time of all processors since boot: busy, and altogether; processor-seconds.

    Time that a hypervisor took (`steal`) counts as passed but not as busy: it was spent elsewhere.
    """
    times = psutil.cpu_times()
    busy_s = times.user + times.nice + times.system + times.irq + times.softirq
    return busy_s, busy_s + times.idle + times.iowait + times.steal


def _processor_name() -> str:
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
