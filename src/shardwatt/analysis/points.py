"""Points to draw or to tabulate: the repeats of a cell taken together, with interval and outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from shardwatt.analysis.marking import WORD, extent
from shardwatt.analysis.survey import State
from shardwatt.readings import Status

#: Quantities made of joules: what is estimated in them is said wherever they are shown.
OF_ENERGY = (
    "energy_j",
    "power_w",
    "energy_per_token_j",
    "energy_per_generated_token_j",
    "energy_per_response_j",
)

#: What a point shows where its repeats ended differently: the first of these that occurs.
_PRECEDENCE = (
    State.OK,
    State.DOES_NOT_FIT,
    State.FAILED,
    State.INVALID,
    State.OUTDATED,
    State.MISSING,
)


@dataclass(frozen=True, slots=True)
class Point:
    """One quantity of one cell, its repeats taken together.

    Attributes:
        outcome: `ok` where any repeat is.
        value: mean over the repeats that are `ok` and know it; None where none does.
        low: lower end of its interval; None where there is none.
        high: upper end.
        interval_kind: `repeats` or `within run`; None where there is no interval.
        estimated: whether joules in it are estimated.
        simulated: whether its cells ran no model.
        reason: why there is no result; None for `ok`.
    """

    outcome: State
    value: float | None
    low: float | None
    high: float | None
    interval_kind: str | None
    estimated: bool
    simulated: bool
    reason: str | None


def outcome_of(rows: pd.DataFrame) -> State:
    """The outcome that the repeats of a cell show together."""
    found = set(rows["outcome"])
    return next(state for state in _PRECEDENCE if state in found)


def point(rows: pd.DataFrame, quantity: str) -> Point:
    """Take the repeats of one cell together.

    Two repeats have a mean and no interval: an interval within one of them would not be the mean's.

    Args:
        rows: at least one row, equal in every axis but `repeat`.
        quantity: a column.
    """
    outcome = outcome_of(rows)
    # Column by column, for selecting rows copies every column, and there are points by the thousand.
    same = [index for index, found in enumerate(rows["outcome"]) if found == outcome]
    values = rows[quantity].tolist()
    known = [index for index in same if not pd.isna(values[index])]
    simulated = extent(rows[WORD]) is not None
    if outcome is not State.OK or not known:
        reason = _text(rows["reason"].iloc[same[0]])
        return Point(outcome, None, None, None, None, False, simulated, reason)
    low, high, kind = None, None, None
    if f"{quantity}_low" in rows:
        first_kind = _text(rows["interval_kind"].iloc[known[0]])
        if len(known) == 1 or first_kind == "repeats":
            low, high = (_number(rows[f"{quantity}_{end}"].iloc[known[0]]) for end in ("low", "high"))
            kind = first_kind if low is not None else None
    estimated = False
    if quantity in OF_ENERGY:
        statuses = rows["energy_status"].tolist()
        estimated = any(_text(statuses[index]) == str(Status.ESTIMATED) for index in known)
    mean = fmean(values[index] for index in known)
    return Point(outcome, mean, low, high, kind, estimated, simulated, None)


def in_order(values: pd.Series) -> list[str]:
    """Each value once, in the order in which the study has them."""
    return [str(value) for value in dict.fromkeys(values)]


def counts_in_order(values: pd.Series) -> list[int]:
    """Each whole number once, ascending."""
    return sorted({int(value) for value in values})


def named(axes: Sequence[tuple[str, object]]) -> str:
    """A point's place in words, e.g. `gsm8k, 16 shards, batch 512`."""
    words = {
        "shards": "{} shards",
        "batch": "batch {}",
        "length": "length {}",
        "cap": "cap {}",
        "repeat": "repeat {}",
    }
    text = ", ".join(words.get(axis, "{}").format(value) for axis, value in axes)
    return text.replace(", 1 shards", ", 1 shard")


def _number(value: object) -> float | None:
    return None if pd.isna(value) else float(value)  # type: ignore[call-overload,arg-type]


def _text(value: object) -> str | None:
    return None if pd.isna(value) else str(value)  # type: ignore[call-overload]
