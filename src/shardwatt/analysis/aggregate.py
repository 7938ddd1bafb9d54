"""Finished cells to tidy tables: a row a cell, a row a device; unknown is null, ratios are sums over sums."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from shardwatt.analysis.columns import COLUMNS, DEVICE_COLUMNS, WITH_INTERVAL
from shardwatt.analysis.efficiencyrow import efficiency_columns, engine_columns, memory_columns
from shardwatt.analysis.energyrow import (
    cap_columns,
    device_rows,
    energy_columns,
    limit_columns,
    utilisation_columns,
)
from shardwatt.analysis.marking import WORD
from shardwatt.analysis.stats import FEWEST, Interval, jackknife_interval, repeats_interval
from shardwatt.analysis.survey import CellState, State
from shardwatt.analysis.tidy import frame_of, read_tidy, write_tidy
from shardwatt.cell import AXES, Cell
from shardwatt.cellfiles import read_table
from shardwatt.engines import ENGINES
from shardwatt.errors import RecordError
from shardwatt.records import Counts, Record, Timings

Row = dict[str, Any]

#: What each quantity with an interval is the ratio of, batch by batch.
_RATIOS = {
    "tokens_per_s": ("output_tokens", "duration_s"),
    "words_per_s": ("words", "duration_s"),
    "responses_per_s": ("rows", "duration_s"),
    "power_w": ("energy_j", "duration_s"),
    "energy_per_token_j": ("energy_j", "output_tokens"),
    "energy_per_response_j": ("energy_j", "rows"),
}


def aggregate(states: Iterable[CellState]) -> pd.DataFrame:
    """Make the table of a study: a row for each state, in their order, with the columns of COLUMNS.

    A cell that is not `ok` has its axes, outcome, reason and target; nothing is measured in it. An
    `ok` cell whose batches.parquet cannot be read, or contradicts its record, becomes `invalid`.
    """
    rows = [_row(state) for state in states]
    _add_repeat_intervals(rows)
    return frame_of(rows, COLUMNS)


def aggregate_devices(states: Iterable[CellState], cells: pd.DataFrame) -> pd.DataFrame:
    """Make the table of a study's devices: a row for each device of each `ok` cell.

    Args:
        states: as given to `aggregate`.
        cells: what it made of them; a cell that it found invalid has no devices.
    """
    rows = []
    for state, outcome in zip(states, cells["outcome"], strict=True):
        if state.record is not None and outcome == State.OK:
            axes = _axes(state.cell)
            rows += [axes | row for row in device_rows(state.record)]
    return frame_of(rows, DEVICE_COLUMNS)


def write_cells(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write cells.parquet and cells.csv, and return their paths.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    return write_tidy(frame, COLUMNS, folder, "cells")


def read_cells(path: Path) -> pd.DataFrame:
    """Read a cells.parquet as `write_cells` wrote it.

    Raises:
        RecordError: it is missing, torn, or of another schema.
    """
    return read_tidy(path, COLUMNS)


def _axes(cell: Cell) -> Row:
    """A cell's axes, and whether no model ran in it."""
    engine = ENGINES.get(cell.engine)
    row: Row = {axis: getattr(cell, axis) for axis in AXES}
    return row | {WORD: engine is not None and engine.simulates is not None}


def _row(state: CellState) -> Row:
    row = _axes(state.cell)
    row["cap_w"] = state.cell.cap_w
    row["target"] = state.target
    row["log"] = state.log
    measured: Row = {}
    if state.record is not None and state.state is State.OK:
        try:
            measured = _measured(state.record, state.folder)
        except RecordError as problem:
            detail = str(problem).replace(f"{state.folder}{os.sep}", "")
            state = replace(state, state=State.INVALID, reason="unreadable_file", detail=detail, record=None)
    row |= {"outcome": str(state.state), "reason": state.reason, "detail": state.detail}
    if state.record is not None:
        row |= _described(state.record)
    if state.left_out is not None:
        need = state.left_out.need
        row |= {"planned_memory_gib": need.total_gib, "planned_allocated_gib": need.allocated_gib}
    return row | measured


def _described(record: Record) -> Row:
    """What every record holds, whether the cell ran through or did not fit."""
    provenance, inputs = record.provenance, record.inputs
    row: Row = {
        "nodes": record.nodes,
        "constants_hash": record.constants_hash,
        "model_fingerprint": inputs.model_fingerprint,
        "dataset_sha256": inputs.dataset_sha256,
        "prompt_ids_sha256": inputs.prompt_ids_sha256,
        **memory_columns(record.memory),
        **engine_columns(provenance),
        "device_names": ", ".join(dict.fromkeys(provenance.device_names)) or None,
        "hosts": ", ".join(provenance.nodes) or None,
        "site": provenance.site,
        "launcher": provenance.launcher,
        "job_id": provenance.job_id,
        "was_loaded": provenance.was_loaded,
        "commit": provenance.commit,
        "commit_dirty": provenance.commit_dirty,
        "versions": json.dumps(provenance.versions, sort_keys=True),
    }
    if record.timings is not None:
        row |= {"started_at": record.timings.started_at, "ended_at": record.timings.ended_at}
    return row


