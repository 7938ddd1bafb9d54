"""An estimate for processors: thermal design power times the share of time they are busy."""

from __future__ import annotations

import socket
import time

from shardwatt.power.meters.processors import Processors, processor_name
from shardwatt.power.protocol import Sample
from shardwatt.readings import Device, DriverLimits, Method, PowerSource, Status


class CpuEstimate:
    """The processors of this machine together, as one device.

    Power in W = `tdp_w` x busy share, the mean over the time since the sample before; the first sample
    knows none. Idle power is not in it, nor memory, fans and power supply.

    Args:
        tdp_w: thermal design power of the machine's processors together, in W; without it only
            utilisation is sampled.
        tdp_source: where that figure comes from.
        why: what kept these processors from being measured, where that was tried.
    """

    def __init__(self, tdp_w: float | None, tdp_source: str | None, why: str | None = None) -> None:
        self.devices = [Device(node=socket.gethostname(), index=0, name=processor_name())]
        self.power_sources = [None if tdp_w is None else PowerSource.ESTIMATE]
        self.limits: list[DriverLimits | None] = [None]
        self.failures: list[str] = []
        self._tdp_w = tdp_w
        self.method: Method | None
        if tdp_w is None:
            self.method, self.status = None, Status.UNAVAILABLE
            self.detail: str | None = "no estimate: the site gives no tdp_w for this GPU type"
        else:
            self.method, self.status = Method.ESTIMATE, Status.ESTIMATED
            self.detail = (
                f"an estimate, not a measurement: tdp_w {tdp_w:g} (source: {tdp_source or 'not given'}) x "
                "share of time in which the machine's processors were busy, other processes included"
            )
        if why:
            self.detail += f"; not measured: {why}"
        self._processors = Processors()

    def sample(self) -> list[Sample]:
        now_s = time.monotonic()
        share, memory_filled = self._processors.read()
        return [
            Sample(
                t_s=now_s,
                device=0,
                power_w=None if share is None or self._tdp_w is None else self._tdp_w * share,
                memory_filled=memory_filled,
                cpu_utilisation=share,
            )
        ]

    def strangers(self) -> list[str]:
        """Nobody's: processors are never the job's alone, which `detail` says."""
        return []

    def close(self) -> None:
        """Nothing is held open."""
