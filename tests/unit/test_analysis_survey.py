"""The state of each cell on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shardwatt.analysis.survey import CellState, State, survey
from shardwatt.attempts import Attempt
from shardwatt.cell import Cell
from shardwatt.cellfiles import write_table
from shardwatt.layout import CELL_FILES, CellPaths
from shardwatt.recordfiles import write
from synthetic_cells import (
    CONSTANTS,
    STARTED,
    STUDY,
    Numbers,
    make_cell,
    write_does_not_fit,
    write_failed,
    write_ok,
    write_outdated,
    write_torn,
)

CELL = make_cell()


def _one(base: Path, cell: Cell = CELL, *, deep: bool = False) -> CellState:
    (state,) = survey(base, STUDY, [cell], CONSTANTS, deep=deep)
    return state


def test_every_state_is_told_apart_and_no_cell_hides_another(tmp_path: Path) -> None:
    cells = [make_cell(batch=batch) for batch in (1, 2, 4, 5, 10, 20)]
    write_ok(tmp_path, cells[0])
    write_does_not_fit(tmp_path, cells[1])
    write_failed(tmp_path, cells[2])
    write_torn(tmp_path, cells[3])
    write_outdated(tmp_path, cells[4])
    states = survey(tmp_path, STUDY, cells, CONSTANTS)
    assert [state.cell for state in states] == cells
    assert [state.state for state in states] == [
        State.OK,
        State.DOES_NOT_FIT,
        State.FAILED,
        State.INVALID,
        State.OUTDATED,
        State.MISSING,
    ]
    assert [state.record is not None for state in states] == [True, True, False, False, False, False]
    assert [state.reason for state in states] == [
        None,
        "device_memory",
        "rank_died",
        "unreadable_record",
        "other_constants",
        "not_run",
    ]
    assert all(state.target == f"results/{STUDY}/cells/{state.cell.path}/result.json" for state in states)


def test_a_valid_result_beats_a_failure(tmp_path: Path) -> None:
    write_failed(tmp_path, CELL)
    write_ok(tmp_path, CELL)
    assert _one(tmp_path).state is State.OK


def test_a_failure_names_its_log_and_message(tmp_path: Path) -> None:
    failure = write_failed(tmp_path, CELL)
    state = _one(tmp_path)
    assert (state.log, state.detail) == (failure.log, failure.message)


def test_a_failure_with_other_constants_is_not_the_studys(tmp_path: Path) -> None:
    write_failed(tmp_path, CELL, constants=CONSTANTS.model_copy(update={"seed": 1}), message="old trouble")
    state = _one(tmp_path)
    assert state.state is State.MISSING
    assert "old trouble" in (state.detail or "")


def test_a_torn_failure_is_a_failure(tmp_path: Path) -> None:
    write_failed(tmp_path, CELL)
    path = CellPaths(tmp_path, STUDY, CELL).failure
    path.write_text(path.read_text()[:50])
    assert (_one(tmp_path).state, _one(tmp_path).reason) == (State.FAILED, "unreadable_failure")


def test_changed_constants_are_named(tmp_path: Path) -> None:
    write_outdated(tmp_path, CELL)
    assert "temperature 0.1, now 0.8" in (_one(tmp_path).detail or "")


def test_a_record_of_another_cell_is_invalid(tmp_path: Path) -> None:
    other = make_cell(batch=10)
    write_ok(tmp_path, other)
    there = CellPaths(tmp_path, STUDY, CELL).results
    there.parent.mkdir(parents=True)
    CellPaths(tmp_path, STUDY, other).results.rename(there)
    assert (_one(tmp_path).state, _one(tmp_path).reason) == (State.INVALID, "wrong_cell")


def test_another_schema_version_is_invalid(tmp_path: Path) -> None:
    write_ok(tmp_path, CELL)
    path = CellPaths(tmp_path, STUDY, CELL).record
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 1}))
    state = _one(tmp_path)
    assert state.state is State.INVALID
    assert "schema version 1; expected 3" in (state.detail or "")


@pytest.mark.parametrize("name", [name for name in CELL_FILES if name.endswith(".parquet")])
@pytest.mark.parametrize("deep", [False, True])
def test_each_declared_file_must_be_there_and_whole(tmp_path: Path, name: str, deep: bool) -> None:
    write_ok(tmp_path, CELL)
    path = CellPaths(tmp_path, STUDY, CELL).results / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert (_one(tmp_path, deep=deep).state, _one(tmp_path).reason) == (State.INVALID, "unreadable_file")
    path.unlink()
    state = _one(tmp_path, deep=deep)
    assert (state.state, state.reason) == (State.INVALID, "missing_file")
    assert name in (state.detail or "")


def test_only_a_deep_look_sees_a_hole_in_the_middle_and_missing_rows(tmp_path: Path) -> None:
    write_ok(tmp_path, CELL)
    folder = CellPaths(tmp_path, STUDY, CELL).results
    write_table(folder / "responses.parquet", [])
    assert _one(tmp_path).state is State.OK
    state = _one(tmp_path, deep=True)
    assert (state.state, state.reason) == (State.INVALID, "contradiction")
    assert "0 rows; the record says 20" in (state.detail or "")
    (folder / "responses.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    assert _one(tmp_path, deep=True).reason == "unreadable_file"


def test_records_of_two_checkpoints_are_never_mixed(tmp_path: Path) -> None:
    old, new = make_cell(batch=5), make_cell(batch=10)
    write_ok(tmp_path, old, Numbers(model_fingerprint="a" * 16))
    write_ok(tmp_path, new, Numbers(model_fingerprint="b" * 16, batch_s=99))  # ends later
    states = survey(tmp_path, STUDY, [old, new], CONSTANTS)
    assert [state.state for state in states] == [State.OUTDATED, State.OK]
    assert states[0].reason == "other_model"
    assert states[0].record is None
    expected = {("llama-7b", 1): "a" * 16}
    states = survey(tmp_path, STUDY, [old, new], CONSTANTS, model_fingerprints=expected)
    assert [state.state for state in states] == [State.OK, State.OUTDATED]


def test_checkpoints_of_different_shard_counts_may_differ(tmp_path: Path) -> None:
    cells = [make_cell(shards=1), make_cell(shards=2)]
    for cell, letter in zip(cells, "ab", strict=True):
        write_ok(tmp_path, cell, Numbers(model_fingerprint=letter * 16))
    assert {state.state for state in survey(tmp_path, STUDY, cells, CONSTANTS)} == {State.OK}


def test_a_record_of_another_data_file_is_outdated(tmp_path: Path) -> None:
    write_ok(tmp_path, CELL, Numbers(dataset_sha256="a" * 64))
    (state,) = survey(tmp_path, STUDY, [CELL], CONSTANTS, dataset_hashes={"alpaca": "b" * 64})
    assert (state.state, state.reason) == (State.OUTDATED, "other_data")


def test_an_attempt_without_an_end_is_named(tmp_path: Path) -> None:
    paths = CellPaths(tmp_path, STUDY, CELL)
    paths.logs.mkdir(parents=True)
    write(Attempt(job_id="42", node="node007", pid=1, started_at=STARTED), paths.attempt("42"))
    state = _one(tmp_path)
    assert (state.state, state.reason) == (State.MISSING, "no_end")
    assert "job 42 started on node007" in (state.detail or "")


def test_a_plain_survey_imports_nothing_heavy() -> None:
    code = (
        "import sys, shardwatt.analysis.survey; "
        "print([m for m in ('pandas', 'matplotlib', 'pyarrow', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
