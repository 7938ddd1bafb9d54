"""Watts of a device in a phase, and its core clock under a cap: joules of bytes and operations, over time.

A phase's joules are what its bytes and operations take, each at the voltage of its clock, and what rest and
running clocks take for as long as it lasts. The mean power is their sum over the phase's time. A cap is held
by the highest clock at which that mean is at most the cap (an assumption: the driver's loop goes by sensors
that average over 25 to 100 ms, arXiv 2312.02741, and a model's layer with its collectives takes 1 or 2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from shardwatt.plan.device import Factors, PlanDevice
from shardwatt.plan.timing import PhaseSeconds

#: Clock over the highest up to which voltage stays at its floor, and that floor over the highest voltage. The
#: shape, flat and then linear, is that of Schoonhoven et al. (arXiv 2211.07260); the two numbers are
#: assumptions in the range of GPUs whose voltage can be read.
RIDGE_CLOCK = 0.65
VOLTAGE_FLOOR = 0.75

#: Share of the range from idle to TDP that a device draws beside idle at its highest clock, with a kernel
#: resident that does no work, such as a collective that polls for its peers. From what nvidia-smi shows of
#: jobs that hang in one at 100 % utilisation: V100 PCIe 44 W of 250, idle 26 W in the same listing
#: (NVIDIA/nccl issue 199: 0.08); V100 SXM2 65-76 W of 300 (pytorch/pytorch issue 22671: 0.10 to 0.14 above
#: 40 W); H100 PCIe 69-72 W of 350 (lambdal/deeplearning-benchmark issue 21: 0.07 above 50 W); H100 SXM about
#: 100 W of 700 (NVIDIA-NeMo/Speech issue 9291: 0.05 above 70 W) and 152 W (NVIDIA/nccl issue 1550: 0.13).
AWAKE_SHARE = 0.08

#: Energy in J of reading or writing a byte of stacked memory, whose clock and voltage are its own (HBM2:
#: 3.9 pJ a bit; O'Connor et al., Fine-Grained DRAM, MICRO 2017). Other memories are taken to be like it.
DRAM_J_PER_BYTE = 8 * 3.9e-12

#: Energy in J of a byte on its way between memory and registers at the highest voltage, and of the
#: instructions that move it (an assumption: 8 pJ a bit, twice what the memory itself takes).
ON_CHIP_J_PER_BYTE = 8 * 8e-12

#: Share of the data sheet's operations a second that matrix units hold at TDP (an assumption: large products
#: of real numbers reach 0.6 to 0.8 of it and are limited by power).
COMPUTE_AT_TDP = 0.75

#: Steps of the bisection for a clock: it is found to 1 part in 10^6.
_BISECTIONS = 20


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Where a device runs in a phase.

    Attributes:
        clock: core clock over the highest.
        power_w: of one device, mean over the phase; None where it is not predicted.
        seconds: of the phase at this clock.
        holds_cap: whether the mean power is at most the cap; False where not even rest is.
    """

    clock: float
    power_w: float | None
    seconds: PhaseSeconds
    holds_cap: bool = True


@dataclass(frozen=True, slots=True)
class PowerParts:
    """Mean power of one device in a phase in W, by what takes it.

    Attributes:
        idle_w: rest, the driver loaded.
        awake_w: clocks that run, schedulers and kernels that poll.
        dram_w: the memory's own, independent of the core clock.
        on_chip_w: bytes on their way between memory and registers.
        compute_w: operations.
    """

    idle_w: float
    awake_w: float
    dram_w: float
    on_chip_w: float
    compute_w: float

    @property
    def total_w(self) -> float:
        """All of it."""
        return self.idle_w + self.awake_w + self.dram_w + self.on_chip_w + self.compute_w


def voltage(clock: float) -> float:
    """Core voltage over that at the highest clock: a floor up to a ridge, then linear.

    Args:
        clock: over the highest, 0 to 1.
    """
    above = max(0.0, clock - RIDGE_CLOCK) / (1 - RIDGE_CLOCK)
    return VOLTAGE_FLOOR + (1 - VOLTAGE_FLOOR) * above


def power_parts(
    seconds: PhaseSeconds,
    device: PlanDevice,
    factors: Factors,
    clock: float,
    *,
    on_chip_j_per_byte: float = ON_CHIP_J_PER_BYTE,
) -> PowerParts | None:
    """Mean power of one device in a phase; None for a device whose TDP or idle power is not known.

    With the voltage v(clock) over the highest, and R = TDP - idle:

    - awake: AWAKE_SHARE x R x clock x v^2 x busy: what switches at every tick while a kernel is resident.
    - memory: bytes a second x DRAM_J_PER_BYTE; their way on the chip x ON_CHIP_J_PER_BYTE x v^2. The bytes a
      second are the share of time in which memory is busy x bandwidth x `factors.bandwidth`.
    - operations a second x R / (COMPUTE_AT_TDP x operations a second of the data sheet) x v^2.

    Energy of an event goes with the square of the voltage, and its rate is the phase's own: so below the
    ridge power of moving bytes does not fall with the clock, and that of operations only as they take longer.
    While ranks wait in a collective, idle and awake are all there is; while a device waits for its host, idle
    alone. All but idle is times `factors.power`.

    Args:
        seconds: of the phase at this clock.
        device: its TDP, idle power and rates.
        factors: what kernels reach of these rates.
        clock: core clock over the highest.
        on_chip_j_per_byte: as `ON_CHIP_J_PER_BYTE`.
    """
    if device.tdp_w is None or device.idle_w is None:
        return None
    reach_w = device.tdp_w - device.idle_w
    squared = voltage(clock) ** 2
    bytes_per_s = seconds.busy_memory * factors.bandwidth * device.memory_bandwidth_b_s
    flop_share = seconds.busy_compute * factors.compute * clock
    return PowerParts(
        idle_w=device.idle_w,
        awake_w=factors.power * AWAKE_SHARE * reach_w * clock * squared * seconds.busy,
        dram_w=factors.power * DRAM_J_PER_BYTE * bytes_per_s,
        on_chip_w=factors.power * on_chip_j_per_byte * squared * bytes_per_s,
        compute_w=factors.power * reach_w / COMPUTE_AT_TDP * squared * flop_share,
    )


