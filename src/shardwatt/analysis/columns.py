"""The columns of cells.parquet and cells.csv, from columns.csv beside this file: the one place.

docs/results.md shows them; `python -m shardwatt.analysis.columns docs/results.md` writes them there.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, cast

import pyarrow as pa

from shardwatt.records import SCHEMA_VERSION

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


def _read() -> tuple[Column, ...]:
    text = resources.files("shardwatt.analysis").joinpath("columns.csv").read_text(encoding="utf-8")
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


#: Every column, in order, as columns.csv lists them.
COLUMNS: tuple[Column, ...] = _read()

#: The schema of cells.parquet; units and definitions travel in the fields' metadata.
SCHEMA = pa.schema(
    [
        pa.field(c.name, _ARROW[c.dtype], metadata={"unit": c.unit, "definition": c.definition})
        for c in COLUMNS
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

BEGIN, END = "<!-- columns: begin (generated) -->", "<!-- columns: end -->"


def markdown() -> str:
    """The columns as a Markdown table."""
    lines = ["| column | unit | definition | source | shown in |", "| --- | --- | --- | --- | --- |"]
    for column in COLUMNS:
        shown = ", ".join(column.used_by) or "report"
        row = (f"`{column.name}`", column.unit, column.definition, column.source, shown)
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def with_columns(page: str) -> str:
    """A page with the table between its two markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_columns(page.read_text(encoding="utf-8")), encoding="utf-8")
