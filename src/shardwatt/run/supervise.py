"""Cells from start to end: ranks and meters held together, every ending one outcome."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shardwatt.cell import Cell
from shardwatt.devices import own_devices
from shardwatt.errors import CellFailure, DoesNotFit, Reason
from shardwatt.layout import CellPaths, ranks_folder
from shardwatt.power.choose import metered_devices
from shardwatt.power.trace import load_trace
from shardwatt.records import Outcome, Status, read
from shardwatt.run.allocation import Allocation
from shardwatt.run.assemble import assemble, assemble_does_not_fit, keep_partial
from shardwatt.run.attempt import OpenAttempt
from shardwatt.run.commit import alone, put_in_place, valid_record
from shardwatt.run.crew import Crew, sampler_words
from shardwatt.run.endings import MAY_BE_SLURMS, settle
from shardwatt.run.exchange import RUN_FILE, RankEnd, RunReport
from shardwatt.run.job import Job, plan_job
from shardwatt.run.meters import Samplers
from shardwatt.run.progress import ProgressDisplay
from shardwatt.run.retry import refuse_hopeless
from shardwatt.run.signals import Ended, EndingSignals
from shardwatt.run.watch import attend
from shardwatt.run.workfolder import remove_of_job
from shardwatt.site import Site
from shardwatt.study import Study

#: After these nothing more is begun in the same allocation.
_ENDS_ALL = frozenset({Reason.CANCELLED, Reason.TIME_LIMIT, Reason.PREEMPTED, Reason.NODE_FAIL})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where cells are run.

    Attributes:
        root: the project's root, where config/ lies.
        base: the folder in which Snakemake runs: holds results/ and logs/.
        name: the study's name.
        study: its content.
        site: what the place offers.
    """

    root: Path
    base: Path
    name: str
    study: Study
    site: Site


def supervise(place: Place, cells: Sequence[Cell], *, number: int = 1) -> None:
    """Run cells of one study to their ends, one after another, on the same ranks while those last.

    Args:
        place: where.
        cells: which; more than one must have the same model, GPU type, precision and shards.
        number: of this attempt, from 1, in this run of Snakemake.

    Raises:
        CellFailure: a cell failed; failure.json under logs/ says why. The others were run all the same,
            unless the job itself was ended.
    """
    failed: list[CellFailure] = []
    number_in_slurm = os.environ.get("SLURM_JOB_ID")
    session = ranks_folder(place.base, place.name, number_in_slurm or f"local-{os.getpid()}")
    if number_in_slurm and place.site.launcher == "slurm":
        # A job that lost its node, or was preempted, is started again under its number: what its first start
        # left is nobody's, and what still runs of that on a node that was cut off has no place to write.
        remove_of_job(session.parent, number_in_slurm)
    with EndingSignals() as signals, Crew(session) as crew:
        for cell in cells:
            signals.release()
            try:
                _run_cell(place, cell, crew, signals, number=number, more=len(cells) > 1)
            except CellFailure as failure:
                # Ranks that took part in it have ended; others keep the model for the next cell.
                failed.append(failure)
                if len(cells) == 1 or failure.reason in _ENDS_ALL:
                    raise
    if failed:
        raise CellFailure(
            failed[0].reason, f"{len(failed)} of {len(cells)} cells failed; the first: {failed[0].message}"
        )


