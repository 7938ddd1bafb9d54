"""Slurm jobs and the cells that they run: by comment, by Snakemake's own notes, by the cell's attempts."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shardwatt.attempts import Attempt, Claim
from shardwatt.cell import Cell
from shardwatt.dag import Planner
from shardwatt.errors import RecordError, ShardwattError, SlurmError
from shardwatt.layout import CellPaths, cell_target, claim_file, claims, listed
from shardwatt.recordfiles import read, write
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

#: Begin of a token: of a job of several cells whose number is not known yet.
_PENDING = "pending-"
_TOGETHER = re.compile(
    r"shardwatt run-together (?P<study>\S+)(?: claim=(?P<token>pending-[0-9a-f]+))?(?: |$)"
)

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
        for name in _claimed(base, cells, job) or _begun(base, names, number):
            if name in names:
                found[name].append(job)
    return dict(found)


def new_token() -> str:
    """A word that no other claim has."""
    return f"{_PENDING}{secrets.token_hex(8)}"


def comment_together(study: str, token: str | None) -> str:
    """What a job of several cells has as its comment."""
    return f"shardwatt run-together {study}" + (f" claim={token}" if token else "")


def check_claims(base: Path, studies: Collection[str], jobs: Iterable[SlurmJob]) -> None:
    """Make sure that of each job of several cells it is known which, and of each claim whether it has a job.

    Claims whose jobs are found by their tokens get their numbers.

    Args:
        base: the folder in which Snakemake runs.
        studies: whose jobs are looked at.
        jobs: of that folder, that go on.

    Raises:
        SlurmError: it is not: to submit cells might run them twice.
    """
    for job in jobs:
        together = _TOGETHER.match(job.comment)
        if together is None or together["study"] not in studies:
            continue
        study = together["study"]
        claim = _claim(base, study, job)
        if claim is None:
            raise SlurmError(
                f"job {job.job_id} ({job.state}) runs several cells of study '{study}', and which is "
                f"not known: {claim_file(base, study, job.job_id)} is not there or cannot be read; wait "
                f"for the job's end, or cancel it: scancel {job.job_id}"
            )
        if claim.job_id == together["token"]:
            number_claim(base, study, claim, job.job_id)
    for study in studies:
        for name in listed(claims(base, study)):
            if name.startswith(_PENDING):
                raise SlurmError(
                    f"{claims(base, study) / name}: `shardwatt run-together` is submitting a job, or was "
                    "ended in the midst of it, and Slurm shows no such job yet; while run-together goes on, "
                    "wait for its end; otherwise, once `squeue --me` shows no job of this folder that may be "
                    "it, remove this file, and try again"
                )


def known_claims(base: Path, studies: Iterable[str]) -> frozenset[str]:
    """Names of the claims that there are, of all these studies."""
    names = (name for study in studies for name in listed(claims(base, study)))
    return frozenset(name for name in names if name.endswith(".json") and not name.startswith("."))


def number_claim(base: Path, study: str, claim: Claim, number: str) -> None:
    """Write the number of a job into its claim, in whose place a token was."""
    write(claim.model_copy(update={"job_id": number}), claim_file(base, study, number))
    claim_file(base, study, claim.job_id).unlink(missing_ok=True)


def _claim(base: Path, study: str, job: SlurmJob) -> Claim | None:
    """What a job of several cells has claimed, by its number, or by the token in its comment."""
    together = _TOGETHER.match(job.comment)
    for name in (job.job_id, together and together["token"]):
        if name is not None:
            with contextlib.suppress(FileNotFoundError, RecordError):
                return read(Claim, claim_file(base, study, name))
    return None


def _claimed(base: Path, studies: Iterable[str], job: SlurmJob) -> list[Name]:
    """Cells that a job of several cells has not ended yet."""
    found = []
    for study in studies:
        claim = _claim(base, study, job)
        for path in claim.cells if claim is not None else ():
            attempt = read_attempt(CellPaths(base, study, Cell.parse(path)).attempt(job.job_id))
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
        claims: names of those that were there when Slurm was asked; None: it was not.
    """

    jobs: Mapping[Name, list[SlurmJob]]
    claims: frozenset[str] | None = None

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
        SlurmError: Slurm cannot be asked, or it is not known which cells a job runs.
    """
    studies = study_names(planner.root)
    # Looked for first: of what is claimed since, no job was asked for.
    known = known_claims(planner.base, studies)
    jobs = jobs_here(planner.base)
    check_claims(planner.base, studies, jobs)
    cells = jobs_of_cells(planner.base, _known_cells(planner), jobs) if jobs else {}
    return Leftovers(cells, known | {f"{job.job_id}.json" for job in jobs})


def check_none_since(planner: Planner, before: Leftovers) -> None:
    """Refuse to submit cells while others are submitted together, or have been since Slurm was asked.

    Called when Snakemake has its lock: who submits together looks at that after the claims are written.

    Raises:
        SlurmError: some are, or were.
    """
    studies = study_names(planner.root)
    check_claims(planner.base, studies, ())
    if before.claims is not None and known_claims(planner.base, studies) - before.claims:
        raise SlurmError("`shardwatt run-together` has submitted cells meanwhile; start Snakemake again")


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
