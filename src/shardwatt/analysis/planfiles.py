"""The plan of a study on disk: plan.csv, plan-totals.csv, plan.parquet and plan.md."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from shardwatt.plan.columns import PLAN_COLUMNS, Kind
from shardwatt.plan.markdown import as_markdown
from shardwatt.plan.table import Plan, write_csv
from shardwatt.plan.totals import write_totals
from shardwatt.recordfiles import SCHEMA_VERSION, replacing

_ARROW: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "count": pa.int64(),
    "number": pa.float64(),
    "truth": pa.bool_(),
}

#: Rows of a group in the Parquet file.
_ROWS_AT_ONCE = 20_000


def schema() -> pa.Schema:
    """The schema of plan.parquet; units and definitions travel in the fields' metadata."""
    return pa.schema(
        [
            pa.field(one.name, _ARROW[one.kind], metadata={"unit": one.unit, "definition": one.definition})
            for one in PLAN_COLUMNS
        ],
        metadata={"schema_version": str(SCHEMA_VERSION)},
    )


def write_plan(plan: Plan, folder: Path) -> list[Path]:
    """Write the four files of a plan, each whole or not at all, and return their paths.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writers = {
        "plan.csv": _write_csv,
        "plan-totals.csv": _write_totals,
        "plan.parquet": _write_parquet,
        "plan.md": _write_markdown,
    }
    for name, write in writers.items():
        with replacing(folder / name) as path:
            write(plan, path)
    return [folder / name for name in writers]


def _write_csv(plan: Plan, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        write_csv(plan, stream)


def _write_totals(plan: Plan, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        write_totals(plan.blocks, plan.total, plan.currency, stream)


def _write_parquet(plan: Plan, path: Path) -> None:
    """A group of rows at a time: as columns, all rows would take as much memory again as the plan."""
    with pq.ParquetWriter(path, schema(), compression="zstd") as writer:
        for first in range(0, max(1, len(plan.rows)), _ROWS_AT_ONCE):
            rows = plan.rows[first : first + _ROWS_AT_ONCE]
            columns = {one.name: [one.value(row) for row in rows] for one in PLAN_COLUMNS}
            writer.write_table(pa.table(columns, schema=schema()))


def _write_markdown(plan: Plan, path: Path) -> None:
    path.write_text(as_markdown(plan), encoding="utf-8", newline="\n")
