"""The columns of the tidy tables: columns.csv for cells and devicecolumns.csv for devices, beside this file.

docs/results.md shows them; `python -m shardwatt.analysis.columns docs/results.md` writes them there.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa

from shardwatt.recordfiles import SCHEMA_VERSION
from shardwatt.schemas import with_generated

Dtype = Literal["string", "Int64", "Float64", "boolean", "datetime64[us, UTC]"]

_ARROW: dict[Dtype, pa.DataType] = {
    "string": pa.string(),
    "Int64": pa.int64(),
    "Float64": pa.float64(),
    "boolean": pa.bool_(),
    "datetime64[us, UTC]": pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column; null means unknown or not applicable, never zero.

    Attributes:
        name: carries its unit where it has one.
        dtype: its pandas type; all are nullable.
        unit: unit, or kind of value.
        definition: what it is.
        source: where it is taken from, or how it is computed.
        used_by: kinds of figures and names of tables that show it.
    """

    name: str
    dtype: Dtype
    unit: str
    definition: str
    source: str
    used_by: tuple[str, ...] = ()


#: Quantities that have an interval: the columns NAME_low and NAME_high.
WITH_INTERVAL = (
    "tokens_per_s",
    "words_per_s",
    "responses_per_s",
    "power_w",
    "energy_per_token_j",
    "energy_per_response_j",
)


def _read(name: str) -> tuple[Column, ...]:
    text = resources.files("shardwatt.analysis").joinpath(name).read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(
        Column(
            name=row["name"],
            dtype=cast(Dtype, row["dtype"]),
            unit=row["unit"],
            definition=row["definition"],
            source=row["source"],
            used_by=tuple(row["used_by"].split()),
        )
        for row in rows
    )


#: Every column of cells.parquet and cells.csv, in order.
COLUMNS: tuple[Column, ...] = _read("columns.csv")

#: Every column of devices.parquet and devices.csv, in order.
DEVICE_COLUMNS: tuple[Column, ...] = _read("devicecolumns.csv")


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    """The schema of a tidy table; units and definitions travel in the fields' metadata."""
    return pa.schema(
        [
            pa.field(c.name, _ARROW[c.dtype], metadata={"unit": c.unit, "definition": c.definition})
            for c in columns
        ],
        metadata={"schema_version": str(SCHEMA_VERSION)},
    )


#: The tables that a page holds, by the word in their markers.
_PAGES = {"columns": COLUMNS, "device columns": DEVICE_COLUMNS}


def markdown(columns: Sequence[Column]) -> str:
    """Columns as a Markdown table; one that no table or figure shows is for the report or for the reader."""
    shown = any(column.used_by for column in columns)
    heads = ["column", "unit", "definition", "source", *(["shown in"] if shown else [])]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for column in columns:
        cells = [f"`{column.name}`", column.unit, column.definition, column.source]
        lines.append(_line([*cells, *([", ".join(column.used_by) or "report"] if shown else [])]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_columns(page: str) -> str:
    """A page with each table between its two markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    for name, columns in _PAGES.items():
        page = with_generated(page, name, markdown(columns))
    return page


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_columns(page.read_text(encoding="utf-8")), encoding="utf-8")
