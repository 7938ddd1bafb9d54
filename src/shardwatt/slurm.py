"""Asking Slurm: which jobs there are, how one ended. Nothing else runs squeue, scontrol, sacct or scancel.

Only words, formats and states that Slurm 22.05 to 24.11 share are used.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from shardwatt.errors import NoAnswerError, SlurmError
from shardwatt.slurmjob import (
    FIELD,
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    STEP_FORMAT,
    SlurmJob,
    SlurmStep,
    from_sacct,
    from_scontrol,
    from_squeue,
    steps_from_sacct,
)

#: A controller that restarts is asked again by Slurm's own commands for about a minute.
TIMEOUT_S = 90.0

_JOB_ID = re.compile(r"[0-9]{1,10}")

_NAME_THE_JOB = frozenset({"SLURM_CONF", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_CLUSTER_NAME"})

#: Variables that change what Slurm's commands list or how they print it.
_MISLEADING = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SINFO_")


def available() -> bool:
    """Whether there is a Slurm here to ask."""
    return shutil.which("squeue", path=environment().get("PATH")) is not None


def own_cluster() -> str | None:
    """Name of the cluster in whose job this process runs; None outside of jobs."""
    return os.environ.get("SLURM_CLUSTER_NAME")


def is_job_id(text: str) -> bool:
    """Whether a text is the number of a Slurm job; attempts without Slurm have other names."""
    return _JOB_ID.fullmatch(text) is not None


def environment() -> dict[str, str]:
    """This process's environment with SLURM_CONF as it was on the node that submitted.

    A Snakemake job step removes Slurm's variables; what the main process put aside is taken instead.
    Of the others only those stay that name the job: the rest would add to what jobs and steps ask for.
    """
    found = {
        name: value
        for name, value in os.environ.items()
        if name in _NAME_THE_JOB or not name.startswith(("SLURM_", "SRUN_", "SBATCH_"))
    }
    if "SHARDWATT_SLURM_CONF" in found:
        found.setdefault("SLURM_CONF", found["SHARDWATT_SLURM_CONF"])
    return found


def jobs_here(work_dir: Path) -> list[SlurmJob]:
    """This user's jobs that wait, run or complete, and whose working directory this is.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    jobs = from_squeue(ask(["squeue", "-h", "--me", f"--format={SQUEUE_FORMAT}"]))
    here = os.path.realpath(work_dir)
    return [job for job in jobs if os.path.realpath(job.work_dir) == here]


def find_job(job_id: str) -> SlurmJob | None:
    """A job by its number: from the controller, and what that has forgotten from the accounting.

    Returns:
        None where nobody knows it any more.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    words = ["scontrol", "show", "job", _checked(job_id)]
    done = run(words)
    if done.returncode == 0:
        return from_scontrol(done.stdout)
    if "Invalid job id" not in done.stderr:
        raise _refusal(words, done)
    job = _accounted(job_id)
    # What the controller has forgotten does not run: its end was never told to the accounting.
    return job if job is not None and job.is_over else None


def steps_of(job_id: str, timeout_s: float) -> list[SlurmStep]:
    """The steps of a job in the accounting; empty where that does not know the job.

    Args:
        job_id: the job's number.
        timeout_s: longest time in s to wait for an answer.

    Raises:
        SlurmError: the accounting cannot be asked, or does not answer in time.
    """
    words = ["sacct", "-n", "-P", "-j", _checked(job_id), f"--delimiter={FIELD}", f"--format={STEP_FORMAT}"]
    done = run(words, timeout_s=timeout_s)
    if done.returncode != 0:
        raise _refusal(words, done)
    return steps_from_sacct(done.stdout)


def dead_nodes(node_list: str) -> list[str]:
    """Which nodes of a compact list are down now.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    if not node_list:
        return []
    printed = ask(["sinfo", "-h", "-N", "-n", node_list, "-t", "down,fail", "--format=%N"])
    return list(dict.fromkeys(printed.split()))  # a node is listed once for each of its partitions


def submit(words: Sequence[str], script: str, work_dir: Path) -> str:
    """Submit a job, and return its number.

    Args:
        words: `sbatch --parsable` and its options.
        script: what it runs.
        work_dir: its working directory.

    Raises:
        NoAnswerError: the controller has not answered: the job may be in the queue all the same.
        SlurmError: sbatch is not there, or refuses.
    """
    shown = [*words, f"--chdir={work_dir}"]
    done = run(shown, script)
    number = done.stdout.strip().partition(";")[0]
    if done.returncode != 0 or not is_job_id(number):
        refusal = _refusal(shown, done)
        # What was sent may have arrived: "Socket timed out on send/recv operation".
        raise NoAnswerError(str(refusal)) if "timed out" in done.stderr.lower() else refusal
    return number


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel jobs; one that has ended is none to cancel.

    Raises:
        SlurmError: Slurm cannot be asked, or refuses.
    """
    numbers = [_checked(job_id) for job_id in job_ids]
    if numbers:
        ask(["scancel", *numbers])


def ask(words: Sequence[str]) -> str:
    """What one of Slurm's commands prints.

    Raises:
        SlurmError: it is not there, gives no answer, or fails.
    """
    done = run(words)
    if done.returncode != 0:
        raise _refusal(words, done)
    return done.stdout


def run(
    words: Sequence[str], given: str = "", timeout_s: float = TIMEOUT_S
) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, with this text as its standard input; its exit code is the caller's.

    Raises:
        SlurmError: it is not there, or gives no answer.
    """
    clean = {name: value for name, value in environment().items() if not name.startswith(_MISLEADING)}
    clean["SLURM_TIME_FORMAT"] = "standard"
    try:
        return subprocess.run(
            words,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            env=clean,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{words[0]}: not found on PATH; expected Slurm's commands: run on a node of the cluster, or "
            "load its module"
        ) from None
    except subprocess.TimeoutExpired:
        raise NoAnswerError(
            f"{words[0]} gave no answer in {timeout_s:g} s; see with `scontrol ping` whether Slurm's "
            "controller is up, and try again"
        ) from None


def _refusal(words: Sequence[str], done: subprocess.CompletedProcess[str]) -> SlurmError:
    said = "; ".join(done.stderr.split("\n")).strip("; ") or "nothing"
    shown = " ".join(word for word in words if FIELD not in word)
    return SlurmError(
        f"`{shown}` ended with exit code {done.returncode} and said: {said}; see with `scontrol ping` "
        "whether Slurm's controller is up, and try again"
    )


def _checked(job_id: str) -> str:
    if not is_job_id(job_id):
        raise SlurmError(f"'{job_id}' is no Slurm job; expected its number")
    return job_id


def _accounted(job_id: str) -> SlurmJob | None:
    """A job from the accounting; None where there is no accounting, or it does not know the job."""
    if shutil.which("sacct", path=environment().get("PATH")) is None:
        return None
    words = ["sacct", "-X", "-n", "-P", "-j", job_id, f"--delimiter={FIELD}", f"--format={SACCT_FORMAT}"]
    done = run(words)
    if "accounting storage is disabled" in done.stdout + done.stderr:
        return None
    if done.returncode != 0:
        raise _refusal(words, done)
    return from_sacct(done.stdout) if done.stdout.strip() else None
