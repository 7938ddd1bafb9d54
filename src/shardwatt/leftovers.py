"""Slurm jobs and the cells that they run: by comment, by Snakemake's own notes, by the cell's attempts."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardwatt.attempts import Attempt, Claim
from shardwatt.cell import Cell
from shardwatt.dag import Planner
from shardwatt.errors import RecordError, ShardwattError, SlurmError
from shardwatt.layout import CellPaths, cell_target, claim_file
from shardwatt.recordfiles import read
from shardwatt.slurm import cancel, find_job, jobs_here
from shardwatt.slurmjob import SlurmJob
from shardwatt.study import study_names

#: A cell as (study, path).
Name = tuple[str, str]

#: Where Snakemake notes the outputs of jobs that it has started, with Slurm's number of each.
_STARTED = Path(".snakemake") / "incomplete"

#: Longest time in s that cancelled jobs may take to end: Slurm's KillWait, epilogs, slow nodes.
END_TIMEOUT_S = 600.0
_LOOK_S = 2.0

#: Jobs that a message names.
_SHOWN = 10


def comment_of(study: str, path: str) -> str:
    """What snakemake-executor-plugin-slurm 2.8 writes as comment of a cell's job."""
    return f"rule_cell_wildcards_{study}_{path}".replace("/", "_")


def jobs_of_cells(
    base: Path, cells: Mapping[str, Iterable[Cell]], jobs: Iterable[SlurmJob]
) -> dict[Name, list[SlurmJob]]:
    """Find which jobs run which cells, or will.

    Sites may drop comments: then Snakemake's notes tell, and the attempts that have begun. A job of
    several cells has noted which.

    Args:
        base: the folder in which Snakemake runs.
        cells: cells of each study.
        jobs: jobs of that folder.

    Returns:
        Jobs of each cell that has any.
    """
    found: defaultdict[Name, list[SlurmJob]] = defaultdict(list)
    unknown = {job.job_id: job for job in jobs}
    if not unknown:
        return {}
    by_comment = defaultdict(list)
    for job in unknown.values():
        by_comment[job.comment].append(job)
    by_number, noted = dict(unknown), _noted_numbers(base)
    names = {(study, cell.path): cell for study, own in cells.items() for cell in own}
    for study, path in names:
        own_jobs = {job.job_id: job for job in by_comment.get(comment_of(study, path), ())}
        number = noted.get(cell_target(study, path))
        if number in by_number:
            own_jobs[number] = by_number[number]
        for number, job in own_jobs.items():
            found[study, path].append(job)
            unknown.pop(number, None)
    for number, job in unknown.items():
        for name in _claimed(base, cells, number) or _begun(base, names, number):
            if name in names:
                found[name].append(job)
    return dict(found)


def _claimed(base: Path, studies: Iterable[str], number: str) -> list[Name]:
    """Cells that a job of several cells has not ended yet."""
    found = []
    for study in studies:
        try:
            claim = read(Claim, claim_file(base, study, number))
        except (FileNotFoundError, RecordError):
            continue
        for path in claim.cells:
            attempt = read_attempt(CellPaths(base, study, Cell.parse(path)).attempt(number))
            if attempt is None or attempt.ended_at is None:
                found.append((study, path))
    return found


def _begun(base: Path, names: Mapping[Name, Cell], number: str) -> list[Name]:
    """Cells that a job has begun and not ended."""
    found = []
    for (study, path), cell in names.items():
        attempt = read_attempt(CellPaths(base, study, cell).attempt(number))
        if attempt is not None and attempt.ended_at is None:
            found.append((study, path))
    return found


def attempts_of(paths: CellPaths) -> list[Attempt]:
    """The attempts of a cell whose records can be read, by their start."""
    try:
        # Listed, not asked for one by one: this makes a network file system look again.
        files = [path for path in paths.logs.iterdir() if path.match("attempt-*.json")]
    except OSError:
        return []
    attempts = map(read_attempt, files)
    return sorted((attempt for attempt in attempts if attempt), key=lambda attempt: attempt.started_at)


