"""What there is of a study on disk: one state for each of its cells, and why."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from shardwatt.attempts import Failure
from shardwatt.cell import AXES, Cell
from shardwatt.errors import RecordError
from shardwatt.layout import CELL_FILES, RECORD, CellPaths, study_results
from shardwatt.leftovers import attempts_of
from shardwatt.plan.leftout import LeftOut
from shardwatt.recordfiles import read
from shardwatt.records import Outcome, Record
from shardwatt.study import Constants

_PARQUET_MAGIC = b"PAR1"
_PARQUET_LEAST_BYTES = 12

#: Records of no cell that are named; of the others there is the number.
_STRAYS_SHOWN = 3

Key = TypeVar("Key", bound=Hashable)


class State(StrEnum):
    """What is known of a cell; `analysis.live` alone gives `running` and `pending`."""

    OK = "ok"
    DOES_NOT_FIT = "does_not_fit"
    FAILED = "failed"
    RUNNING = "running"
    PENDING = "pending"
    MISSING = "missing"
    INVALID = "invalid"
    OUTDATED = "outdated"


#: States whose files Snakemake would trust although nothing can be taken from them.
REFUSED = (State.INVALID, State.OUTDATED)

#: Reason of a cell that does not fit by the plan, and was left out.
PREDICTED = "predicted"


@dataclass(frozen=True, slots=True)
class CellState:
    """What is known of one cell.

    Attributes:
        cell: the cell.
        state: its outcome, or why it has none.
        reason: a short code; None for `ok`.
        detail: the same in words; None for `ok`.
        record: the record of an `ok` or `does_not_fit` cell, otherwise None.
        folder: where the cell's files are or would be.
        log: the log to read, relative to the folder in which Snakemake runs; None where there is none.
        target: what to ask Snakemake for to run the cell again.
        job_id: of the job that runs a `running` cell, or will run a `pending` one, otherwise None.
        left_out: why the study leaves the cell out, of one whose reason is `predicted`, otherwise None.
    """

    cell: Cell
    state: State
    reason: str | None
    detail: str | None
    record: Record | None
    folder: Path
    log: str | None
    target: str
    job_id: str | None = None
    left_out: LeftOut | None = None


def survey(
    base: Path,
    study_name: str,
    cells: Iterable[Cell],
    constants: Constants,
    *,
    model_fingerprints: Mapping[tuple[str, int], str] | None = None,
    dataset_hashes: Mapping[str, str] | None = None,
    left_out: Callable[[Cell], LeftOut | None] = lambda _: None,
    played: Callable[[Cell], str] | None = None,
    deep: bool = False,
) -> list[CellState]:
    """Find the state of each cell, in the order given. No bad cell hides another; nothing is raised.

    A record is `ok` or `does_not_fit` only if it is whole, belongs to its path, and was made with the
    study's constants, the expected checkpoint and the expected data. Where the latter two are not
    given, the newest record of the study decides: the others are never mixed with it. A cell that the study
    leaves out is `does_not_fit` by its plan, until there is a record of it.

    Args:
        base: the folder that holds `results` and `logs`.
        study_name: the study's name.
        cells: its cells.
        constants: its constants.
        model_fingerprints: expected checkpoint of each (model, shards).
        dataset_hashes: expected SHA-256 of each data set.
        left_out: what tells why the study leaves a cell out; None of one that it runs.
        played: the identity of the forecast that a simulated cell plays by the plan as it is now; None: what
            simulated records played is not looked at.
        deep: also read the Parquet files whole and compare their rows with the record, which needs
            pyarrow; otherwise only their first and last bytes are looked at.
    """
    with _no_search_for_garbage():
        states = [_state(CellPaths(base, study_name, cell), constants, left_out, deep=deep) for cell in cells]
    if played is not None:
        states = [_refuse_other_forecast(state, played) for state in states]
    states = _refuse_others(
        states, model_fingerprints or {}, _model_key, _fingerprint, "other_model", "checkpoint"
    )
    return _refuse_others(states, dataset_hashes or {}, _dataset_key, _dataset, "other_data", "data file")


def strays(base: Path, study_name: str, targets: Iterable[str]) -> str | None:
    """A sentence on records below a study's results that are of none of its cells; None: there are none.

    Args:
        base: the folder that holds `results` and `logs`.
        study_name: the study's name.
        targets: of all its cells.
    """
    folder = study_results(base, study_name) / "cells"
    records = folder.glob("/".join(["*"] * len(AXES) + [RECORD]))
    found = sorted({str(path.relative_to(base)) for path in records} - set(targets))
    if not found:
        return None
    return (
        f"Records below {folder.relative_to(base)} that belong to no cell of the study, as it and the site "
        f"are now, and count nowhere: {len(found)}, "
        f"{', '.join(found[:_STRAYS_SHOWN])}{', …' if len(found) > _STRAYS_SHOWN else ''}"
    )


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """Records are trees that stay: searching thousands of them takes longer than reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _state(
    paths: CellPaths, constants: Constants, left_out: Callable[[Cell], LeftOut | None], *, deep: bool
) -> CellState:
    try:
        record = read(Record, paths.record)
    except FileNotFoundError:
        predicted = left_out(paths.cell)
        if predicted is None:
            return _without_record(paths, constants)
        state = _found(paths, State.DOES_NOT_FIT, PREDICTED, str(predicted))
        return replace(state, left_out=predicted)
    except RecordError as problem:
        return _found(paths, State.INVALID, "unreadable_record", str(problem))
    if record.cell.to_cell() != paths.cell or record.study != paths.study:
        found = f"study {record.study}, {record.cell.to_cell().path}"
        return _found(paths, State.INVALID, "wrong_cell", f"{paths.record}: is the record of {found}")
    if record.constants_hash != constants.hash:
        return _found(paths, State.OUTDATED, "other_constants", _difference(record.constants, constants))
    broken = _broken_file(paths.results)
    if broken is None and deep:
        broken = contradiction(paths.results, record)
    if broken is not None:
        return _found(paths, State.INVALID, *broken)
    if record.outcome is Outcome.DOES_NOT_FIT:
        reason = "device_memory" if record.simulated is None else PREDICTED
        state = _found(paths, State.DOES_NOT_FIT, reason, record.reason)
    else:
        state = _found(paths, State.OK, None, None)
    return replace(state, record=record)


