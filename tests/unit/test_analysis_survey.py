"""The state of each cell on disk."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardwatt.analysis.survey import CellState, State, survey
from shardwatt.attempts import Attempt
from shardwatt.cell import Cell
from shardwatt.cellfiles import write_table
from shardwatt.layout import CELL_FILES, CellPaths
from shardwatt.plan.leftout import LeftOut
from shardwatt.plan.memory import MemoryNeed
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
NEED = MemoryNeed(weights_gib=15.51, kv_cache_gib=28.0, activations_gib=1.0, workspace_gib=0.75)


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
    assert "schema version 1; expected 4" in (state.detail or "")


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


def _left_out(cell: Cell) -> LeftOut:
    return LeftOut(cell, NEED, 32.0)


def test_a_cell_that_is_left_out_does_not_fit_until_there_is_a_record(tmp_path: Path) -> None:
    cells = [make_cell(batch=batch) for batch in (1, 2, 4, 5, 10, 20)]
    write_ok(tmp_path, cells[0])
    write_does_not_fit(tmp_path, cells[1])
    write_failed(tmp_path, cells[2])
    write_torn(tmp_path, cells[3])
    write_outdated(tmp_path, cells[4])
    states = survey(tmp_path, STUDY, cells, CONSTANTS, left_out=_left_out)
    assert [(str(state.state), state.reason) for state in states] == [
        ("ok", None),
        ("does_not_fit", "device_memory"),
        ("does_not_fit", "predicted"),
        ("invalid", "unreadable_record"),
        ("outdated", "other_constants"),
        ("does_not_fit", "predicted"),
    ]
    assert states[5].detail == (
        "the plan needs 45.3 GiB of each v100, which has 32 GiB: "
        "weights 15.5, KV cache 28.0, activations 1.0, workspace 0.8"
    )
    assert [state.left_out is not None for state in states] == [False, False, True, False, False, True]


def test_only_the_cells_that_are_left_out_are_predicted(tmp_path: Path) -> None:
    small, large = make_cell(batch=4), make_cell(batch=512)

    def left_out(cell: Cell) -> LeftOut | None:
        return _left_out(cell) if cell.batch == 512 else None

    states = survey(tmp_path, STUDY, [small, large], CONSTANTS, left_out=left_out)
    assert [state.reason for state in states] == ["not_run", "predicted"]


def test_a_plain_survey_imports_nothing_heavy() -> None:
    code = (
        "import sys, shardwatt.analysis.survey; "
        "print([m for m in ('pandas', 'matplotlib', 'pyarrow', 'torch') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_simulated_cell_has_read_no_model_and_no_data(tmp_path: Path) -> None:
    """It is neither outdated by them, nor does it say which ones real cells of the study should have read."""
    real, rehearsed = make_cell(), make_cell(engine="simulated")
    write_ok(tmp_path, real)
    write_ok(tmp_path, rehearsed, Numbers(model_fingerprint="simulated", dataset_sha256="simulated"))
    expected: dict[str, Any] = {
        "model_fingerprints": {(real.model, real.shards): Numbers().model_fingerprint},
        "dataset_hashes": {real.dataset: Numbers().dataset_sha256},
    }
    for known in (dict[str, Any](), expected):
        states = survey(tmp_path, STUDY, [rehearsed, real], CONSTANTS, **known)
        assert [state.state for state in states] == [State.OK, State.OK]


def test_a_simulated_cell_of_another_forecast_is_outdated(tmp_path: Path) -> None:
    real, rehearsed = make_cell(), make_cell(engine="simulated")
    write_ok(tmp_path, real)
    write_ok(tmp_path, rehearsed, Numbers(model_fingerprint="simulated-1", dataset_sha256="simulated"))
    for now, state in (("simulated-1", State.OK), ("simulated-2", State.OUTDATED)):
        states = survey(tmp_path, STUDY, [rehearsed, real], CONSTANTS, played=lambda _, now=now: now)  # type: ignore[misc]
        assert [found.state for found in states] == [state, State.OK]
    assert (states[0].reason, states[0].record) == ("other_forecast", None)
