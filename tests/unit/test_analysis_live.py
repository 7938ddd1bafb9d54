"""Cells that wait or run now."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from shardwatt.analysis.live import with_live_attempts
from shardwatt.analysis.survey import CellState, State, survey
from shardwatt.attempts import Attempt, Claim
from shardwatt.layout import CellPaths, claim_file
from shardwatt.leftovers import comment_of
from shardwatt.plan.leftout import LeftOut
from shardwatt.plan.memory import MemoryNeed
from shardwatt.recordfiles import write
from shardwatt.run.exchange import Progress, write_progress
from shardwatt.run.workfolder import OWNER_FILE, Owner
from shardwatt.slurmjob import SlurmJob
from synthetic_cells import CONSTANTS, STARTED, STUDY, make_cell, write_failed, write_ok, write_outdated

CELL = make_cell()
COMMENT = comment_of(STUDY, CELL.path)
WAITING = SlurmJob("41", "PENDING", reason="Resources", comment=COMMENT)
RUNNING = SlurmJob("42", "RUNNING", nodes="n[0-3]", comment=COMMENT)


def state_of(base: Path, jobs: Sequence[SlurmJob] = ()) -> CellState:
    (state,) = with_live_attempts(base, STUDY, survey(base, STUDY, [CELL], CONSTANTS), jobs, prompts=20)
    return state


def make_work(base: Path, job_id: str, progress: Progress | None) -> None:
    begin = CellPaths(base, STUDY, CELL).work(job_id)
    work = begin.with_name(f"{begin.name}-abc")
    work.mkdir(parents=True)
    if progress is not None:
        write_progress(work, progress)


def test_a_job_in_the_queue_shows_its_number_and_why_it_waits(tmp_path: Path) -> None:
    state = state_of(tmp_path, [WAITING])
    assert (state.state, state.reason, state.job_id) == (State.PENDING, "Resources", "41")


def test_a_running_job_shows_its_nodes_and_how_far_it_is(tmp_path: Path) -> None:
    state = state_of(tmp_path, [WAITING, RUNNING])
    assert (state.state, state.reason, state.detail) == (State.RUNNING, "start", "job 42 on n[0-3]")
    make_work(tmp_path, "42", Progress(stage="run", generated_tokens=640, prompts_done=10, since_s=1.0))
    state = state_of(tmp_path, [RUNNING])
    assert (state.reason, state.job_id) == ("run", "42")
    assert state.detail == "job 42 on n[0-3]: 10 of 20 prompts, 640 tokens"


def test_a_cell_waits_for_its_turn_in_a_job_of_several_cells(tmp_path: Path) -> None:
    path = claim_file(tmp_path, STUDY, "42")
    path.parent.mkdir(parents=True)
    write(Claim(job_id="42", cells=[CELL.path]), path)
    job = SlurmJob("42", "RUNNING", nodes="n[0-3]", comment="shardwatt")
    assert (state_of(tmp_path, [job]).state, state_of(tmp_path, [job]).reason) == (State.PENDING, "turn")
    paths = CellPaths(tmp_path, STUDY, CELL)
    paths.logs.mkdir(parents=True)
    write(Attempt(job_id="42", node="n0", pid=1, started_at=STARTED), paths.attempt("42"))
    assert state_of(tmp_path, [job]).state is State.RUNNING


def test_a_job_beats_the_plan_that_leaves_its_cell_out(tmp_path: Path) -> None:
    """It was submitted before the plan said so, or by hand."""
    need = MemoryNeed(weights_gib=15.5, kv_cache_gib=28.0, activations_gib=1.0, workspace_gib=0.75)
    states = survey(tmp_path, STUDY, [CELL], CONSTANTS, left_out=lambda cell: LeftOut(cell, need, 32.0))
    (state,) = with_live_attempts(tmp_path, STUDY, states, [], prompts=20)
    assert (state.state, state.reason) == (State.DOES_NOT_FIT, "predicted")
    (state,) = with_live_attempts(tmp_path, STUDY, states, [RUNNING], prompts=20)
    assert (state.state, state.job_id) == (State.RUNNING, "42")


def test_a_retry_beats_an_older_failure_and_a_refused_record(tmp_path: Path) -> None:
    write_failed(tmp_path, CELL)
    assert state_of(tmp_path).state is State.FAILED
    assert state_of(tmp_path, [WAITING]).state is State.PENDING
    write_outdated(tmp_path, CELL)
    assert state_of(tmp_path, [RUNNING]).state is State.RUNNING


def test_a_valid_result_beats_everything(tmp_path: Path) -> None:
    write_ok(tmp_path, CELL)
    assert state_of(tmp_path, [RUNNING]).state is State.OK


LOCAL = "local-20260102T030405-7-0123abcd"


def local_attempt(base: Path, owner: Owner) -> None:
    """An attempt on this machine that has begun and not ended, and its work folder."""
    paths = CellPaths(base, STUDY, CELL)
    paths.logs.mkdir(parents=True)
    attempt = Attempt(job_id=LOCAL, node=platform.node(), pid=owner.pid, started_at=STARTED)
    write(attempt, paths.attempt(LOCAL))
    make_work(base, LOCAL, Progress(stage="load", since_s=1.0))
    (work,) = paths.work(LOCAL).parent.iterdir()
    (work / OWNER_FILE).write_text(owner.model_dump_json())


@pytest.mark.parametrize("is_alive", [True, False])
def test_an_attempt_on_this_machine_runs_while_its_supervisor_lives(tmp_path: Path, is_alive: bool) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    owner = Owner.this() if is_alive else Owner.this().model_copy(update={"pid": ended.pid})
    local_attempt(tmp_path, owner)
    state = state_of(tmp_path)
    assert state.state is (State.RUNNING if is_alive else State.MISSING)
    assert state.reason == ("load" if is_alive else "no_end")


@pytest.mark.parametrize(
    "other",
    [{"started_ticks": 1}, {"boot_id": "0" * 36}, {"pid_space": 1}],
    ids=["number taken again", "machine started anew", "container"],
)
def test_a_process_of_the_same_number_that_is_another_runs_nothing(
    tmp_path: Path, other: dict[str, object]
) -> None:
    local_attempt(tmp_path, Owner.this().model_copy(update=other))
    state = state_of(tmp_path)
    assert (state.state, state.reason) == (State.MISSING, "no_end")