def _measured(record: Record, folder: Path) -> Row:
    """Counts, times, joules and ratios of an `ok` record, with the interval within its run.

    Raises:
        RecordError: batches.parquet is torn or contradicts the record.
    """
    timings, counts, energy, utilisation = record.timings, record.counts, record.energy, record.utilisation
    assert timings is not None  # a record of outcome ok has all of them
    assert counts is not None
    assert energy is not None
    assert utilisation is not None
    assert record.efficiency is not None
    row = counts.model_dump() | timings.model_dump()
    row |= efficiency_columns(record.efficiency) | energy_columns(energy) | utilisation_columns(utilisation)
    row |= cap_columns(record.power_cap) | limit_columns(energy, record.power_cap)
    row |= _ratios(counts, timings, row["energy_j"])
    if not record.provenance.was_loaded:
        row |= _paper_ratios(counts, timings, row["job_energy_j"])
    row["energy_per_token_net_loaded_j"] = _ratio(row["energy_net_loaded_j"], counts.output_tokens)
    batches = _batches(folder / "batches.parquet", counts)
    if record.simulated is not None:
        return row  # its batches differ as made-up prompts do
    return row | _within_run(batches, timings.duration_s, row["energy_j"])


def _ratios(counts: Counts, timings: Timings, energy_j: float | None) -> Row:
    return {
        "tokens_per_s": _ratio(counts.output_tokens, timings.duration_s),
        "words_per_s": _ratio(counts.words, timings.duration_s),
        "responses_per_s": _ratio(counts.responses, timings.duration_s),
        "power_w": _ratio(energy_j, timings.duration_s),
        "energy_per_token_j": _ratio(energy_j, counts.output_tokens),
        "energy_per_generated_token_j": _ratio(energy_j, counts.generated_tokens),
        "energy_per_response_j": _ratio(energy_j, counts.responses),
    }


def _paper_ratios(counts: Counts, timings: Timings, job_j: float | None) -> Row:
    """What the paper makes of a job that starts its ranks and loads its model."""
    return {
        "power_paper_w": _ratio(job_j, timings.job_duration_s),
        "energy_per_token_paper_j": _ratio(job_j, counts.output_tokens_reencoded),
        "energy_per_response_paper_j": _ratio(job_j, counts.responses),
    }


def _ratio(above: float | None, below: float) -> float | None:
    return None if above is None or below == 0 else above / below


def _batches(path: Path, counts: Counts) -> Mapping[str, list[Any]]:
    table = read_table(path)
    batches: dict[str, list[Any]] = {
        name: table.column(name).to_pylist()
        for name in ("rows", "start_s", "stop_s", "output_tokens", "words", "energy_j")
    }
    found = table.num_rows, sum(batches["rows"]), sum(batches["output_tokens"])
    expected = counts.batches, counts.prompts, counts.output_tokens
    if found != expected:
        raise RecordError(f"{path}: batches, rows and output tokens are {found}; the record says {expected}")
    return batches


def _within_run(batches: Mapping[str, list[Any]], duration_s: float, energy_j: float | None) -> Row:
    """Jackknife intervals over the batches of one run.

    What the window holds beside the batches (time, joules) is shared evenly among them, so that their
    ratio of sums is the cell's.
    """
    count = len(batches["rows"])
    if count < FEWEST:
        return {}
    lasted_s = [stop - start for start, stop in zip(batches["start_s"], batches["stop_s"], strict=True)]
    parts: dict[str, list[float]] = {
        "output_tokens": batches["output_tokens"],
        "words": batches["words"],
        "rows": batches["rows"],
        "duration_s": _spread(lasted_s, duration_s),
        "energy_j": [],
    }
    if energy_j is not None and None not in batches["energy_j"]:
        parts["energy_j"] = _spread(batches["energy_j"], energy_j)
    row: Row = {}
    for name, (above, below) in _RATIOS.items():
        row |= _interval_columns(name, jackknife_interval(parts[above], parts[below]))
    if row:
        row |= {"interval_kind": "within run", "interval_n": count}
    return row


def _spread(parts: list[float], total: float) -> list[float]:
    rest = (total - sum(parts)) / len(parts)
    return [part + rest for part in parts]


def _interval_columns(name: str, interval: Interval | None) -> Row:
    return {} if interval is None else {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _add_repeat_intervals(rows: list[Row]) -> None:
    """Replace intervals within runs by those over repeats, where a point has three or more."""
    repeats: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if row["outcome"] == State.OK and not row[WORD]:
            repeats[tuple(row[axis] for axis in AXES if axis != "repeat")].append(row)
    for members in repeats.values():
        if len(members) < FEWEST:
            continue
        shared: Row = {"interval_kind": "repeats", "interval_n": len(members)}
        for name in WITH_INTERVAL:
            values = [row[name] for row in members]
            interval = None if None in values else repeats_interval(values)
            shared |= {f"{name}_low": None, f"{name}_high": None} | _interval_columns(name, interval)
        for row in members:
            row.update(shared)
