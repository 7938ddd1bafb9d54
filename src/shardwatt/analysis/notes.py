"""Points at their places, and the words under a figure that are collected while it is laid out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from shardwatt.analysis.marking import WORD
from shardwatt.analysis.points import OF_ENERGY, Point, counts_in_order, named, outcome_of, point
from shardwatt.analysis.survey import State
from shardwatt.readings import Status

#: Absent points that a figure's notes name one by one.
_NAMED_AT_MOST = 6

#: Letters of a name in one line below its bars.
_LABEL_LETTERS = 14

Rows = pd.DataFrame


@dataclass
class Notes:
    """What the words under a figure are made from, collected while its points are."""

    kinds: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    no_result: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    not_in_study: list[str] = field(default_factory=list)

    def sentences(self) -> list[str]:
        words = []
        ways = {
            "within run": "within run (jackknife over the batches of one run)",
            "repeats": "over repeats (Student's t)",
        }
        if self.kinds:
            words.append(
                f"Whiskers: 95 % interval {', or '.join(ways[kind] for kind in sorted(self.kinds))}."
            )
        if self.sources:
            words.append(f"Energy, gross, over the inference window: {'; '.join(sorted(self.sources))}.")
        for start, places in (
            ("○ No result yet: ", self.no_result),
            ("? Energy unknown: ", self.unknown),
            ("? No such phase, or no data sheet: ", self.without),
            ("Not in the study at this batch and length: ", self.not_in_study),
        ):
            if places:
                words.append(start + _some(places) + ".")
        return words


def where(rows: Rows, place: Mapping[str, object]) -> Rows:
    """The rows with these values of axes, selected at once: each selection copies every column."""
    chosen = pd.Series(True, index=rows.index)
    for axis, value in place.items():
        chosen &= rows[axis] == value
    return rows[chosen]


def fewest_shards(rows: Rows) -> int:
    """The fewest shards that fit in any of these rows, as far as is known; the fewest of all if none does."""
    counts = counts_in_order(rows["shards"])
    for count in counts:
        if (rows.loc[rows["shards"] == count, "outcome"] != State.DOES_NOT_FIT).any():
            return count
    return counts[0]


def placed(rows: Rows, quantity: str, notes: Notes, **place: Any) -> Point | None:
    """The point at a place of the figure; None where the study has no such cell. Notes what to say."""
    own = where(rows, place)
    if own.empty:
        return None
    found = point(own, quantity)
    words = named(list(place.items()))
    if found.value is not None:
        if found.interval_kind:
            notes.kinds.add(found.interval_kind)
        if quantity in OF_ENERGY:
            notes.sources |= _sources(own)
    elif found.outcome is State.OK:
        if quantity in OF_ENERGY:
            _add(notes.unknown, f"{words} ({own['energy_status'].dropna().iloc[0]})")
        else:
            _add(notes.without, words)
    elif found.outcome is not State.DOES_NOT_FIT:
        _add(notes.no_result, f"{words} ({outcome_of(own)}: {found.reason})")
    return found


def wrapped(name: str) -> list[str]:
    """A name in lines that are short enough to stand below its bars."""
    return textwrap.wrap(name, _LABEL_LETTERS, break_on_hyphens=True)


def times(shards: int, gpu: str) -> str:
    """So many devices of a GPU type, in words."""
    return f"{shards} × {gpu}"  # noqa: RUF001 - a multiplication sign


def _add(words: list[str], text: str) -> None:
    if text not in words:
        words.append(text)


def _sources(rows: Rows) -> set[str]:
    """How the energy of rows was obtained, in words."""
    known = rows[rows["energy_j"].notna()]
    return {
        f"estimated ({_first_clause(detail)})"
        if status == Status.ESTIMATED
        else f"{status}, {method}" + (f" of {WORD} devices" if simulated else "")
        for status, method, detail, simulated in zip(
            known["energy_status"], known["energy_method"], known["energy_detail"], known[WORD], strict=True
        )
    }


def _first_clause(detail: object) -> str:
    return "no meter" if pd.isna(detail) else str(detail)  # type: ignore[call-overload]


def _some(places: Sequence[str]) -> str:
    more = len(places) - _NAMED_AT_MOST
    named_ones: Iterable[str] = places[:_NAMED_AT_MOST]
    return "; ".join(named_ones) + (f"; and {more} more" if more > 0 else "")
