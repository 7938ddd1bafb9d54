"""The word `simulated`: every table, figure and headline made from cells that ran no model carries it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from shardwatt.analysis.tablemodel import Field, Table

WORD = "simulated"
_SOME = f"partly {WORD}"

_MEANING = "no model ran; tokens, times and watts are what the plan forecasts (docs/plan.md)."

#: What the words mean, for whoever meets a number without its story.
SENTENCES = {
    WORD: f"Simulated: {_MEANING}",
    _SOME: f"Partly simulated, where the engine's name says so: there {_MEANING}",
}

_FIELD = Field(WORD, WORD, condition=True)


def extent(flags: Iterable[bool]) -> str | None:
    """`simulated` where all cells are, `partly simulated` where some are, None where none is.

    Args:
        flags: of each cell whether it is simulated.
    """
    found = [bool(flag) for flag in flags]
    if not any(found):
        return None
    return WORD if all(found) else _SOME


def titled(title: str, words: str | None) -> str:
    """A title, and behind it what `extent` has found."""
    return title if words is None else f"{title} ({words})"


def marked(table: Table, frame: pd.DataFrame) -> Table:
    """A table with the word in title, note and a column of its own, where a cell behind it is simulated.

    Args:
        table: its rows name their engine.
        frame: the cells that it was made from.
    """
    words = extent(frame[WORD])
    if words is None:
        return table
    by_engine = {engine: extent(rows[WORD]) for engine, rows in frame.groupby("engine", sort=False)}
    return replace(
        table,
        title=titled(table.title, words),
        note=f"{SENTENCES[words]} {table.note}",
        fields=[*table.fields, _FIELD],
        rows=[row | {WORD: "yes" if by_engine.get(row["engine"]) else "no"} for row in table.rows],
    )
