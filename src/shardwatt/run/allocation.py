"""The Slurm job around a cell: when it ends, and what became of it when somebody ends it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from datetime import datetime
from pathlib import Path

from shardwatt.errors import CellFailure, Reason, SlurmError
from shardwatt.sitewords import TIME_KEYS
from shardwatt.slurm import find_job
from shardwatt.slurmjob import SlurmJob, reason_of

#: Slurm may send a signal that it was asked for up to so many s early (sbatch's manual, --signal).
SIGNAL_EARLY_S = 60.0

#: Time in s after which Slurm is asked for a time limit again that it did not tell.
_ASK_AGAIN_S = 120.0

#: State of a job whose processes Slurm is ending.
_BEING_ENDED = "COMPLETING"

log = logging.getLogger(__name__)


class Allocation:
    """The Slurm job in which this process runs.

    Args:
        job_id: Slurm's.
        margin_s: time in s before the job's time limit at which the cell is to end by itself.

    Attributes:
        has_whole_nodes: whether no other job can share its nodes; None where Slurm does not tell.
    """

    def __init__(self, job_id: str, margin_s: float) -> None:
        self.job_id = job_id
        self._margin_s = margin_s
        self.has_whole_nodes: bool | None = None
        self._limit_s: float | None = None
        self._is_known = False
        self._ask_again_s = 0.0
        self._learn(_ask(job_id))

    @classmethod
    def current(cls, margin_s: float) -> Allocation:
        """The job of this process.

        Raises:
            CellFailure: CONFIGURATION, this process is in none.
        """
        job_id = os.environ.get("SLURM_JOB_ID")
        if job_id is None:
            raise CellFailure(
                Reason.CONFIGURATION,
                "this site's launcher is `slurm`, and this is no Slurm job: SLURM_JOB_ID is not set; run "
                "cells through snakemake --profile profiles/slurm, or use a site with launcher `local`",
            )
        return cls(job_id, margin_s)

    def check(self) -> None:
        """See whether there is time left.

        Raises:
            CellFailure: TIME_LIMIT, the job's time limit is so near that the cell must end now.
        """
        now_s = time.monotonic()
        is_due = self._limit_s is not None and now_s >= self._limit_s - self._margin_s
        if not is_due and (self._is_known or now_s < self._ask_again_s):
            return
        # The limit may have been moved since, or Slurm did not answer before.
        self._learn(_ask(self.job_id))
        left_s = self.left_s()
        if left_s is not None and left_s <= self._margin_s:
            raise self._out_of_time()

    def why_ended(self, said: str) -> CellFailure:
        """What ended the cell, once a signal has asked it to end.

        Args:
            said: what was seen, e.g. `ended by SIGTERM`.
        """
        job = _ask(self.job_id)
        known = reason_of(job) if job else None
        if known is not None:
            return CellFailure(known[0], f"{said}: {known[1]}")
        # The limit may have been moved since; a job that is being ended tells its end instead.
        if job is None or job.state != _BEING_ENDED:
            self._learn(job)
        left_s = self.left_s()
        if left_s is not None and left_s <= self._margin_s + SIGNAL_EARLY_S:
            return self._out_of_time()
        return CellFailure(Reason.CANCELLED, f"{said}; expected to run to its end")

    def explain(self, failure: CellFailure) -> CellFailure:
        """A failure with what Slurm knows of its cause: of a job that it has ended, or is about to end."""
        if failure.reason is Reason.CANCELLED:
            return self.why_ended(failure.message)
        known = reason_of(job) if (job := _ask(self.job_id)) else None
        if known is None:
            return failure
        return CellFailure(
            known[0],
            f"{known[1]} ({failure.message})",
            node=failure.node,
            rank=failure.rank,
            exit_code=failure.exit_code,
        )

    def make_sure_of(self) -> None:
        """Make sure that Slurm still counts this job as running: one that it gave up leaves no result.

        Where Slurm cannot be asked, as while its controller restarts, the job is taken to run.

        Raises:
            CellFailure: its state in Slurm, as a reason.
        """
        job = _ask(self.job_id)
        if job is None:
            return
        if known := reason_of(job):
            raise CellFailure(known[0], f"Slurm has ended this job: {known[1]}")
        if job.state == _BEING_ENDED:
            raise CellFailure(Reason.CANCELLED, f"Slurm is ending job {self.job_id} ({job.state})")

    def link_log(self, folder: Path) -> None:
        """Make Slurm's own log of this job findable beside the cell's others."""
        job = _ask(self.job_id)
        if job is None or job.std_out is None:
            return
        link = folder / f"slurm-{self.job_id}.log"
        with contextlib.suppress(OSError):  # another start of the job may have made it just now
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(job.std_out, folder))

    def _learn(self, job: SlurmJob | None) -> None:
        """Keep the job's time limit; what was known before, where Slurm does not answer."""
        if job is None:
            self._ask_again_s = time.monotonic() + _ASK_AGAIN_S
            return
        self._is_known = True
        self.has_whole_nodes = job.has_whole_nodes
        self._limit_s = _on_this_clock(job)

    def left_s(self) -> float | None:
        """Time in s until the job's time limit; None where there is none, or Slurm does not tell."""
        return None if self._limit_s is None else self._limit_s - time.monotonic()

    def _out_of_time(self) -> CellFailure:
        return CellFailure(
            Reason.TIME_LIMIT,
            f"job {self.job_id} reached {self._margin_s:g} s before its time limit (the site's "
            f"stop_before_limit_s); raise the site's {TIME_KEYS}, or use fewer prompts, a smaller length or "
            "larger batches",
        )


def _ask(job_id: str) -> SlurmJob | None:
    try:
        return find_job(job_id)
    except SlurmError as problem:
        log.warning("Slurm was asked for job %s in vain: %s", job_id, problem)
        return None


def _on_this_clock(job: SlurmJob) -> float | None:
    """A job's time limit in s of `time.monotonic()`; None where there is none."""
    if job.end_time is None:
        return None
    # Slurm tells local time: with a zone, so that a change of the clocks in between counts.
    return time.monotonic() + (job.end_time.astimezone() - datetime.now().astimezone()).total_seconds()
