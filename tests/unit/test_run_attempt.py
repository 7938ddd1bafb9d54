"""Guards what a start of a cell writes down: its own end and its own words, never another start's."""

from __future__ import annotations

import contextlib
import logging
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from shardwatt.attempts import Attempt, Failure
from shardwatt.errors import CellFailure, Reason
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Outcome
from shardwatt.run.attempt import OpenAttempt
from shardwatt.run.signals import EndingSignals
from shardwatt.run.workfolder import owner_of
from synthetic_cells import STUDY, make_cell

JOB = "4711"
log = logging.getLogger("shardwatt.test")


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> CellPaths:
    monkeypatch.setenv("SLURM_JOB_ID", JOB)
    caplog.set_level(logging.INFO, "shardwatt")
    return CellPaths(tmp_path, STUDY, make_cell())


def start(paths: CellPaths) -> OpenAttempt:
    return OpenAttempt(paths, "a" * 16, EndingSignals())


def end(attempt: OpenAttempt, problem: Exception | None = None) -> None:
    with contextlib.suppress(CellFailure), attempt:
        if problem is not None:
            raise problem


def test_a_first_start_that_comes_to_its_end_late_leaves_the_seconds_alone(paths: CellPaths) -> None:
    """Of a job that was put back into the queue while its first node was cut off from Slurm alone."""
    first, second = start(paths), start(paths)
    second.started_at = first.started_at + timedelta(seconds=1)
    first.begin()
    second.begin()
    end(first, FileNotFoundError("the work folder"))
    attempt = read(Attempt, paths.attempt(JOB))
    assert (attempt.started_at, attempt.ended_at) == (second.started_at, None)
    assert not paths.failure.exists()
    end(second)
    assert read(Attempt, paths.attempt(JOB)).outcome is Outcome.OK


def test_logs_that_were_tidied_away_are_written_anew(paths: CellPaths) -> None:
    attempt = start(paths)
    attempt.begin()
    shutil.rmtree(paths.base / "logs")
    log.info("on it goes")
    end(attempt, CellFailure(Reason.RANK_DIED, "gone"))
    assert read(Attempt, paths.attempt(JOB)).outcome is Outcome.FAILED
    assert read(Failure, paths.failure).log_tail[-2].endswith("on it goes")


def test_a_log_that_another_start_removed_goes_on_and_only_own_lines_are_quoted(paths: CellPaths) -> None:
    """Snakemake removes it before it starts a cell."""
    attempt = start(paths)
    attempt.begin()
    paths.supervisor_log.unlink()
    paths.supervisor_log.write_text("another start\n")
    log.info("this start")
    with paths.supervisor_log.open("a") as other:
        other.write("another start\n" * 50)
    end(attempt, CellFailure(Reason.CANCELLED, "ended"))
    written = paths.supervisor_log.read_text()
    assert "this start" in written
    assert "failed: cancelled" in written
    quoted = read(Failure, paths.failure).log_tail
    assert len(quoted) == 3
    assert quoted[1].endswith(" this start")
    assert quoted[2].endswith(" failed: cancelled: ended")


@pytest.mark.parametrize("whose", ["own", "another's"])
def test_only_its_own_ranks_words_are_quoted(paths: CellPaths, whose: str) -> None:
    attempt = start(paths)
    attempt.begin()
    folder = attempt.work.name if whose == "own" else "another"
    paths.rank_log(1).write_text(f"work folder: {folder}\nloaded\n")
    end(attempt, CellFailure(Reason.RANK_DIED, "gone", rank=1))
    failure = read(Failure, paths.failure)
    if whose == "own":
        assert failure.log.endswith("rank-1.log")
        assert failure.log_tail[-1] == "loaded"
    else:
        assert failure.log.endswith("supervisor.log")
        assert failure.log_tail[-1].endswith("failed: rank_died: gone")


def test_a_log_that_cannot_be_written_ends_nothing(
    paths: CellPaths, capfd: pytest.CaptureFixture[str]
) -> None:
    with start(paths) as attempt:
        attempt.begin()
        paths.supervisor_log.unlink()
        paths.supervisor_log.mkdir()
        log.info("unwritten")
    assert read(Attempt, paths.attempt(JOB)).outcome is Outcome.OK
    assert "Traceback" not in capfd.readouterr().err


def test_starts_without_slurm_share_no_name(paths: CellPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers on one file system have the same numbers of processes, and start in the same second."""
    monkeypatch.delenv("SLURM_JOB_ID")
    first, second = start(paths), start(paths)
    first.begin()
    second.begin()
    end(first, CellFailure(Reason.RANK_DIED, "gone"))
    end(second)
    outcomes = [read(Attempt, paths.attempt(one.job_id)).outcome for one in (first, second)]
    assert outcomes == [Outcome.FAILED, Outcome.OK]


@pytest.mark.parametrize("cluster", ["alpha", None])
def test_a_start_tells_the_cluster_of_its_job(
    paths: CellPaths, monkeypatch: pytest.MonkeyPatch, cluster: str | None
) -> None:
    """Clusters that share a file system give the same numbers."""
    monkeypatch.delenv("SLURM_CLUSTER_NAME", raising=False)
    if cluster is not None:
        monkeypatch.setenv("SLURM_CLUSTER_NAME", cluster)
    with start(paths) as attempt:
        attempt.begin()
        owner = owner_of(attempt.work)
    assert owner is not None
    assert (read(Attempt, paths.attempt(JOB)).cluster, owner.cluster) == (cluster, cluster)
