"""The meter of the node itself, beside the devices of the headline: RAPL, and how busy its processors are."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from shardwatt.power.meters.processors import BESIDE_S, Processors, processor_name
from shardwatt.power.meters.rapl import INDEX, RaplMeter
from shardwatt.power.protocol import Sample
from shardwatt.readings import Device, DriverLimits, PowerSource

#: Index of the processors as a device of their node where RAPL does not count them.
PROCESSORS_INDEX = len(INDEX)


class HostMeter:
    """Packages and memory through RAPL; where it counts no packages the processors are a device without
    joules, which knows how busy they are. What RAPL cannot read, `status` and `detail` say.

    Args:
        root: the kernel's folder of power domains.
    """

    def __init__(self, root: Path) -> None:
        self._rapl = RaplMeter(("package", "dram"), root)
        self.method, self.status, self.detail = self._rapl.method, self._rapl.status, self._rapl.detail
        self.devices = list(self._rapl.devices)
        self.failures = self._rapl.failures
        self.power_sources: list[PowerSource | None] = list(self._rapl.power_sources)
        self.limits: list[DriverLimits | None] = list(self._rapl.limits)
        self._processors: Processors | None = None
        if not any(device.index == INDEX["package"] for device in self.devices):
            self._processors = Processors(BESIDE_S)
            self.devices.append(
                Device(node=socket.gethostname(), index=PROCESSORS_INDEX, name=processor_name())
            )
            self.power_sources.append(None)
            self.limits.append(None)

    def sample(self) -> list[Sample]:
        samples = self._rapl.sample()
        if self._processors is not None:
            now_s = time.monotonic()
            busy, memory_filled = self._processors.read()
            if memory_filled is not None:
                samples.append(
                    Sample(
                        t_s=now_s, device=PROCESSORS_INDEX, memory_filled=memory_filled, cpu_utilisation=busy
                    )
                )
        return samples

    def strangers(self) -> list[str]:
        """Nobody's: a node is never the job's alone."""
        return []

    def close(self) -> None:
        self._rapl.close()
