"""The plan of a study: a row a cell with what it will take, totals by block, and both as CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from shardwatt.cell import Cell
from shardwatt.plan.cellforecast import CellForecast, PhaseForecast
from shardwatt.plan.columns import PLAN_COLUMNS, PlanRow, values
from shardwatt.plan.price import keys_missing
from shardwatt.plan.totals import Totals, totals
from shardwatt.site import Site
from shardwatt.study import Study


@dataclass(frozen=True, slots=True)
class Plan:
    """Forecasts of a study's cells, or of some of them.

    Attributes:
        study: the study's name.
        title: its title.
        site: name of the site that it was made for.
        currency: of costs; None where the site has no prices.
        rows: a cell each, in the study's order.
        cells: how many the study has.
        total: of all rows, each once.
        blocks: of the rows of each block; a cell in several counts in each.
        keys_missing: of the site, that `cost` and `carbon` take (`shardwatt.plan.price`).
    """

    study: str
    title: str
    site: str
    currency: str | None
    rows: Sequence[PlanRow]
    cells: int
    total: Totals
    blocks: Sequence[Totals]
    keys_missing: Mapping[str, Sequence[str]]


def make_plan(
    name: str,
    study: Study,
    site: Site,
    blocks: Sequence[Sequence[Cell]],
    forecast: Callable[[Cell], CellForecast],
    is_meant: Callable[[Cell], bool] = lambda _: True,
) -> Plan:
    """Forecast the cells of a study.

    Args:
        name: the study's name.
        study: its content.
        site: where it is to run.
        blocks: the cells of each block of its matrix.
        forecast: what a cell will take.
        is_meant: which cells to take in; the totals are of these alone.
    """
    numbers: dict[Cell, list[int]] = {}
    for number, cells in enumerate(blocks, start=1):
        for cell in cells:
            numbers.setdefault(cell, []).append(number)
    currency = None if site.prices is None else site.prices.currency
    rows = []
    for cell, own in numbers.items():
        if is_meant(cell):
            found = forecast(cell)
            runs = found.fits is not False or study.runs_unfit(cell)
            rows.append(PlanRow(found, tuple(own), runs, currency))
    return Plan(
        study=name,
        title=study.title,
        site=site.name,
        currency=currency,
        rows=rows,
        cells=len(numbers),
        total=totals(name, rows),
        blocks=[
            totals(block.name or f"block {number}", [row for row in rows if number in row.blocks])
            for number, block in enumerate(study.matrix, start=1)
        ],
        keys_missing=keys_missing(site),
    )


def write_csv(plan: Plan, stream: TextIO) -> None:
    """A row a cell at full precision; what is unknown is an empty field."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([column.name for column in PLAN_COLUMNS])
    writer.writerows(values(row).values() for row in plan.rows)


def as_json(plan: Plan) -> str:
    """Cells with what their phases are made of, and totals."""
    content = {
        "study": plan.study,
        "title": plan.title,
        "site": plan.site,
        "currency": plan.currency,
        "cells_of_study": plan.cells,
        "total": asdict(plan.total),
        "blocks": [asdict(block) for block in plan.blocks],
        "cells": [values(row) | {"phases": dict(_phases(row))} for row in plan.rows],
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def _phases(row: PlanRow) -> Iterator[tuple[str, dict[str, Any]]]:
    found: PhaseForecast
    for name, found in row.forecast.phases.items() if row.runs else ():
        yield (
            name,
            {
                "duration_s": found.duration_s,
                "parts_s": dict(found.parts_s),
                "power_w": found.power_w,
                "clock": found.clock,
            },
        )
