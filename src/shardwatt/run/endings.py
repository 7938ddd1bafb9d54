"""Endings that a supervisor could not write down itself: resolved with what Slurm says of its job."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from shardwatt.attempts import Attempt, Failure
from shardwatt.cell import Cell
from shardwatt.errors import Reason, RecordError, SlurmError
from shardwatt.layout import CellPaths, work_folders
from shardwatt.leftovers import attempts_of, read_attempt
from shardwatt.recordfiles import read, write
from shardwatt.records import CellRecord, Outcome
from shardwatt.run.workfolder import is_worked_in, jobs_with_folders, remove_of_job
from shardwatt.slurm import available, dead_nodes, find_job, is_job_id, jobs_here
from shardwatt.slurmjob import SlurmJob, reason_of
from shardwatt.slurmsite import settings

#: Lines of the supervisor's log that a failure quotes.
TAIL_LINES = 20

#: For Failure.slurm_state, of a job that neither the controller nor the accounting knows.
UNKNOWN = "UNKNOWN"

#: What a supervisor saw that may have been Slurm's doing.
MAY_BE_SLURMS = frozenset(
    {
        *(Reason.CANCELLED, Reason.RANK_DIED, Reason.COLLECTIVE_TIMEOUT, Reason.METER_UNAVAILABLE),
        Reason.POWER_CAP_LOST,
    }
)

#: What it then was.
_SLURMS = frozenset({Reason.NODE_FAIL, Reason.TIME_LIMIT, Reason.PREEMPTED, Reason.HOST_OOM})

log = logging.getLogger(__name__)


def settle(
    base: Path,
    study: str,
    cells: Iterable[Cell],
    constants_hash: str,
    *,
    jobs: Sequence[SlurmJob] | None = None,
    but: str | None = None,
) -> None:
    """Write the ends of attempts down whose Slurm jobs are over; see a cancellation's true cause.

    Cells that have a record are left alone, and so are attempts that go on, that were made without Slurm,
    or that Slurm cannot be asked about here and now: then the log says so. Attempts of another cluster are
    left alone too: it counts its jobs apart. Where it is not known whose one is, one whose work folder
    changes goes on, though Slurm here may not know its job. Of attempts that told their end, and were killed
    before they had tidied up, the work folders are removed.

    Args:
        base: the folder that holds results/ and logs/.
        study: the study's name.
        cells: its cells.
        constants_hash: of the study's constants, for attempts that do not tell their own.
        jobs: the folder's jobs that go on, if they are known already.
        but: number of a job whose attempts are left alone, e.g. one's own.
    """
    without = [path for cell in cells if not (path := CellPaths(base, study, cell)).record.exists()]
    untidy = jobs_with_folders(work_folders(base, study))
    in_slurm = [
        (paths, attempt)
        for paths in without
        for attempt in attempts_of(paths)
        if (attempt.ended_at is None or attempt.job_id in untidy)
        and is_job_id(attempt.job_id)
        and attempt.job_id != but
        # Sites may hide other users' jobs: not to be known is no end of those.
        and _is_own(paths.attempt(attempt.job_id))
    ]
    opened = [(paths, attempt) for paths, attempt in in_slurm if attempt.ended_at is None]
    # Several cells of a job have one folder of work.
    ended = {(one.job_id, one.cluster): (paths, one) for paths, one in in_slurm if one.ended_at is not None}
    cancelled = [(paths, failure) for paths in without if (failure := _doubtful(paths)) is not None]
    if not (opened or ended or cancelled) or not available():
        return
    try:
        go_on = {job.job_id for job in (jobs_here(base) if jobs is None else jobs)}
        doubted = [(paths, read_attempt(paths.attempt(failure.job_id))) for paths, failure in cancelled]
        starts = [*opened, *ended.values(), *((paths, one) for paths, one in doubted if one is not None)]
        left = _elsewhere((paths, attempt) for paths, attempt in starts if attempt.job_id not in go_on)
        for paths, attempt in opened:
            if attempt.job_id not in go_on and (paths, attempt.job_id) not in left:
                _end(paths, attempt, constants_hash)
        for (job_id, cluster), (paths, _) in ended.items():
            if job_id in go_on or (paths, job_id) in left:
                continue
            if not _goes_on(paths, job_id, _own_job(paths, job_id)):
                remove_of_job(paths.work(job_id).parent, job_id, cluster)
        for paths, failure in cancelled:
            if failure.job_id not in go_on and (paths, failure.job_id) not in left:
                _refine(paths, failure)
    except (SlurmError, OSError) as problem:
        log.warning("what became of killed attempts is not known: %s", problem)


def _elsewhere(starts: Iterable[tuple[CellPaths, Attempt]]) -> set[tuple[CellPaths, str]]:
    """Attempts, by cell and job, that name another cluster than the one whose Slurm is asked here."""
    named = {(paths, one.job_id): one.cluster for paths, one in starts if one.cluster is not None}
    here = settings().get("ClusterName") if named else None
    others = {start: cluster for start, cluster in named.items() if here and cluster != here}
    for (paths, job_id), cluster in others.items():
        log.info(
            "job %s of %s is of cluster '%s', and this is '%s'; left alone",
            *(job_id, paths.cell.path, cluster, here),
        )
    return set(others)


def _end(paths: CellPaths, attempt: Attempt, constants_hash: str) -> None:
    job = _own_job(paths, attempt.job_id)
    if _goes_on(paths, attempt.job_id, job):
        return
    now = datetime.now(UTC)
    ended_at = job.end_time.astimezone(UTC) if job and job.end_time else now
    reason, message = (job and reason_of(job)) or _lost(attempt)
    node = (job.nodes if job else "") or attempt.node
    if reason is Reason.NODE_FAIL:
        node = ",".join(dead_nodes(node)) or node
    failure = Failure(
        study=paths.study,
        cell=CellRecord.of(paths.cell),
        constants_hash=attempt.constants_hash or constants_hash,
        job_id=attempt.job_id,
        reason=reason,
        message=message,
        node=node,
        exit_code=_exit_code(job),
        started_at=attempt.started_at,
        ended_at=max(ended_at, attempt.started_at),
        log=str(paths.supervisor_log.relative_to(paths.base)),
        log_tail=tail(paths.supervisor_log),
        slurm_state=job.state if job else UNKNOWN,
    )
    # The supervisor, or another command, may have written the end while Slurm was asked.
    path = paths.attempt(attempt.job_id)
    if read_attempt(path) != attempt or paths.record.exists():
        return
    other = _failure(paths)
    if other is None or other.started_at <= attempt.started_at:
        write(failure, paths.failure)
    end = {"ended_at": failure.ended_at, "outcome": Outcome.FAILED, "reason": str(reason)}
    write(attempt.model_copy(update=end), path)
    # Its node is another's to clean: abandoned folders are known by a lock, which no other node sees.
    remove_of_job(paths.work(attempt.job_id).parent, attempt.job_id, attempt.cluster)
    log.info("job %s of %s ended: %s", attempt.job_id, paths.cell.path, reason)


def _refine(paths: CellPaths, failure: Failure) -> None:
    job = _own_job(paths, failure.job_id)
    if job is not None and not job.is_over:
        return
    update: dict[str, object] = {"slurm_state": job.state if job else UNKNOWN}
    known = reason_of(job) if job else None
    is_other = known is not None and known[0] in _SLURMS
    if known is not None and is_other:
        update |= {"reason": known[0], "message": f"{known[1]} (its supervisor saw: {failure.message})"}
    if _failure(paths) != failure:
        return
    write(failure.model_copy(update=update), paths.failure)
    attempt = read_attempt(paths.attempt(failure.job_id))
    if known is not None and is_other and attempt is not None and attempt.ended_at is not None:
        write(attempt.model_copy(update={"reason": str(known[0])}), paths.attempt(failure.job_id))


def _goes_on(paths: CellPaths, job_id: str, job: SlurmJob | None) -> bool:
    """Whether a job may still be at work, by what Slurm here says of it, if it knows it at all."""
    if job is not None:
        return not job.is_over
    if not is_worked_in(paths.work(job_id).parent, job_id):
        return False
    log.info(
        "job %s of %s is not known to Slurm here, and its work folder changes: another cluster's; left alone",
        job_id,
        paths.cell.path,
    )
    return True


def _own_job(paths: CellPaths, job_id: str) -> SlurmJob | None:
    """The job of this number, if it worked in this folder: a new cluster begins again with 1.

    One that is not over may be it whatever its folder: a mount point has other names on other nodes. Where it
    is another's, its end is awaited in vain, and no harm done.
    """
    job = find_job(job_id)
    if job is None or not job.is_over or not job.work_dir:
        return job
    return job if os.path.realpath(job.work_dir) == os.path.realpath(paths.base) else None


def _is_own(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except OSError:
        return False


def _lost(attempt: Attempt) -> tuple[Reason, str]:
    return Reason.LOST, (
        f"job {attempt.job_id} began on {attempt.node} at {attempt.started_at:%Y-%m-%d %H:%M:%S} UTC and "
        "left no end, and Slurm does not know it any more: without accounting it forgets a job some minutes "
        "after its end; run the cell again"
    )


def _exit_code(job: SlurmJob | None) -> int | None:
    if job is None:
        return None
    return -job.signal if job.signal else job.exit_code


def _doubtful(paths: CellPaths) -> Failure | None:
    """A cell's failure, if Slurm may know a better reason and was not asked since."""
    failure = _failure(paths)
    if failure is None or failure.reason not in MAY_BE_SLURMS or failure.slurm_state is not None:
        return None
    return failure if is_job_id(failure.job_id) else None


def _failure(paths: CellPaths) -> Failure | None:
    try:
        return read(Failure, paths.failure)
    except (FileNotFoundError, RecordError):
        return None


def tail(log_file: Path) -> list[str]:
    """The last lines of a log; none where it cannot be read."""
    try:
        return log_file.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []
