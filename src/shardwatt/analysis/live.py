"""Cells that wait or run now: what the queue and the work folders say beside what is on disk."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from shardwatt.analysis.survey import CellState, State
from shardwatt.layout import CellPaths
from shardwatt.leftovers import attempts_of, comment_of, jobs_of_cells
from shardwatt.run.exchange import read_progress
from shardwatt.run.workfolder import owner_of
from shardwatt.slurm import is_job_id
from shardwatt.slurmjob import SlurmJob

#: Where a job is between its start and its first progress.
STARTING = "start"


def with_live_attempts(
    base: Path, study: str, states: Sequence[CellState], jobs: Iterable[SlurmJob], *, prompts: int
) -> list[CellState]:
    """Mark cells `running` or `pending` that have no valid result, whatever became of earlier attempts.

    Args:
        base: the folder that holds results/ and logs/.
        study: the study's name.
        states: of its cells, as `survey` found them.
        jobs: Slurm jobs of this folder that go on.
        prompts: of each cell.
    """
    open_cells = [state.cell for state in states if state.record is None]
    jobs_of = jobs_of_cells(base, {study: open_cells}, jobs)
    return [
        state
        if state.record is not None
        else _live(
            CellPaths(base, study, state.cell), state, jobs_of.get((study, state.cell.path), []), prompts
        )
        for state in states
    ]


def _live(paths: CellPaths, state: CellState, jobs: Sequence[SlurmJob], prompts: int) -> CellState:
    running = [job for job in jobs if not job.is_pending]
    if running:
        job = running[-1]
        if job.comment != comment_of(paths.study, paths.cell.path) and not paths.attempt(job.job_id).exists():
            detail = f"job {job.job_id} on {job.nodes} runs other cells first"
            return replace(state, state=State.PENDING, reason="turn", detail=detail, job_id=job.job_id)
        # A job that Slurm put back into the queue may have left another; the newest is the running one's.
        newest = next(reversed(_work_folders(paths, job.job_id)), None)
        stage, progress = _progress(newest, prompts)
        detail = f"job {job.job_id} on {job.nodes}{progress}"
        return replace(state, state=State.RUNNING, reason=stage, detail=detail, job_id=job.job_id)
    if jobs:
        job = jobs[-1]
        detail = f"job {job.job_id} waits in the queue"
        return replace(state, state=State.PENDING, reason=job.reason or "-", detail=detail, job_id=job.job_id)
    attempts = attempts_of(paths)
    if not attempts or attempts[-1].ended_at is not None or is_job_id(attempts[-1].job_id):
        return state
    last = attempts[-1]
    for work in _work_folders(paths, last.job_id):
        owner = owner_of(work)
        # The number of its process alone would not do: it may be another's by now.
        if owner is not None and owner.lives:
            stage, progress = _progress(work, prompts)
            detail = f"{last.job_id} on {last.node}{progress}"
            return replace(state, state=State.RUNNING, reason=stage, detail=detail, job_id=last.job_id)
    return state


def _progress(work: Path | None, prompts: int) -> tuple[str, str]:
    """The stage that an attempt is in, and how far it is in words."""
    progress = read_progress(work) if work else None
    if progress is None:
        return STARTING, ""
    if progress.stage != "run":
        return progress.stage, ""
    return (
        progress.stage,
        f": {progress.prompts_done} of {prompts} prompts, {progress.generated_tokens} tokens",
    )


def _work_folders(paths: CellPaths, job_id: str) -> list[Path]:
    """An attempt's, the newest last."""
    begin = paths.work(job_id)
    return sorted(begin.parent.glob(f"{begin.name}-*"), key=_made_at)


def _made_at(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0  # its attempt has just ended
