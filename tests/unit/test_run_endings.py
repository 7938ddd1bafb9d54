"""Guards attempts that go on from being called lost, where Slurm here knows not their job, or its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shardwatt.attempts import Attempt, Failure
from shardwatt.errors import Reason
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read, write
from shardwatt.records import Outcome
from shardwatt.run.endings import settle
from synthetic_cells import STARTED, STUDY, make_cell

CELL = make_cell()
HASH = "a" * 16
JOB = "500"
UNKNOWN = "#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n"
RUNNING_ELSEWHERE = f"#!/bin/sh\necho 'JobId={JOB} JobState=RUNNING'\necho '   WorkDir=/mnt/a/study'\n"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm's commands; no job of this folder is in the queue, and there is no accounting."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    add(folder, "squeue", "#!/bin/sh\n")
    return folder


def add(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def begun(base: Path) -> tuple[CellPaths, Path]:
    """An attempt without an end, and its work folder."""
    paths = CellPaths(base, STUDY, CELL)
    paths.logs.mkdir(parents=True)
    attempt = Attempt(job_id=JOB, node="v100-0", pid=1, constants_hash=HASH, started_at=STARTED)
    write(attempt, paths.attempt(JOB))
    begin = paths.work(JOB)
    work = begin.with_name(f"{begin.name}-abc")
    work.mkdir(parents=True)
    (work / "samples-0.csv").write_text("much")
    return paths, work


def test_a_job_of_another_cluster_is_not_lost_while_its_work_folder_changes(
    commands: Path, tmp_path: Path
) -> None:
    """Two clusters may share a file system, and each knows its own jobs alone."""
    add(commands, "scontrol", UNKNOWN)
    paths, work = begun(tmp_path)
    settle(tmp_path, STUDY, [CELL], HASH)
    assert not paths.failure.exists()
    assert read(Attempt, paths.attempt(JOB)).ended_at is None
    assert list(work.iterdir())
    an_hour_ago_s = time.time() - 3600
    os.utime(work, (an_hour_ago_s, an_hour_ago_s))
    settle(tmp_path, STUDY, [CELL], HASH)
    assert read(Failure, paths.failure).reason is Reason.LOST
    assert not work.exists()


def test_a_running_job_whose_folder_has_another_name_there_is_not_lost(
    commands: Path, tmp_path: Path
) -> None:
    """Mount points differ between nodes."""
    add(commands, "scontrol", RUNNING_ELSEWHERE)
    paths, work = begun(tmp_path)
    an_hour_ago_s = time.time() - 3600
    os.utime(work, (an_hour_ago_s, an_hour_ago_s))
    settle(tmp_path, STUDY, [CELL], HASH)
    assert not paths.failure.exists()
    assert work.exists()


@pytest.mark.parametrize(("state", "stays"), [("TIMEOUT", False), ("COMPLETING", True), ("RUNNING", True)])
def test_what_an_attempt_left_that_was_killed_after_it_told_its_end_is_removed(
    commands: Path, tmp_path: Path, state: str, stays: bool
) -> None:
    """Slurm gives a supervisor that hung little time between its signal and the kill."""
    add(
        commands,
        "scontrol",
        f"#!/bin/sh\necho 'JobId={JOB} JobState={state}'\necho '   WorkDir={tmp_path}'\n",
    )
    paths, work = begun(tmp_path)
    attempt = read(Attempt, paths.attempt(JOB))
    end = {"ended_at": STARTED, "outcome": Outcome.FAILED, "reason": str(Reason.TIME_LIMIT)}
    write(attempt.model_copy(update=end), paths.attempt(JOB))
    settle(tmp_path, STUDY, [CELL], HASH, but=JOB)
    assert work.exists()
    settle(tmp_path, STUDY, [CELL], HASH)
    assert work.exists() is stays
    assert read(Attempt, paths.attempt(JOB)).reason == str(Reason.TIME_LIMIT)