def read_attempt(path: Path) -> Attempt | None:
    """An attempt's record; None where there is none that can be read."""
    try:
        return read(Attempt, path)
    except (FileNotFoundError, RecordError):
        return None


def _noted_numbers(base: Path) -> dict[str, str]:
    """Slurm's number of the job that Snakemake started for each output, and has not seen end.

    The notes are JSON files whose names are base64 of the output's path; long ones are cut into folders
    whose names begin with @.
    """
    numbers = {}
    root = base / _STARTED
    for folder, _, names in os.walk(root):
        begin = "".join(part[1:] for part in Path(folder).relative_to(root).parts)
        for name in names:
            try:
                output = base64.urlsafe_b64decode(begin + name).decode()
                number = json.loads(Path(folder, name).read_text())["external_jobid"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # no note, or one that is just being written
            if isinstance(number, str):
                numbers[output] = number
    return numbers


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Jobs of an earlier run of Snakemake that still go on, by the cells that they run.

    Attributes:
        jobs: jobs of each cell.
    """

    jobs: Mapping[Name, list[SlurmJob]]

    @property
    def study_pattern(self) -> str:
        """Regular expression of a study's name that matches before such a cell's path alone.

        For the wildcard `study` of results/{study}/cells/{cell}/…: one constraint that holds for both.
        """
        paths: defaultdict[str, list[str]] = defaultdict(list)
        for study, path in self.jobs:
            paths[study].append(re.escape(path))
        return "|".join(
            f"{re.escape(study)}(?=/cells/(?:{'|'.join(own)})/)" for study, own in sorted(paths.items())
        )

    def numbers(self, study: str, path: str) -> str:
        """Numbers of a cell's jobs, with commas between them."""
        return ",".join(job.job_id for job in self.jobs.get((study, path), ()))

    def of(self, cells: Iterable[Name]) -> list[SlurmJob]:
        """Jobs of these cells, each once."""
        found = {job.job_id: job for name in cells for job in self.jobs.get(name, ())}
        return list(found.values())

    def __str__(self) -> str:
        jobs = self.of(self.jobs)
        shown = ", ".join(f"{job.job_id} ({job.state})" for job in jobs[:_SHOWN])
        more = f" and {len(jobs) - _SHOWN} more" if len(jobs) > _SHOWN else ""
        return f"{len(jobs)} jobs of another run go on for {len(self.jobs)} cells: {shown}{more}"


def find_leftovers(planner: Planner) -> Leftovers:
    """Ask Slurm, once, for jobs that go on for cells of any study in this folder.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    jobs = jobs_here(planner.base)
    return Leftovers(jobs_of_cells(planner.base, _known_cells(planner), jobs) if jobs else {})


def _known_cells(planner: Planner) -> dict[str, Iterable[Cell]]:
    known: dict[str, Iterable[Cell]] = {}
    for study in study_names(planner.root):
        # One with a mistake, or for another site, has no cells here.
        with contextlib.suppress(ShardwattError):
            known[study] = planner.cells(study).values()
    return known


def cancel_and_wait(jobs: Iterable[SlurmJob], timeout_s: float = END_TIMEOUT_S) -> None:
    """Cancel jobs and wait until every process of them is gone.

    Raises:
        SlurmError: Slurm cannot be asked, refuses, or jobs have not ended in time.
    """
    waiting = {job.job_id for job in jobs}
    cancel(waiting)
    deadline_s = time.monotonic() + timeout_s
    while waiting := {number for number in waiting if goes_on(number)}:
        if time.monotonic() > deadline_s:
            raise SlurmError(
                f"jobs {', '.join(sorted(waiting))} were cancelled and have not ended in {timeout_s:g} s; "
                "see `squeue --me` and wait, or ask the cluster's staff, before you run again"
            )
        time.sleep(_LOOK_S)


def goes_on(job_id: str) -> bool:
    """Whether a job waits, runs or completes.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    job = find_job(job_id)
    return job is not None and not job.is_over
