"""What Slurm's commands print, as jobs; the texts are those of Slurm 22.05.8."""

from __future__ import annotations

import os
import re
from datetime import datetime
from pathlib import Path

import pytest

from shardwatt.errors import CellFailure, Reason, SlurmError
from shardwatt.run.allocation import Allocation
from shardwatt.slurm import environment, find_job, is_job_id, jobs_here
from shardwatt.slurmjob import SlurmJob, reason_of

SHOWN = """\
JobId=9 JobName=8d1b JobState=RUNNING
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   Priority=4294901751 Nice=0 Account=(null) QOS=(null)
   JobState=NODE_FAIL Reason=NodeDown Dependency=(null)
   Requeue=0 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:15
   RunTime=00:00:26 TimeLimit=00:05:00 TimeMin=N/A
   SubmitTime=2026-11-21T13:52:21 EligibleTime=2026-11-21T13:52:21
   AccrueTime=2026-11-21T13:52:21
   StartTime=2026-11-21T13:52:22 EndTime=2026-11-21T13:52:48 Deadline=N/A
   PreemptEligibleTime=2026-11-21T13:52:22 PreemptTime=None
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-21T13:52:22 Scheduler=Backfill
   Partition=low AllocNode:Sid=localhost:28160
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList=n[0-1]
   BatchHost=n0
   NumNodes=2 NumCPUs=2 NumTasks=2 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   Command=(null)
   WorkDir=/scratch/w d|x
   Comment=a|b JobState=COMPLETED d 
   StdErr=/scratch/w d|x/slurm-9.out
   StdIn=/dev/null
   StdOut=/scratch/w d|x/slurm-9.out
   Power=
   

"""  # noqa: W291, W293 - as it is printed