def operating_point(
    seconds_at: Callable[[float], PhaseSeconds],
    device: PlanDevice,
    factors: Factors,
    cap_w: float | None,
    *,
    on_chip_j_per_byte: float = ON_CHIP_J_PER_BYTE,
) -> OperatingPoint:
    """The clock at which a device runs in a phase, its mean power and the phase's time.

    The highest clock at which the mean power is at most the cap, or the TDP where that is lower. Where even
    the lowest clock draws more, memory no longer runs at its full rate: the phase takes so much longer that
    the joules of its bytes and operations, over its time, meet the cap.

    Processors whose TDP is known draw that x `factors.power`, as the estimate of a run says of busy ones too
    (without the factor); they have no cap.

    Args:
        seconds_at: time of the phase at a clock over the highest.
        device: what it is.
        factors: what kernels reach of it.
        cap_w: power limit of the device in W; None: its TDP.
        on_chip_j_per_byte: as `ON_CHIP_J_PER_BYTE`.
    """
    highest = OperatingPoint(1.0, None, seconds_at(1.0))
    if device.tdp_w is None:
        return highest
    if device.kind == "cpu":
        return replace(highest, power_w=factors.power * device.tdp_w)
    if device.idle_w is None:
        return highest
    limit_w = device.tdp_w if cap_w is None else min(cap_w, device.tdp_w)

    def parts_of(seconds: PhaseSeconds, clock: float) -> PowerParts | None:
        return power_parts(seconds, device, factors, clock, on_chip_j_per_byte=on_chip_j_per_byte)

    def powered(clock: float, seconds: PhaseSeconds) -> OperatingPoint:
        parts = parts_of(seconds, clock)
        return OperatingPoint(clock, parts.total_w if parts else None, seconds)

    def at(clock: float) -> OperatingPoint:
        return powered(clock, seconds_at(clock))

    def draws_more(point: OperatingPoint) -> bool:
        return point.power_w is not None and point.power_w > limit_w

    if not draws_more(highest := powered(1.0, highest.seconds)):
        return highest
    if draws_more(found := at(device.lowest_clock)):
        return _stretched(found, parts_of(found.seconds, found.clock), limit_w)
    above = 1.0
    for _ in range(_BISECTIONS):
        point = at((found.clock + above) / 2)
        if draws_more(point):
            above = point.clock
        else:
            found = point
    return found


def waits_under_cap(points: Iterable[OperatingPoint], device: PlanDevice, cap_w: float | None) -> bool:
    """Whether a cap below the TDP is held at the highest clock, since collectives fill most of the time.

    Then a cap is predicted to change nothing, which a limiter that sees single milliseconds would prove
    wrong: between its collectives a device draws more than on average (docs/plan.md, Table III).

    Args:
        points: of all phases.
        device: what it is.
        cap_w: power limit of the device in W; None: its TDP.
    """
    found = list(points)
    if cap_w is None or device.tdp_w is None or cap_w >= device.tdp_w:
        return False
    waiting_s = sum(point.seconds.busy_collective * point.seconds.duration_s for point in found)
    is_free = all(point.clock == 1 and point.holds_cap for point in found)
    return is_free and 2 * waiting_s > sum(point.seconds.duration_s for point in found)


def _stretched(point: OperatingPoint, parts: PowerParts | None, limit_w: float) -> OperatingPoint:
    """A point at the lowest clock whose phase takes longer, so that the same joules of bytes and operations,
    over its time, meet the cap with rest and clocks; where those alone draw more, the point as it is.

    Kernels run for all of the longer time, so that clocks draw what they did.
    """
    seconds = point.seconds
    left_w = 0.0 if parts is None else limit_w - parts.idle_w - parts.awake_w
    if parts is None or left_w <= 0:
        return replace(point, holds_cap=False)
    longer = (parts.dram_w + parts.on_chip_w + parts.compute_w) / left_w
    stretched = replace(
        seconds,
        duration_s=seconds.duration_s * longer,
        busy_compute=seconds.busy_compute / longer,
        busy_memory=seconds.busy_memory / longer,
        busy_collective=seconds.busy_collective / longer,
    )
    return replace(point, power_w=limit_w, seconds=stretched)
