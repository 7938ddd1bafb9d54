"""Guards attempts that go on from being called lost, where Slurm here knows not their job, or its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shardwatt.attempts import Attempt, Failure
from shardwatt.cell import Cell
from shardwatt.errors import Reason
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read, write
from shardwatt.records import Outcome
from shardwatt.run.endings import settle
from shardwatt.run.workfolder import OWNER_FILE, Owner
from synthetic_cells import STARTED, STUDY, make_cell, write_failed

CELL, OTHER_CELL = make_cell(), make_cell(batch=2)
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


def begun(base: Path, cluster: str | None = None, cell: Cell = CELL) -> tuple[CellPaths, Path]:
    """An attempt without an end, and its work folder."""
    paths = CellPaths(base, STUDY, cell)
    paths.logs.mkdir(parents=True)
    attempt = Attempt(
        job_id=JOB, cluster=cluster, node="v100-0", pid=1, constants_hash=HASH, started_at=STARTED
    )
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


def answers(folder: Path, cluster: str, work_dir: Path, state: str = "COMPLETED") -> None:
    """Let `scontrol` speak for a cluster, whose job of that number worked in a folder and has ended."""
    job = f"JobId={JOB} JobState={state} ExitCode=0:0\\n   WorkDir={work_dir}"
    config = f"Configuration data\\nClusterName             = {cluster}"
    add(
        folder,
        "scontrol",
        f"""#!/bin/sh
case "$2" in config) printf '{config}\\n' ;; *) printf '{job}\\n' ;; esac
""",
    )


@pytest.mark.parametrize(
    ("begun_on", "is_left"),
    [("beta", True), ("alpha", False), (None, False)],
    ids=["another cluster's", "this one's", "not named, as once"],
)
def test_an_ended_job_of_the_same_number_on_another_cluster_ends_no_attempt(
    commands: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    begun_on: str | None,
    is_left: bool,
) -> None:
    """Clusters that share the folder count their jobs apart."""
    caplog.set_level("INFO")
    answers(commands, "alpha", tmp_path)
    paths, work = begun(tmp_path, begun_on)
    an_hour_ago_s = time.time() - 3600
    os.utime(work, (an_hour_ago_s, an_hour_ago_s))
    settle(tmp_path, STUDY, [CELL], HASH)
    assert (read(Attempt, paths.attempt(JOB)).ended_at is None) is is_left
    assert (work.exists(), paths.failure.exists()) == (is_left, not is_left)
    said = f"job {JOB} of {CELL.path} is of cluster 'beta', and this is 'alpha'; left alone"
    assert (said in caplog.text) is is_left


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_of_two_jobs_of_one_number_each_is_its_own_clusters_to_tidy(
    commands: Path, tmp_path: Path, first: str
) -> None:
    answers(commands, "alpha", tmp_path)
    second = "beta" if first == "alpha" else "alpha"
    folders = {}
    an_hour_ago_s = time.time() - 3600
    for cluster, cell in ((first, CELL), (second, OTHER_CELL)):
        paths, folders[cluster] = begun(tmp_path, cluster, cell)
        owner = Owner.this().model_copy(update={"node": "v100-0", "cluster": cluster})
        (folders[cluster] / OWNER_FILE).write_text(owner.model_dump_json())
        attempt = read(Attempt, paths.attempt(JOB))
        end = {"ended_at": STARTED, "outcome": Outcome.FAILED, "reason": str(Reason.TIME_LIMIT)}
        write(attempt.model_copy(update=end), paths.attempt(JOB))
        os.utime(folders[cluster], (an_hour_ago_s, an_hour_ago_s))
    settle(tmp_path, STUDY, [CELL, OTHER_CELL], HASH)
    assert [cluster for cluster, folder in folders.items() if folder.exists()] == ["beta"]


@pytest.mark.parametrize("begun_on", ["beta", "alpha"])
def test_another_clusters_job_of_the_same_number_tells_no_better_reason(
    commands: Path, tmp_path: Path, begun_on: str
) -> None:
    answers(commands, "alpha", tmp_path, "TIMEOUT")
    paths, _ = begun(tmp_path, begun_on)
    attempt = read(Attempt, paths.attempt(JOB))
    end = {"ended_at": STARTED, "outcome": Outcome.FAILED, "reason": str(Reason.CANCELLED)}
    write(attempt.model_copy(update=end), paths.attempt(JOB))
    failure = write_failed(tmp_path, CELL).model_copy(update={"job_id": JOB, "reason": Reason.CANCELLED})
    write(failure, paths.failure)
    settle(tmp_path, STUDY, [CELL], HASH)
    expected = Reason.CANCELLED if begun_on == "beta" else Reason.TIME_LIMIT
    assert read(Failure, paths.failure).reason is expected
    assert read(Attempt, paths.attempt(JOB)).reason == str(expected)


def test_an_attempt_that_names_no_cluster_is_read() -> None:
    known = {"schema_version": 4, "job_id": JOB, "node": "n", "pid": 1, "started_at": STARTED}
    assert Attempt.model_validate(known).cluster is None
