"""Cells from start to end: ranks and meters held together, every ending one outcome."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shardwatt.cell import Cell
from shardwatt.errors import CellFailure, DoesNotFit, Reason
from shardwatt.layout import CellPaths, ranks_folder
from shardwatt.locks import alone
from shardwatt.records import Outcome
from shardwatt.run.allocation import Allocation
from shardwatt.run.assemble import assemble_does_not_fit
from shardwatt.run.attempt import OpenAttempt
from shardwatt.run.commit import put_in_place, valid_record
from shardwatt.run.crew import Crew
from shardwatt.run.endings import MAY_BE_SLURMS, settle
from shardwatt.run.job import plan_job
from shardwatt.run.measure import Carried, Measurement
from shardwatt.run.retry import refuse_hopeless
from shardwatt.run.signals import Ended, EndingSignals
from shardwatt.run.turn import Turn
from shardwatt.run.workfolder import remove_of_job
from shardwatt.site import Site
from shardwatt.slurm import own_cluster
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
        remove_of_job(session.parent, number_in_slurm, own_cluster())
    carried = Carried()
    with EndingSignals() as signals, Turn() as turn, Crew(session) as crew:
        for cell in cells:
            signals.release()
            try:
                _run_cell(place, cell, crew, signals, turn, carried, number=number, more=len(cells) > 1)
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
    place: Place,
    cell: Cell,
    crew: Crew,
    signals: EndingSignals,
    turn: Turn,
    carried: Carried,
    *,
    number: int,
    more: bool,
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
        elif turn.take(_holder(place, cell), signals.check):
            attempt.works_since = datetime.now(UTC)
        job = plan_job(place.root, place.name, place.study, place.site, cell)
        if valid_record(paths, constants_hash, job.inputs):
            log.info("a valid result is there already; leaving it as it is")
            return
        measurement = Measurement(job, attempt, crew, signals, allocation, carried, more=more)
        with _told_by_slurm(allocation):
            try:
                measurement.run()
            except DoesNotFit as problem:
                log.info("does not fit: %s", problem)
                crew.end()
                attempt.outcome, attempt.reason = Outcome.DOES_NOT_FIT, str(problem)
                assemble_does_not_fit(
                    job,
                    attempt.work,
                    job_id=attempt.job_id,
                    node=attempt.node,
                    reason=str(problem),
                    power_cap=measurement.power_cap(),
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


def _holder(place: Place, cell: Cell) -> str:
    return f"process {os.getpid()}, which runs {cell.path} of study {place.name} in {place.base}"


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
