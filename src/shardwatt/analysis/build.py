"""Tables, figures and report from whatever cells exist: what the rules and the CLI call, step by step.

FOLDER is `results/STUDY`, or `results/STUDY/partial` for a look in between. It gets cells.{parquet,csv},
devices.{parquet,csv}, figures/NAME.{svg,pdf,png}, tables/NAME.{csv,md,tex} and report.html. Every step
after the first reads cells.parquet alone, so that they all show the same state of the study.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from shardwatt.analysis import report
from shardwatt.analysis.aggregate import aggregate, aggregate_devices, read_cells, write_cells
from shardwatt.analysis.columns import DEVICE_COLUMNS
from shardwatt.analysis.figures import draw
from shardwatt.analysis.report import LOCAL, Commands
from shardwatt.analysis.survey import CellState
from shardwatt.analysis.tableformats import write_table
from shardwatt.analysis.tables import tables
from shardwatt.analysis.tidy import write_tidy
from shardwatt.cell import AXES, Cell
from shardwatt.errors import ShardwattError, suggestion
from shardwatt.figurelist import FigureSpec, figures
from shardwatt.locks import alone
from shardwatt.study import Study


def build_cells(states: Sequence[CellState], folder: Path) -> list[Path]:
    """Write FOLDER/cells.{parquet,csv}, a row for every cell of the study, whatever its state, and
    FOLDER/devices.{parquet,csv}, a row for every device of the cells that ran through.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    frame = aggregate(states)
    devices = aggregate_devices(states, frame)
    return [*write_cells(frame, folder), *write_tidy(devices, DEVICE_COLUMNS, folder, "devices")]


def build_figures(folder: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Draw figures of the study whose cells.parquet stands in FOLDER; all of them without names.

    Raises:
        RecordError: cells.parquet is missing, torn or of another version.
        ShardwattError: the study has no figure of a name.
        OSError: the folder cannot be written or the disk is full.
    """
    frame = read_cells(folder / "cells.parquet")
    specs = {spec.name: spec for spec in _specs(frame)}
    for name in names or ():
        if name not in specs:
            raise ShardwattError(
                f"unknown figure '{name}'{suggestion(name, specs)}; the study has {', '.join(specs)}"
            )
    return [path for name in (names or specs) for path in draw(frame, specs[name], folder / "figures")]


def build_tables(folder: Path) -> list[Path]:
    """Write the tables of the study whose cells.parquet stands in FOLDER.

    Raises:
        RecordError: cells.parquet is missing, torn or of another version.
        OSError: the folder cannot be written or the disk is full.
    """
    frame = read_cells(folder / "cells.parquet")
    return [path for table in tables(frame) for path in write_table(table, folder / "tables")]


def build_report(
    base: Path, study_name: str, study: Study, folder: Path, *, commands: Commands = LOCAL
) -> Path:
    """Write FOLDER/report.html from the cells.parquet and the figures there.

    Raises:
        RecordError: cells.parquet is missing, torn or of another version.
        OSError: the folder cannot be written or the disk is full.
    """
    frame = read_cells(folder / "cells.parquet")
    html = report.render(
        frame, _specs(frame), base=base, study_name=study_name, study=study, folder=folder, commands=commands
    )
    path = folder / "report.html"
    report.write(html, path)
    return path


def build_all(
    base: Path,
    study_name: str,
    study: Study,
    states: Sequence[CellState],
    folder: Path,
    *,
    commands: Commands = LOCAL,
) -> Path:
    """Build everything from the cells that exist now, and return the report's path.

    Who builds the same folder at that time is waited for: what two have seen is never mixed.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    with alone(folder / ".lock"):
        build_cells(states, folder)
        build_figures(folder)
        build_tables(folder)
        return build_report(base, study_name, study, folder, commands=commands)


def _specs(frame: pd.DataFrame) -> list[FigureSpec]:
    return figures(Cell(*values) for values in frame[list(AXES)].itertuples(index=False, name=None))
