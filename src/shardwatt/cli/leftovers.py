"""What commands ask Slurm, and the command that waits for a job of an earlier run."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import click

from shardwatt.analysis.survey import CellState, State
from shardwatt.cell import Cell
from shardwatt.cli.options import Place, place_options
from shardwatt.errors import CellFailure, Reason, ShardwattError, SlurmError
from shardwatt.layout import CellPaths, listed
from shardwatt.leftovers import attempts_of, goes_on
from shardwatt.records import Outcome
from shardwatt.slurm import available, jobs_here
from shardwatt.slurmjob import SlurmJob

#: Longest time in s for a result to be seen here that a job has put in place: NFS remembers for up to a
#: minute what was not there.
SEEN_WITHIN_S = 90.0
_LOOK_S = 2.0

log = logging.getLogger(__name__)


def jobs_and_ends(place: Place, study: str, cells: Sequence[Cell]) -> list[SlurmJob]:
    """Write down the ends of attempts whose jobs are over, and return the jobs that go on.

    Nothing is asked where the site's launcher is another, or there is no Slurm here.
    """
    from shardwatt.run.endings import settle

    if place.site.launcher != "slurm" or not available():
        return []
    try:
        jobs = jobs_here(place.base)
    except SlurmError as problem:
        log.warning("which jobs go on is not known: %s", problem)
        return []
    settle(place.base, study, cells, place.study(study).constants.hash, jobs=jobs)
    return jobs


@click.command("wait-for-job")
@click.argument("study")
@click.argument("cell")
@click.option("--jobs", "numbers", required=True, help="Slurm's numbers of the jobs, with commas between.")
@click.option("--every", "period_s", type=click.FloatRange(min=0.1), default=15.0, show_default=True)
@place_options
def wait_for_job(place: Place, study: str, cell: str, numbers: str, period_s: float) -> None:
    """Wait until jobs of an earlier run have ended that run a CELL of a STUDY (Snakemake calls this)."""
    for number in numbers.split(","):
        log.info("waiting for job %s, which runs %s", number, cell)
        _wait(number, period_s)
    asked = Cell.parse(cell)
    found = left_by(place, study, asked, numbers.split(","))
    if found.state in (State.OK, State.DOES_NOT_FIT):
        log.info("job %s has ended: %s", numbers, found.state)
        return
    if found.state is State.FAILED and found.reason in set(Reason):
        raise CellFailure(Reason(found.reason), found.detail or "")
    log_folder = CellPaths(place.base, study, asked).logs
    raise ShardwattError(
        f"job {numbers} has ended and left no result: {found.detail or found.state}; see {log_folder}, and "
        "run again: then the cell is submitted"
    )


def left_by(place: Place, study: str, cell: Cell, numbers: Sequence[str]) -> CellState:
    """What jobs that are over have left of a cell; a result that one of them tells of is looked for until it
    is seen here, or `SEEN_WITHIN_S` is over: Snakemake removes what stands where this says that it failed."""
    from shardwatt.cli.states import states_on_disk

    paths = CellPaths(place.base, study, cell)
    until_s = time.monotonic() + SEEN_WITHIN_S
    is_first = True
    while True:
        for folder in (paths.results.parent, paths.results):
            listed(folder)  # makes a network file system look again
        if is_first:
            jobs_and_ends(place, study, [cell])
        (found,) = states_on_disk(place, study, [cell])
        is_late = found.state in (State.MISSING, State.FAILED, State.INVALID) and any(
            attempt.job_id in numbers and attempt.outcome in (Outcome.OK, Outcome.DOES_NOT_FIT)
            for attempt in attempts_of(paths)
        )
        if not is_late or time.monotonic() > until_s:
            return found
        if is_first:
            log.info("job %s tells of a result that is not seen here yet", ",".join(numbers))
        is_first = False
        time.sleep(_LOOK_S)


def _wait(number: str, period_s: float) -> None:
    is_silent = False
    while True:
        try:
            if not goes_on(number):
                return
            is_silent = False
        except SlurmError as problem:
            # A controller that restarts: the job goes on meanwhile.
            if not is_silent:
                log.warning("%s", problem)
            is_silent = True
        time.sleep(period_s)
