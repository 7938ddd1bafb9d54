"""The supervisor of one cell: starts ranks and meters, watches them, ends in exactly one outcome."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from shardwatt.cell import Cell
from shardwatt.errors import DoesNotFit
from shardwatt.layout import CellPaths
from shardwatt.power.choose import metered_devices
from shardwatt.power.trace import load_trace
from shardwatt.records import Outcome, Status, read, write
from shardwatt.run.assemble import assemble, assemble_does_not_fit
from shardwatt.run.attempt import OpenAttempt
from shardwatt.run.commit import alone, put_in_place, valid_record
from shardwatt.run.exchange import JOB_FILE, RUN_FILE, RankEnd, RunReport
from shardwatt.run.job import Job, plan_job
from shardwatt.run.launch import launch_local
from shardwatt.run.meters import Sampler
from shardwatt.run.progress import ProgressDisplay
from shardwatt.run.signals import EndingSignals
from shardwatt.run.watch import attend
from shardwatt.site import Site
from shardwatt.study import Study

log = logging.getLogger(__name__)


def supervise(root: Path, base: Path, name: str, study: Study, site: Site, cell: Cell) -> None:
    """Run one cell to its end.

    Args:
        root: the project's root, where config/ lies.
        base: the folder in which Snakemake runs: holds results/ and logs/.
        name: the study's name.
        study: its content.
        site: where it runs.
        cell: which one.

    Raises:
        CellFailure: the cell failed; failure.json under logs/ says why.
    """
    paths = CellPaths(base, name, cell)
    with EndingSignals() as signals, OpenAttempt(paths, study.constants.hash, signals) as attempt:
        attempt.begin()
        job = plan_job(root, name, study, site, cell)
        if valid_record(paths, job.constants.hash, job.inputs):
            log.info("a valid result is there already; leaving it as it is")
            return
        try:
            _measure(job, attempt, signals)
        except DoesNotFit as problem:
            log.info("does not fit: %s", problem)
            attempt.outcome, attempt.reason = Outcome.DOES_NOT_FIT, str(problem)
            assemble_does_not_fit(
                job, attempt.work, job_id=attempt.job_id, node=attempt.node, reason=str(problem)
            )
        with alone(paths.commit_lock):
            if valid_record(paths, job.constants.hash, job.inputs):
                log.info("another job put a valid result there first; leaving it as it is")
                return
            signals.ignore()
            put_in_place(attempt.work, paths.results)
        log.info("finished: %s", attempt.outcome)


def _measure(job: Job, attempt: OpenAttempt, signals: EndingSignals) -> None:
    """Run the ranks beside the meters, and write the four files into the work folder.

    Raises:
        CellFailure, DoesNotFit: how it ended otherwise.
    """
    work, logs = attempt.work, attempt.paths.logs
    devices = job.devices()
    for stale in (*logs.glob("rank-*.log"), attempt.paths.sampler_log):
        stale.unlink(missing_ok=True)
    with Sampler(work, job.gpu_type, devices, attempt.paths.sampler_log) as sampler:
        job_start_s = time.monotonic()
        spec = job.spec(
            job_id=attempt.job_id, log_folder=logs, visible_devices=devices, launched_at_s=time.time()
        )
        write(spec, work / JOB_FILE)
        ends = _run_ranks(job, work, sampler, signals)
        job_stop_s = time.monotonic()
    assemble(
        job,
        work,
        job_id=attempt.job_id,
        node=attempt.node,
        started_at=attempt.started_at,
        report=read(RunReport, work / RUN_FILE),
        ends=ends,
        trace=load_trace(
            work,
            nodes=job.shape.nodes,
            devices_per_node=metered_devices(job.gpu_type, job.shape.ranks_per_node),
        ),
        job_span=(job_start_s, job_stop_s),
    )


def _run_ranks(job: Job, work: Path, sampler: Sampler, signals: EndingSignals) -> list[RankEnd]:
    # Read by torch when it is imported, before it starts its pools.
    os.environ["OMP_NUM_THREADS"] = str(job.threads_per_rank)
    display = ProgressDisplay(
        work,
        name=job.cell.path,
        prompts=job.prompts,
        power_w=sampler.power_w,
        estimated=sampler.info.status is Status.ESTIMATED,
    )

    def look() -> None:
        signals.check()
        sampler.check()
        display.look()

    with display:
        return attend(
            launch_local(work, ranks=job.shape.ranks),
            work,
            ranks=job.shape.ranks,
            start_timeout_s=job.site.start_timeout_s,
            each_look=look,
        )
