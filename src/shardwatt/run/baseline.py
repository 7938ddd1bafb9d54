"""Before the ranks start: devices cool to the study's gate, and are left alone for the idle baseline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from shardwatt.study import Constants

#: Time in s between two looks at what may end the cell meanwhile, and at the temperature.
_POLL_S = 0.1

#: Time in s without a temperature after which no more of them are expected: one that fails may come back.
_SILENCE_S = 5.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CoolDown:
    """How the wait for cool devices went.

    Attributes:
        waited_s: time in s that it took.
        reached: whether all devices were at or below the gate at its end.
        hottest_c: temperature of the hottest one then, in degrees Celsius; None where no meter tells.
    """

    waited_s: float
    reached: bool
    hottest_c: float | None


def cool_down(
    gate_c: float, longest_s: float, temperature_c: Callable[[], float | None], look: Callable[[], None]
) -> CoolDown:
    """Wait until the hottest device is no warmer than the gate.

    Args:
        gate_c: that temperature, in degrees Celsius.
        longest_s: longest time in s to wait.
        temperature_c: gives the hottest device's, None where no meter tells; where none does for seconds,
            there is no waiting.
        look: called again and again meanwhile; what it raises ends the wait.
    """
    began_s = told_s = time.monotonic()
    while True:
        look()
        now_c, now_s = temperature_c(), time.monotonic()
        waited_s = now_s - began_s
        if now_c is not None:
            told_s = now_s
        is_silent = now_s - told_s >= _SILENCE_S
        if is_silent or (now_c is not None and now_c <= gate_c) or waited_s >= longest_s:
            reached = now_c is not None and now_c <= gate_c
            if not reached:
                found = "no meter tells it" if now_c is None else f"{now_c:g} C after {waited_s:.0f} s"
                log.warning("not cooled to %g C: %s; the cell runs all the same", gate_c, found)
            return CoolDown(waited_s, reached, now_c)
        time.sleep(_POLL_S)


def left_alone(settle_s: float, read_s: float, look: Callable[[], None]) -> tuple[float, float]:
    """Leave the devices alone; from when to when they count as idle, in s of `time.monotonic()`.

    Args:
        settle_s: time in s before that.
        read_s: how long, in s.
        look: called again and again meanwhile; what it raises ends the wait.
    """
    start_s = time.monotonic() + settle_s
    while (left_s := start_s + read_s - time.monotonic()) > 0:
        look()
        time.sleep(min(_POLL_S, left_s))
    return start_s, start_s + read_s


def baseline_times(constants: Constants) -> tuple[float, float] | None:
    """Time in s to settle and to read that a study asks for; None where it wants no baselines."""
    return (constants.idle_settle_s, constants.idle_read_s) if constants.idle_read_s else None
