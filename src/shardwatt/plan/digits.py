"""Numbers as a table shows them: in units that suit it, rounded, with their decimal points in one place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from shardwatt.units import rounded

#: Shown for what is not known.
UNKNOWN = "-"

#: A number before its decimal point, and what follows.
_PARTS = re.compile(r"([-\d,]*)(.*)")


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit that numbers are shown in.

    Attributes:
        name: of the unit; empty for counts.
        holds: how many of the column's own unit it is.
    """

    name: str
    holds: float = 1.0


#: Units with the number, in the column's own unit, from which on they are used; the last that applies counts.
_TIMES = ((0.0, Unit("s")), (120.0, Unit("min", 60.0)), (7200.0, Unit("h", 3600.0)))
_ENERGIES = ((0.0, Unit("J")), (1e3, Unit("kJ", 1e3)), (3.6e5, Unit("kWh", 3.6e6)))


def time_unit(seconds: float) -> Unit:
    """A unit in which so many s are neither very few nor very many."""
    return [unit for begin, unit in _TIMES if seconds >= begin][-1]


def energy_unit(joules: float) -> Unit:
    """The same for J."""
    return [unit for begin, unit in _ENERGIES if joules >= begin][-1]


def duration(seconds: float) -> str:
    """A time in words."""
    unit = time_unit(seconds)
    return f"{rounded(seconds / unit.holds)} {unit.name}"


def times(factor: float) -> str:
    """A factor above 0 in three digits; far below one as what it divides by: `206`, `0.831`, `1/206`."""
    return rounded(factor) if factor >= 0.5 else f"1/{rounded(1 / factor)}"


def in_line(texts: Sequence[str]) -> list[str]:
    """Texts of one width, numbers with their decimal points below each other."""
    parts = [_PARTS.fullmatch(text) for text in texts]
    pairs = [(found[1], found[2]) for found in parts if found is not None]
    whole, rest = (max((len(pair[side]) for pair in pairs), default=0) for side in (0, 1))
    return [left.rjust(whole) + right.ljust(rest) for left, right in pairs]
