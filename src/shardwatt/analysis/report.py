"""The report of a study: one self-contained HTML file, readable at any moment of the study."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from shardwatt.analysis import obtained, ratios, summary
from shardwatt.analysis.figures import CAPTIONS, describe
from shardwatt.analysis.marking import SENTENCES, WORD, extent, titled
from shardwatt.analysis.notes import where
from shardwatt.analysis.points import named
from shardwatt.analysis.survey import REFUSED, State, strays
from shardwatt.analysis.tableformats import alignment, shown
from shardwatt.analysis.tablemodel import Table
from shardwatt.analysis.tables import tables
from shardwatt.cell import AXES, Cell
from shardwatt.cellfiles import read_table
from shardwatt.errors import RecordError
from shardwatt.figurelist import FORMATS, FigureSpec, Kind
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import write_whole
from shardwatt.study import Study

#: Rows of the list of cells without a measurement, and of any table, that the report shows.
_ROWS_AT_MOST = 200

_SAMPLES_PER_DATASET = 3
_SAMPLE_CHARACTERS = 700


@dataclass(frozen=True, slots=True)
class Commands:
    """How commands are typed for the site that a study runs at.

    Attributes:
        snakemake: what stands before a target.
        site: what `shardwatt` commands end in; empty for the default site.
    """

    snakemake: str
    site: str


LOCAL = Commands("snakemake --profile profiles/local", "")


@dataclass(frozen=True, slots=True)
class _Figure:
    name: str
    title: str
    caption: str
    alternative: str
    data_uri: str
    files: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _ShownTable:
    title: str
    note: str
    headings: Sequence[str]
    sides: Sequence[str]
    rows: Sequence[Sequence[str]]
    more: int
    files: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Sample:
    dataset: str
    cell: str
    prompt_id: str
    tokens: int
    finish: str
    text: str
    cut: bool


def render(
    frame: pd.DataFrame,
    specs: Sequence[FigureSpec],
    *,
    base: Path,
    study_name: str,
    study: Study,
    folder: Path,
    commands: Commands,
) -> str:
    """Make the report's HTML. It loads nothing: figures are embedded, text from models is escaped.

    Args:
        frame: the study's table of cells.
        specs: figures whose SVG stands in FOLDER/figures; one that does not is named as not drawn.
        base: the folder that holds `results` and `logs`.
        study_name: the study's name.
        study: its title and constants.
        folder: where the report goes; links to figures and tables are relative to it.
        commands: how cells are rerun and removed.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("shardwatt", "analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = tables(frame)
    simulated = extent(frame[WORD])
    context: dict[str, Any] = {
        "study_name": study_name,
        "title": study.title,
        "simulated": simulated or "",
        "simulated_note": "" if simulated is None else SENTENCES[simulated],
        "constants": _constants(study),
        "cells": len(frame),
        "strays": strays(base, study_name, frame["target"]),
        "counts": summary.counts(frame),
        "map": summary.cell_map(frame),
        "headlines": summary.headlines(frame),
        "figures": [_figure(frame, spec, folder) for spec in specs if spec.kind is not Kind.RATIOS],
        "ratio_figures": [_figure(frame, spec, folder) for spec in specs if spec.kind is Kind.RATIOS],
        "ratios": ratios.summary(frame),
        "tables": [_shown_table(table, folder) for table in made if table.name != "outcomes"],
        "coverage": obtained.coverage(frame),
        "beside": obtained.beside(frame),
        "violations": obtained.violations(frame),
        "details": obtained.details(frame),
        "open_cells": _open_cells(frame, commands.snakemake),
        "open_more": max(0, int((frame["outcome"] != State.OK).sum()) - _ROWS_AT_MOST),
        "samples": _samples(frame, base, study_name),
        "origin": summary.origin(frame),
        "identities": summary.identities(frame),
        "whole": f"{commands.snakemake} results/{study_name}/report.html",
        "refused": bool(frame["outcome"].isin([str(state) for state in REFUSED]).any()),
        "remove": f"shardwatt cells {study_name} --remove-invalid{commands.site}",
        "downloads": _existing(folder, ("cells.csv", "cells.parquet", "devices.csv", "devices.parquet")),
    }
    return environment.get_template("report.html.jinja").render(context)


def write(html: str, path: Path) -> None:
    """Write a report, whole or not at all.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(html, path)


def _constants(study: Study) -> list[tuple[str, str]]:
    values = study.constants.model_dump()
    words = {
        "prompts": "prompts from each data set",
        "seed": "seed",
        "temperature": "temperature",
        "top_p": "top-p",
        "warmup_tokens": "warm-up tokens",
        "cache_tokens": "KV cache positions",
        "cuda_graphs": "CUDA graphs",
        "idle_settle_s": "rest before a baseline (s)",
        "idle_read_s": "read of a baseline (s)",
        "cool_down_c": "cooled down to (°C)",
        "cool_down_max_s": "waiting for that at most (s)",
    }
    unset = {"cache_tokens": "context, or longest prompt of the batch + length", "cool_down_c": "no gate"}
    return [
        (words.get(key, key), unset.get(key, "none") if value is None else _shown_constant(key, value))
        for key, value in values.items()
        if key != "cool_down_max_s" or values["cool_down_c"] is not None
    ]


def _shown_constant(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if key == "prompts" else f"{value:g}"


def _figure(frame: pd.DataFrame, spec: FigureSpec, folder: Path) -> _Figure:
    picture = folder / "figures" / f"{spec.name}.svg"
    encoded = base64.b64encode(picture.read_bytes()).decode() if picture.is_file() else ""
    names = [f"figures/{spec.name}.{extension}" for extension in FORMATS]
    return _Figure(
        name=spec.name,
        title=titled(spec.title, extent(where(frame, dict(spec.fixed))[WORD])),
        caption=f"{CAPTIONS[spec.kind]} {spec.conditions[:1].upper()}{spec.conditions[1:]}.",
        alternative=describe(frame, spec),
        data_uri=f"data:image/svg+xml;base64,{encoded}" if encoded else "",
        files=_existing(folder, names),
    )


def _shown_table(table: Table, folder: Path) -> _ShownTable:
    rows = shown(table)
    return _ShownTable(
        title=table.title,
        note=table.shown_note,
        headings=[field.label for field in table.shown_fields],
        sides=alignment(table),
        rows=rows[:_ROWS_AT_MOST],
        more=max(0, len(rows) - _ROWS_AT_MOST),
        files=_existing(folder, [f"tables/{table.name}.{extension}" for extension in ("csv", "md", "tex")]),
    )


def _existing(folder: Path, names: Sequence[str]) -> list[tuple[str, str]]:
    """Relative links to files that are there: extension and path."""
    return [(name.rsplit(".", 1)[1].upper(), name) for name in names if (folder / name).is_file()]


def _open_cells(frame: pd.DataFrame, rerun: str) -> list[dict[str, str]]:
    """Cells without a measurement, with the command that runs each again."""
    rows = frame[frame["outcome"] != State.OK].head(_ROWS_AT_MOST)
    wanted = ["outcome", "reason", "detail", "log", "target"]
    found = []
    for values in rows[[*AXES, *wanted]].itertuples(index=False, name=None):
        row = {
            name: "" if pd.isna(value) else str(value)
            for name, value in zip([*AXES, *wanted], values, strict=True)
        }
        row["cell"] = ", ".join(f"{axis} {row[axis]}" for axis in AXES)
        row["sign"], row["words"] = summary.SIGNS[State(row["outcome"])]
        row["command"] = f"{rerun} {shlex.quote(row['target'])}"
        found.append(row)
    return found


def _samples(frame: pd.DataFrame, base: Path, study_name: str) -> list[_Sample]:
    """The first responses of the first cell of each data set; none where its file cannot be read."""
    found = []
    # A simulated cell has no responses to show.
    ran = frame[(frame["outcome"] == State.OK) & ~frame[WORD]]
    for dataset, rows in ran.groupby("dataset", sort=False):
        first = rows.iloc[0]
        cell = Cell(**{axis: first[axis] for axis in AXES})
        try:
            responses = read_table(CellPaths(base, study_name, cell).results / "responses.parquet")
        except RecordError:
            continue
        for row in responses.slice(0, _SAMPLES_PER_DATASET).to_pylist():
            found.append(
                _Sample(
                    dataset=str(dataset),
                    cell=named([("model", cell.model), ("gpu", cell.gpu), ("shards", cell.shards)]),
                    prompt_id=row["prompt_id"],
                    tokens=row["output_tokens"],
                    finish=row["finish"],
                    text=row["text"][:_SAMPLE_CHARACTERS],
                    cut=len(row["text"]) > _SAMPLE_CHARACTERS,
                )
            )
    return found
