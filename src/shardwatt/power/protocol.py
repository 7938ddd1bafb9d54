"""What a meter is: the small protocol behind which every source of energy readings stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from shardwatt.readings import Device, DriverLimits, Method, PowerSource, Status


@dataclass(frozen=True, slots=True)
class Sample:
    """One device at one moment; None where a value is not known. Zero is never written for unknown.

    Attributes:
        t_s: `time.monotonic()` of the node, in s.
        device: index on its node.
        power_w: power in W: instantaneous where the driver tells it, otherwise as the sensor gives it; or
            estimated.
        power_average_w: power in W over the driver's own averaging time, where it tells both.
        counter_j: an energy counter in J that only grows, from its own zero.
        sm_utilisation: share of time in which a kernel ran.
        memory_activity: share of time in which device memory was read or written.
        memory_filled: share of the device's memory in use.
        cpu_utilisation: share of time in which the node's processors were busy.
        clock_sm_mhz: clock of the multiprocessors in MHz.
        clock_memory_mhz: clock of the device's memory in MHz.
        temperature_c: temperature of the device in degrees Celsius.
        throttle_reasons: NVML's bits of why the clocks are held back, as one number.
    """

    t_s: float
    device: int
    power_w: float | None = None
    power_average_w: float | None = None
    counter_j: float | None = None
    sm_utilisation: float | None = None
    memory_activity: float | None = None
    memory_filled: float | None = None
    cpu_utilisation: float | None = None
    clock_sm_mhz: float | None = None
    clock_memory_mhz: float | None = None
    temperature_c: float | None = None
    throttle_reasons: int | None = None


class Meter(Protocol):
    """A source of samples on one node.

    Attributes:
        method: how joules are obtained; None where they cannot be.
        status: what they are worth.
        detail: constants of an estimate and their source, or why there are no joules.
        devices: the job's own devices on this node.
        power_sources: where the `power_w` of each device comes from; None where it has none.
        limits: power limit of each device as the driver tells it; None for what has none.
        failures: first reason of each sensor of each device that failed since the meter was opened.
    """

    method: Method | None
    status: Status
    detail: str | None
    devices: list[Device]
    power_sources: list[PowerSource | None]
    limits: list[DriverLimits | None]
    failures: list[str]

    def sample(self) -> list[Sample]:
        """Read every device once; a sensor that fails yields None in its place."""

    def strangers(self) -> list[str]:
        """Who else computes on its devices now, a device an entry; may take a second."""

    def close(self) -> None:
        """Let go of the driver."""
