"""Asking a real Slurm: which jobs go on, how one ended, and what became of a killed attempt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shardwatt.attempts import Attempt, Failure
from shardwatt.errors import Reason, SlurmError
from shardwatt.layout import CellPaths
from shardwatt.leftovers import cancel_and_wait
from shardwatt.recordfiles import read, write
from shardwatt.records import CellRecord, Outcome
from shardwatt.run.endings import UNKNOWN, settle
from shardwatt.slurm import cancel, dead_nodes, find_job, jobs_here
from shardwatt.slurmjob import SlurmJob, reason_of
from slurm_cluster import Cluster
from slurm_cluster.daemons import wait_until
from synthetic_cells import CONSTANTS, STARTED, STUDY, make_cell, write_failed, write_ok

CELL = make_cell()
HASH = "a" * 16

Submit = Callable[..., str]


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory on the cluster's login node, with what a path may hold in its name."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment()["SLURM_CONF"])
    # What users set for their own eyes must not change what is understood.
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    made = tmp_path / "w d|x"
    made.mkdir()
    return made


@pytest.fixture
def submit(cluster: Cluster, folder: Path) -> Submit:
    def submit(command: str, *options: str) -> str:
        words = ["sbatch", "--parsable", f"--chdir={folder}", "--output=/dev/null", *options]
        return cluster.run(*words, f"--wrap={command}").strip()

    return submit


def ended(job_id: str) -> SlurmJob:
    wait_until(lambda: (job := find_job(job_id)) is not None and job.is_over, f"job {job_id} is over")
    job = find_job(job_id)
    assert job is not None
    return job


def open_attempt(folder: Path, job_id: str) -> CellPaths:
    """The start of a supervisor that left no end."""
    paths = CellPaths(folder, STUDY, CELL)
    paths.logs.mkdir(parents=True, exist_ok=True)
    paths.supervisor_log.write_text("cell begun\nranks started\n")
    attempt = Attempt(job_id=job_id, node="v100-0", pid=1, constants_hash=HASH, started_at=STARTED)
    write(attempt, paths.attempt(job_id))
    return paths


def test_jobs_of_the_folder_are_listed_and_found_by_number(submit: Submit, folder: Path) -> None:
    running = submit("sleep 600", "--nodes=2", "--comment=a|b c_d", "--time=5")
    held = submit("sleep 600", "--hold", f"--chdir={folder}")
    elsewhere = submit("sleep 600", "--hold", f"--chdir={folder.parent}")
    wait_until(lambda: any(job.state == "RUNNING" for job in jobs_here(folder)), "the job runs")
    jobs = {job.job_id: job for job in jobs_here(folder)}
    assert set(jobs) == {running, held}
    assert jobs[held].is_pending
    assert jobs[held].reason == "JobHeldUser"
    found = find_job(running)
    assert found is not None
    for job in (jobs[running], found):
        assert (job.state, job.comment, job.work_dir) == ("RUNNING", "a|b c_d", str(folder))
        assert job.start_time is not None
        assert job.end_time is not None
        assert (job.end_time - job.start_time).total_seconds() == 5 * 60
    assert dead_nodes(found.nodes) == []
    cancel_and_wait([*jobs.values(), SlurmJob(elsewhere, "PENDING")])
    assert jobs_here(folder) == []
    assert ended(running).state == ended(held).state == "CANCELLED"
    cancel([running])  # one that has ended is none to cancel


def test_how_jobs_ended_is_told(submit: Submit, folder: Path) -> None:
    failed, killed, good = submit("exit 3"), submit("kill -9 $$"), submit("true")
    assert (ended(failed).state, ended(failed).exit_code) == ("FAILED", 3)
    assert (ended(killed).state, ended(killed).signal) == ("FAILED", 9)
    assert (ended(good).state, ended(good).exit_code) == ("COMPLETED", 0)
    for job_id in (failed, killed, good):
        known = reason_of(ended(job_id))
        assert known is not None
        assert known[0] is Reason.SUPERVISOR_DIED
    assert find_job("999999") is None


def test_a_node_that_is_down_is_named_once(cluster: Cluster, folder: Path) -> None:
    cluster.run("scontrol", "update", "nodename=v100-3", "state=down", "reason=test")
    assert dead_nodes("v100-[2-3]") == ["v100-3"]
    cluster.resume("v100-3")
    assert dead_nodes("v100-[2-3]") == []


def test_an_attempt_is_left_alone_while_its_job_goes_on_and_ended_after_it(
    submit: Submit, folder: Path
) -> None:
    job_id = submit("sleep 600")
    paths = open_attempt(folder, job_id)
    settle(folder, STUDY, [CELL], HASH)
    assert not paths.failure.exists()
    cancel_and_wait([SlurmJob(job_id, "RUNNING")])
    settle(folder, STUDY, [CELL], HASH, but=job_id)
    assert not paths.failure.exists()
    settle(folder, STUDY, [CELL], HASH)
    failure, attempt = read(Failure, paths.failure), read(Attempt, paths.attempt(job_id))
    assert (failure.reason, failure.job_id, failure.slurm_state) == (Reason.CANCELLED, job_id, "CANCELLED")
    assert failure.constants_hash == HASH
    assert failure.log_tail == ["cell begun", "ranks started"]
    assert (attempt.outcome, attempt.reason, attempt.ended_at) == (
        Outcome.FAILED,
        "cancelled",
        failure.ended_at,
    )


def test_a_supervisor_that_was_killed_left_its_jobs_exit_code(submit: Submit, folder: Path) -> None:
    job_id = submit("kill -9 $$")
    paths = open_attempt(folder, job_id)
    ended(job_id)
    settle(folder, STUDY, [CELL], HASH)
    failure = read(Failure, paths.failure)
    assert (failure.reason, failure.exit_code) == (Reason.SUPERVISOR_DIED, -9)
    assert failure.node is not None
    assert failure.node.startswith("v100-")


def test_an_attempt_that_slurm_has_forgotten_is_lost(folder: Path) -> None:
    paths = open_attempt(folder, "999999")
    settle(folder, STUDY, [CELL], HASH)
    failure = read(Failure, paths.failure)
    assert (failure.reason, failure.slurm_state, failure.node) == (Reason.LOST, UNKNOWN, "v100-0")


def test_a_job_of_the_same_number_in_another_folder_is_not_the_attempts(
    submit: Submit, folder: Path, tmp_path: Path
) -> None:
    job_id = submit("exit 3")
    ended(job_id)
    paths = open_attempt(tmp_path, job_id)
    settle(tmp_path, STUDY, [CELL], HASH)
    assert read(Failure, paths.failure).reason is Reason.LOST


def test_newer_failures_results_and_attempts_without_slurm_stay(folder: Path) -> None:
    # A killed rank may be Slurm's doing: that Slurm was asked, and knew nothing, is written down.
    failure = write_failed(folder, CELL).model_copy(update={"slurm_state": "UNKNOWN"})
    paths = open_attempt(folder, "999999")
    older = read(Attempt, paths.attempt("999999")).model_copy(
        update={"started_at": failure.started_at.replace(year=2020)}
    )
    write(older, paths.attempt("999999"))
    settle(folder, STUDY, [CELL], HASH)
    assert read(Failure, paths.failure) == failure
    assert read(Attempt, paths.attempt("999999")).reason == "lost"
    local = open_attempt(folder, "local-20260102T030405-1").attempt("local-20260102T030405-1")
    settle(folder, STUDY, [CELL], HASH)
    assert read(Attempt, local).ended_at is None
    write_ok(folder, CELL)
    open_attempt(folder, "999998")
    settle(folder, STUDY, [CELL], HASH)
    assert read(Attempt, paths.attempt("999998")).ended_at is None


@pytest.mark.parametrize("is_time_limit", [True, False])
def test_a_cancellation_gets_its_true_cause_once(
    submit: Submit, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_time_limit: bool
) -> None:
    job_id = submit("sleep 600")
    cancel_and_wait([SlurmJob(job_id, "RUNNING")])
    paths = open_attempt(folder, job_id)
    attempt = read(Attempt, paths.attempt(job_id))
    end = {"ended_at": STARTED, "outcome": Outcome.FAILED, "reason": "cancelled"}
    write(attempt.model_copy(update=end), paths.attempt(job_id))
    failure = Failure(
        study=STUDY,
        cell=CellRecord.of(CELL),
        constants_hash=CONSTANTS.hash,
        job_id=job_id,
        reason=Reason.CANCELLED,
        message="ended by SIGTERM",
        started_at=STARTED,
        ended_at=STARTED,
        log="x",
        log_tail=[],
    )
    write(failure, paths.failure)
    if is_time_limit:
        # A real time limit takes a minute: the real answer, with this one word changed.
        real = tmp_path / "bin" / "scontrol"
        real.parent.mkdir()
        real.write_text('#!/bin/sh\n/usr/bin/scontrol "$@" | sed s/JobState=CANCELLED/JobState=TIMEOUT/\n')
        real.chmod(0o755)
        monkeypatch.setenv("PATH", str(real.parent), prepend=":")
    settle(folder, STUDY, [CELL], HASH)
    found = read(Failure, paths.failure)
    assert found.reason is (Reason.TIME_LIMIT if is_time_limit else Reason.CANCELLED)
    assert found.slurm_state == ("TIMEOUT" if is_time_limit else "CANCELLED")
    assert "ended by SIGTERM" in found.message
    assert read(Attempt, paths.attempt(job_id)).reason == str(found.reason)
    before = paths.failure.stat().st_mtime_ns
    settle(folder, STUDY, [CELL], HASH)
    assert paths.failure.stat().st_mtime_ns == before


def test_a_controller_that_is_away_ends_no_attempt(
    submit: Submit,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job_id = submit("exit 3")
    ended(job_id)
    paths = open_attempt(folder, job_id)
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=nowhere\nSlurmctldHost=localhost\nSlurmctldPort=1\nMessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    settle(folder, STUDY, [CELL], HASH)
    assert not paths.failure.exists()
    assert "what became of killed attempts is not known" in caplog.text
    with pytest.raises(SlurmError):
        find_job(job_id)


def test_a_job_that_the_controller_forgot_is_asked_of_the_accounting(
    accounting_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", accounting_cluster.environment()["SLURM_CONF"])
    words = ["sbatch", "--parsable", f"--chdir={tmp_path}", "--output=/dev/null", "--comment=a|b c"]
    job_id = accounting_cluster.run(*words, "--wrap=sleep 600").strip()
    wait_until(lambda: any(job.state == "RUNNING" for job in jobs_here(tmp_path)), "the job runs")
    cancel_and_wait(jobs_here(tmp_path))
    forgetful = tmp_path / "bin" / "scontrol"
    forgetful.parent.mkdir()
    forgetful.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2\nexit 1\n")
    forgetful.chmod(0o755)
    monkeypatch.setenv("PATH", str(forgetful.parent), prepend=":")
    wait_until(lambda: find_job(job_id) is not None, "the accounting knows the job's end")
    job = find_job(job_id)
    assert job is not None
    assert (job.state, job.cancelled_by) == ("CANCELLED", "root")
    assert job.comment == "a|b c"