def _found(paths: CellPaths, state: State, reason: str | None, detail: str | None) -> CellState:
    log = paths.supervisor_log
    if detail is not None:  # what is shown and shared names no folder above the project's
        detail = detail.replace(f"{paths.base}{os.sep}", "")
    return CellState(
        cell=paths.cell,
        state=state,
        reason=reason,
        detail=detail,
        record=None,
        folder=paths.results,
        log=str(log.relative_to(paths.base)) if log.is_file() else None,
        target=paths.target,
    )


def _without_record(paths: CellPaths, constants: Constants) -> CellState:
    try:
        failure = read(Failure, paths.failure)
    except FileNotFoundError:
        return _found(paths, State.MISSING, *_last_attempt(paths))
    except RecordError as problem:
        return _found(paths, State.FAILED, "unreadable_failure", str(problem))
    if failure.constants_hash != constants.hash or failure.cell.to_cell() != paths.cell:
        detail = f"not run with these constants; an attempt with others failed: {failure.message}"
        return _found(paths, State.MISSING, "not_run", detail)
    state = _found(paths, State.FAILED, failure.reason, failure.message)
    return replace(state, log=failure.log)


def _last_attempt(paths: CellPaths) -> tuple[str, str]:
    """Why there is neither a record nor a failure: never started, or started and not ended."""
    open_attempts = [attempt for attempt in attempts_of(paths) if attempt.ended_at is None]
    if not open_attempts:
        return "not_run", "not run yet"
    last = open_attempts[-1]
    return "no_end", (
        f"job {last.job_id} started on {last.node} at {last.started_at:%Y-%m-%d %H:%M:%S} UTC "
        "and has not ended: it still runs, or was killed"
    )


