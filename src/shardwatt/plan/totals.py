"""What cells take together: sums that say how many of their cells are not known."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

from shardwatt.plan.columns import COLUMN, PlanRow

#: What is summed up, by column.
SUMMED = (
    *("allocation_duration_s", "gpu_hours", "node_hours"),
    *("output_tokens", "energy_j", "cost", "carbon_kg"),
)


@dataclass(frozen=True, slots=True)
class Sum:
    """A sum over cells.

    Attributes:
        value: of those that are known; None where none is.
        unknown: how many are not: with any, `value` is a lower bound.
    """

    value: float | None
    unknown: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What the cells of a block or of a study take together.

    Attributes:
        name: of the block, or of the study.
        cells: how many there are.
        left_out: how many of them do not fit and are not run; nothing of them is in the sums.
        sums: by column of SUMMED.
    """

    name: str
    cells: int
    left_out: int
    sums: dict[str, Sum]


def totals(name: str, rows: Sequence[PlanRow]) -> Totals:
    """Sum up rows; each counts once."""
    run = [row for row in rows if row.runs]
    return Totals(name, len(rows), len(rows) - len(run), {column: _sum(column, run) for column in SUMMED})


def write_totals(blocks: Sequence[Totals], total: Totals, currency: str | None, stream: TextIO) -> None:
    """A row a block and then one of the study, as CSV; docs/plan.md has the columns.

    Args:
        blocks: of the study, in its order.
        total: of the study, in which each cell counts once; its row has no number.
        currency: of the cost; None: an empty field.
        stream: where to.
    """
    writer = csv.writer(stream, lineterminator="\n")
    sums = [name for column in SUMMED for name in (column, f"{column}_unknown_cells")]
    writer.writerow(["block", "name", "cells", "left_out", *sums, "currency"])
    for number, part in [*enumerate(blocks, start=1), (None, total)]:
        writer.writerow([number, part.name, part.cells, part.left_out, *_values(part), currency])


def _values(part: Totals) -> Iterator[float | None]:
    """Each sum, and of how many cells it is not known."""
    for column in SUMMED:
        yield from (part.sums[column].value, part.sums[column].unknown)


def _sum(column: str, rows: Iterable[PlanRow]) -> Sum:
    get = COLUMN[column].value
    found = [get(row) for row in rows]
    known = [value for value in found if isinstance(value, int | float)]
    return Sum(sum(known) if known else None, len(found) - len(known))
