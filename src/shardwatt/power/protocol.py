"""What a meter is: the small protocol behind which every source of energy readings stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shardwatt.records import Device, Method, Status


@dataclass(frozen=True, slots=True)
class Sample:
    """One device at one moment; None where a value is not known. Zero is never written for unknown.

    Attributes:
        t_s: `time.monotonic()` of the node, in s.
        device: index on its node.
        power_w: power in W as the sensor gives it, or estimated.
        counter_j: an energy counter in J that only grows, from its own zero.
        sm_utilisation: share of time in which a kernel ran.
        memory_activity: share of time in which device memory was read or written.
        memory_filled: share of the device's memory in use.
        cpu_utilisation: share of time in which the node's processors were busy.
        clock_sm_mhz: clock of the multiprocessors in MHz.
        temperature_c: temperature of the device in degrees Celsius.
    """

    t_s: float
    device: int
    power_w: float | None = None
    counter_j: float | None = None
    sm_utilisation: float | None = None
    memory_activity: float | None = None
    memory_filled: float | None = None
    cpu_utilisation: float | None = None
    clock_sm_mhz: float | None = None
    temperature_c: float | None = None


class Meter(Protocol):
    """A source of samples on one node.

    Attributes:
        method: how joules are obtained; None where they cannot be.
        status: what they are worth.
        detail: constants of an estimate and their source, or why there are no joules.
        devices: the job's own devices on this node.
    """

    method: Method | None
    status: Status
    detail: str | None
    devices: list[Device]

    def sample(self) -> list[Sample]:
        """Read every device once; a sensor that fails yields None in its place."""

    def close(self) -> None:
        """Let go of the driver."""