def _difference(found: Constants, expected: Constants) -> str:
    before, now = found.model_dump(), expected.model_dump()
    changes = [f"{key} {before[key]}, now {now[key]}" for key in now if before[key] != now[key]]
    return f"made with other constants: {', '.join(changes)}"


def _broken_file(folder: Path) -> tuple[str, str] | None:
    """The first declared file that is not there or is no whole Parquet file, as reason and detail."""
    for name in CELL_FILES:
        path = folder / name
        if path.suffix != ".parquet":
            continue
        try:
            with path.open("rb") as stream:
                head = stream.read(len(_PARQUET_MAGIC))
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - len(_PARQUET_MAGIC)))
                tail = stream.read()
        except FileNotFoundError:
            return "missing_file", f"{path}: is not there; the record alone is not the cell"
        except OSError as problem:
            return "unreadable_file", f"{path}: {problem.strerror}"
        if size < _PARQUET_LEAST_BYTES or head != _PARQUET_MAGIC or tail != _PARQUET_MAGIC:
            return "unreadable_file", f"{path}: torn: {size} bytes without Parquet's begin or end"
    return None


def contradiction(folder: Path, record: Record) -> tuple[str, str] | None:
    """What in a cell's Parquet files cannot be read or contradicts the record, as reason and detail."""
    from shardwatt.cellfiles import read_table  # pyarrow; a plain survey does without

    try:
        tables = {name: read_table(folder / name) for name in CELL_FILES if name.endswith(".parquet")}
    except RecordError as problem:
        return "unreadable_file", str(problem)
    if record.counts is None:
        return None
    expected = {"responses.parquet": record.counts.prompts, "batches.parquet": record.counts.batches}
    for name, rows in expected.items():
        if tables[name].num_rows != rows:
            return "contradiction", f"{folder / name}: {tables[name].num_rows} rows; the record says {rows}"
    return None


def _model_key(state: CellState) -> tuple[str, int]:
    return state.cell.model, state.cell.shards


def _fingerprint(record: Record) -> str:
    return record.inputs.model_fingerprint


def _dataset_key(state: CellState) -> str:
    return state.cell.dataset


def _dataset(record: Record) -> str:
    return record.inputs.dataset_sha256


def _ended(record: Record) -> datetime:
    return record.timings.ended_at if record.timings else datetime.min.replace(tzinfo=UTC)


def _refuse_other_forecast(state: CellState, played: Callable[[Cell], str]) -> CellState:
    """Mark `outdated` a simulated cell that played another forecast than the plan's now."""
    record = state.record
    if record is None or record.simulated is None or _fingerprint(record) == played(state.cell):
        return state
    return replace(
        state,
        state=State.OUTDATED,
        reason="other_forecast",
        detail="played another forecast than the plan's now: study, site, calibration or shardwatt changed",
        record=None,
    )


def _refuse_others(
    states: list[CellState],
    expected: Mapping[Key, str],
    key_of: Callable[[CellState], Key],
    identity_of: Callable[[Record], str],
    reason: str,
    what: str,
) -> list[CellState]:
    """Mark `outdated` what was made from another input than expected, or than the newest record's."""
    wanted: dict[Key, str] = {}
    newest: dict[Key, datetime] = {}
    for state in states:
        key = key_of(state)
        # A simulated cell has read neither, and stands for none.
        if state.record is None or state.record.simulated is not None:
            continue
        if key not in newest or _ended(state.record) > newest[key]:
            wanted[key], newest[key] = identity_of(state.record), _ended(state.record)
    wanted.update(expected)
    checked = []
    for state in states:
        found = None if state.record is None or state.record.simulated else identity_of(state.record)
        if found is not None and found != wanted[key_of(state)]:
            whose = "the study's now" if key_of(state) in expected else "the newest record's"
            detail = f"made from another {what}: {found[:16]}; {whose} is {wanted[key_of(state)][:16]}"
            checked.append(replace(state, state=State.OUTDATED, reason=reason, detail=detail, record=None))
        else:
            checked.append(state)
    return checked