def _run_cell(
    place: Place, cell: Cell, crew: Crew, signals: EndingSignals, *, number: int, more: bool
) -> None:
    paths = CellPaths(place.base, place.name, cell)
    constants_hash = place.study.constants.hash
    with OpenAttempt(paths, constants_hash, signals) as attempt:
        attempt.begin()
        settle(place.base, place.name, [cell], constants_hash, but=attempt.job_id)
        refuse_hopeless(paths, constants_hash, attempt.job_id, number)
        allocation = None
        if place.site.launcher == "slurm":
            allocation = Allocation.current(place.site.stop_before_limit_s)
            allocation.link_log(paths.logs)
        job = plan_job(place.root, place.name, place.study, place.site, cell)
        if valid_record(paths, constants_hash, job.inputs):
            log.info("a valid result is there already; leaving it as it is")
            return
        with _told_by_slurm(allocation):
            try:
                _measure(job, attempt, crew, signals, allocation, more=more)
            except DoesNotFit as problem:
                log.info("does not fit: %s", problem)
                crew.end()
                attempt.outcome, attempt.reason = Outcome.DOES_NOT_FIT, str(problem)
                assemble_does_not_fit(
                    job, attempt.work, job_id=attempt.job_id, node=attempt.node, reason=str(problem)
                )
            with alone(paths.commit_lock):
                if valid_record(paths, constants_hash, job.inputs):
                    log.info("another job put a valid result there first; leaving it as it is")
                    return
                if allocation is not None:
                    allocation.make_sure_of()
                signals.hold()
                put_in_place(attempt.work, paths.results)
        log.info("finished: %s", attempt.outcome)


@contextmanager
def _told_by_slurm(allocation: Allocation | None) -> Iterator[None]:
    """Turn signals and lost ranks into what Slurm says of the job."""
    try:
        yield
    except Ended as problem:
        if allocation is None:
            raise
        raise allocation.why_ended(f"ended by {problem}") from None
    except CellFailure as failure:
        if allocation is None or failure.reason not in MAY_BE_SLURMS:
            raise
        raise allocation.explain(failure) from None


def _measure(
    job: Job,
    attempt: OpenAttempt,
    crew: Crew,
    signals: EndingSignals,
    allocation: Allocation | None,
    *,
    more: bool,
) -> None:
    """Run the ranks beside the meters, and write the four files into the work folder.

    Raises:
        CellFailure, DoesNotFit: how it ended otherwise.
    """
    work, logs = attempt.work, attempt.paths.logs
    # Too few GPUs are told before anything starts.
    own_devices(job.gpu_type, job.shape.ranks_per_node, os.environ)
    for stale in (*logs.glob("rank-*.log"), attempt.paths.sampler_log):
        stale.unlink(missing_ok=True)
    was_loaded = crew.is_loaded
    words = sampler_words(job, work)
    with Samplers(
        words,
        work,
        job.shape.nodes,
        attempt.paths.sampler_log,
        start_timeout_s=job.site.start_timeout_s,
    ) as samplers:
        job_start_s = time.monotonic()
        try:
            ends = _run_ranks(job, attempt, crew, samplers, signals, allocation, more=more)
        except BaseException as problem:
            if isinstance(problem, Ended):
                # Of a job that is cancelled Slurm kills the batch step about a second later.
                attempt.write_down(problem)
            crew.end()
            attempt.partial = keep_partial(job, work, attempt.paths.partial(attempt.job_id))
            raise
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
        was_loaded=was_loaded,
    )


def _run_ranks(
    job: Job,
    attempt: OpenAttempt,
    crew: Crew,
    samplers: Samplers,
    signals: EndingSignals,
    allocation: Allocation | None,
    *,
    more: bool,
) -> list[RankEnd]:
    work = attempt.work
    spec = job.spec(
        job_id=attempt.job_id, log_folder=attempt.paths.logs, launched_at_s=time.time(), more=more
    )
    display = ProgressDisplay(
        work,
        name=job.cell.path,
        prompts=job.prompts,
        power_w=samplers.power_w,
        estimated=samplers.info.status is Status.ESTIMATED,
    )

    def look() -> None:
        signals.check()
        samplers.check()
        if allocation is not None:
            allocation.check()
        display.look()

    with display:
        return attend(
            crew.start(job, work, spec, attempt.paths.logs / "srun.log"),
            work,
            attempt.paths.logs,
            ranks=job.shape.ranks,
            start_timeout_s=job.site.start_timeout_s,
            each_look=look,
        )