COMPLETING = """\
JobId=30 JobName=wrap
   JobState=COMPLETING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   StartTime=2026-11-21T13:53:32 EndTime=2026-11-21T13:53:35 Deadline=N/A
   PreemptEligibleTime=2026-11-21T13:53:32 PreemptTime=2026-11-21T13:53:35
   NodeList=n[0-1]
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of Slurm's commands that print what was seen elsewhere; there are no others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def say(commands: Path, name: str, text: str, *, code: int = 0, error: str = "") -> None:
    """Make a command that prints a text."""
    (commands / f"{name}.txt").write_text(text)
    program = commands / name
    program.write_text(
        f"#!/bin/sh\n/bin/cat '{commands}/{name}.txt'\nprintf '%s\\n' '{error}' >&2\nexit {code}\n"
    )
    program.chmod(0o755)


def test_a_job_is_read_from_lines_whose_texts_hold_keys_blanks_and_pipes(commands: Path) -> None:
    say(commands, "scontrol", SHOWN)
    assert find_job("9") == SlurmJob(
        job_id="9",
        state="NODE_FAIL",
        nodes="n[0-1]",
        comment="a|b JobState=COMPLETED d",
        work_dir="/scratch/w d|x",
        reason="NodeDown",
        start_time=datetime(2026, 11, 21, 13, 52, 22),
        end_time=datetime(2026, 11, 21, 13, 52, 48),
        signal=15,
        std_out=Path("/scratch/w d|x/slurm-9.out"),
    )


def test_a_job_that_makes_room_is_told_from_a_cancelled_one_while_it_completes(commands: Path) -> None:
    say(commands, "scontrol", COMPLETING)
    job = find_job("30")
    assert job is not None
    assert not job.is_over
    known = reason_of(job)
    assert known is not None
    assert known[0] is Reason.PREEMPTED
    say(commands, "scontrol", COMPLETING.replace("PreemptTime=2026-11-21T13:53:35", "PreemptTime=None"))
    job = find_job("30")
    assert job is not None
    assert reason_of(job) is None


def test_an_earlier_preemption_is_not_the_jobs_end(commands: Path) -> None:
    say(
        commands,
        "scontrol",
        COMPLETING.replace("PreemptTime=2026-11-21T13:53:35", "PreemptTime=2026-11-20T00:00:00"),
    )
    job = find_job("30")
    assert job is not None
    assert not job.preempted


def test_jobs_of_a_folder_are_listed_with_whatever_their_texts_hold(commands: Path, tmp_path: Path) -> None:
    here = tmp_path / "w d|x\n2"
    here.mkdir()
    waiting = ("2", "PENDING", "", "Resources", "N/A", "N/A", str(here), "(null)")
    running = (
        "1",
        "RUNNING",
        "n[0-1]",
        "None",
        "2026-11-21T13:50:02",
        "2026-11-21T13:51:02",
        str(here),
        "a|b c",
    )
    other = ("3", "RUNNING", "n2", "None", "2026-11-21T13:50:02", "NONE", str(tmp_path), "x")
    printed = "".join("\x1e" + "\x1f".join(job) + "\n" for job in (waiting, running, other))
    say(commands, "squeue", printed)
    jobs = jobs_here(here)
    assert [(job.job_id, job.comment, job.reason, job.is_pending) for job in jobs] == [
        ("2", "", "Resources", True),
        ("1", "a|b c", "", False),
    ]
    assert jobs[1].end_time == datetime(2026, 11, 21, 13, 51, 2)


UNKNOWN = "slurm_load_jobs error: Invalid job id specified"
ACCOUNTED = "\x1f".join(
    ("7", "CANCELLED by 0", "n1", "2026-11-21T13:50:02", "2026-11-21T13:51:02", "0:15", "/scratch/x", "c")
)


def test_a_job_that_the_controller_forgot_is_taken_from_the_accounting(commands: Path) -> None:
    say(commands, "scontrol", "", code=1, error=UNKNOWN)
    say(commands, "sacct", ACCOUNTED + "\n")
    job = find_job("7")
    assert job is not None
    assert (job.state, job.cancelled_by, job.exit_code, job.signal) == ("CANCELLED", "root", None, 15)
    known = reason_of(job)
    assert known is not None
    assert known[0] is Reason.CANCELLED
    assert "cancelled by root" in known[1]


@pytest.mark.parametrize(
    ("printed", "code"),
    [
        ("Slurm accounting storage is disabled\n", 1),
        ("", 0),
        # Its end was never told to the accounting: a job that the controller does not know runs nowhere.
        (ACCOUNTED.replace("CANCELLED by 0", "RUNNING") + "\n", 0),
    ],
)
def test_what_nobody_knows_is_none(commands: Path, printed: str, code: int) -> None:
    say(commands, "scontrol", "", code=1, error=UNKNOWN)
    assert find_job("7") is None  # there is no sacct
    say(commands, "sacct", printed, code=code)
    assert find_job("7") is None


def test_a_controller_that_does_not_answer_is_no_lost_job(commands: Path) -> None:
    say(commands, "scontrol", "", code=1, error="slurm_load_jobs error: Unable to contact slurm controller")
    with pytest.raises(SlurmError, match=r"scontrol show job 7.*Unable to contact.*scontrol ping"):
        find_job("7")
    say(commands, "scontrol", "", code=1, error=UNKNOWN)
    say(commands, "sacct", "", code=1, error="sacct: error: Problem talking to the database")
    with pytest.raises(SlurmError, match="talking to the database"):
        find_job("7")


def test_without_slurm_it_says_where_to_go(commands: Path) -> None:
    with pytest.raises(SlurmError, match="squeue: not found on PATH"):
        jobs_here(commands)


@pytest.mark.parametrize("text", ["local-20260102T030405-1", "12;id", "-1", "", "1 2"])
def test_only_numbers_are_asked_for(text: str) -> None:
    assert not is_job_id(text)
    with pytest.raises(SlurmError, match="expected its number"):
        find_job(text)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("NODE_FAIL", Reason.NODE_FAIL),
        ("BOOT_FAIL", Reason.NODE_FAIL),
        ("TIMEOUT", Reason.TIME_LIMIT),
        ("DEADLINE", Reason.TIME_LIMIT),
        ("PREEMPTED", Reason.PREEMPTED),
        ("CANCELLED", Reason.CANCELLED),
        ("OUT_OF_MEMORY", Reason.HOST_OOM),
        ("FAILED", Reason.SUPERVISOR_DIED),
        ("COMPLETED", Reason.SUPERVISOR_DIED),
    ],
)
def test_every_end_has_a_reason(state: str, reason: Reason) -> None:
    job = SlurmJob("1", state, nodes="n[0-1]")
    known = reason_of(job)
    assert job.is_over
    assert known is not None
    assert known[0] is reason
    assert "n[0-1]" in known[1]


def test_out_of_time_the_keys_that_set_the_limit_are_named(commands: Path) -> None:
    """Where the plan sets it, a larger `runtime_min` alone changes nothing."""
    keys = r"raise the site's runtime_factor and runtime_floor_min \(runtime_min where the plan does not"
    known = reason_of(SlurmJob("1", "TIMEOUT"))
    assert known is not None
    assert re.search(keys, known[1])
    say(commands, "scontrol", SHOWN.replace("EndTime=2026", "EndTime=2020"))
    with pytest.raises(CellFailure, match=keys):
        Allocation("9", 120.0).check()


@pytest.mark.parametrize(
    "state", ["PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "A_NEW_WORD"]
)
def test_what_goes_on_has_no_reason(state: str) -> None:
    assert reason_of(SlurmJob("1", state)) is None
    assert not SlurmJob("1", state).is_over


def test_commands_find_the_cluster_that_a_job_step_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDWATT_SLURM_CONF", "/etc/there/slurm.conf")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    assert environment()["SLURM_CONF"] == "/etc/there/slurm.conf"
    monkeypatch.setenv("SLURM_CONF", "/etc/here/slurm.conf")
    assert environment()["SLURM_CONF"] == "/etc/here/slurm.conf"
    assert os.environ["SLURM_CONF"] == "/etc/here/slurm.conf"
