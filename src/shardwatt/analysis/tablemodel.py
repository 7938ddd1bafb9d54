"""What a table is: its columns, rows and note, and the axes that tables have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a table.

    Attributes:
        name: its name in the CSV, which carries the unit.
        label: its heading elsewhere.
        digits: decimals shown, of all rows or by what a row is of; None for words and whole numbers.
        condition: left out of what is shown where all rows have one value; the note then says it.
    """

    name: str
    label: str
    digits: int | Callable[[Row], int] | None = None
    condition: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        name: its file name.
        title: one line.
        note: how its numbers are made, or why it is empty.
        fields: its columns.
        rows: values at full precision; None is unknown.
    """

    name: str
    title: str
    note: str
    fields: Sequence[Field]
    rows: Sequence[Row]

    @property
    def shown_fields(self) -> list[Field]:
        """The columns that tell rows apart or hold a number; the CSV has them all."""
        return [f for f in self.fields if not self._unknown(f) and not (f.condition and self._single(f))]

    @property
    def shown_note(self) -> str:
        """The note, and what columns left out would have said."""
        parts = [self.note]
        throughout = [f"{f.label} {self.rows[0][f.name]}" for f in self.fields if self._said(f)]
        unknown = [f.label for f in self.fields if self._unknown(f)]
        if throughout:
            parts.append(f"Throughout: {', '.join(throughout)}.")
        if unknown:
            parts.append(f"Unknown throughout: {', '.join(unknown)}.")
        return " ".join(parts)

    def _said(self, field: Field) -> bool:
        return field.condition and self._single(field) and not self._unknown(field)

    def _single(self, field: Field) -> bool:
        return len({row.get(field.name) for row in self.rows}) == 1

    def _unknown(self, field: Field) -> bool:
        return bool(self.rows) and all(row.get(field.name) is None for row in self.rows)


AXIS_FIELDS = {
    "engine": Field("engine", "engine", condition=True),
    "model": Field("model", "model"),
    "precision": Field("precision", "precision", condition=True),
    "gpu": Field("gpu", "GPU type"),
    "shards": Field("shards", "shards"),
    "batch": Field("batch", "batch size"),
    "length": Field("length", "max. new tokens"),
    "dataset": Field("dataset", "data set"),
    "cap": Field("cap", "cap (W)", condition=True),
    "repeat": Field("repeat", "repeat", condition=True),
}


def groups(frame: pd.DataFrame, axes: list[str]) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Rows that share some axes, in the study's order."""
    for key, rows in frame.groupby(axes, sort=False):
        values = key if isinstance(key, tuple) else (key,)
        yield {axis: known(value) for axis, value in zip(axes, values, strict=True)}, rows


def listed(values: pd.Series) -> str:
    """Each value once, in words."""
    return " or ".join(str(value) for value in dict.fromkeys(values))


def known(value: Any) -> Any:
    """A plain Python value; None for null."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
