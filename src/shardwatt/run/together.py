"""Several cells of one model in one job: loaded once, and compared on the same GPUs.

GPUs of one model differ more than a power cap changes (docs/results.md, Paired comparisons). So cells that
are compared with each other, those that differ in `COMPARED_AXES` alone, are put into one job.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardwatt.attempts import Claim
from shardwatt.cell import AXES, Cell
from shardwatt.checkpoints import ModelError
from shardwatt.engines import ENGINES
from shardwatt.errors import NoAnswerError, SlurmError
from shardwatt.layout import claim_file, claims
from shardwatt.leftovers import comment_together, new_token, number_claim
from shardwatt.models import find_checkpoint
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.recordfiles import write
from shardwatt.resources import cell_resources
from shardwatt.site import Site
from shardwatt.slurm import submit

#: What must be the same for ranks to stay, with their weights.
SHARED_AXES = ("engine", "model", "precision", "gpu", "shards")

#: What cells that are compared with each other differ in, and nothing else.
COMPARED_AXES = ("cap", "repeat")

#: sbatch's words for what `cell_resources` gives; the executor has the same ones (test_sbatch_words).
_WORDS = {
    "slurm_partition": "--partition={}",
    "slurm_account": "--account={}",
    "qos": "--qos={}",
    "constraint": "--constraint={}",
    "nodes": "--nodes={}",
    "tasks": "--ntasks={}",
    "cpus_per_task": "--cpus-per-task={}",
    "gres": "--gres={}",
    "mem_mb": "--mem={}",
}


@dataclass(frozen=True, slots=True)
class SharedJob:
    """A job of several cells.

    Attributes:
        cells: in the order in which they run; alike in `SHARED_AXES`.
        runtime_min: the time limit: those of the cells together.
        forecast: of the cell whose job asks for most memory; None where no plan counts.
    """

    cells: tuple[Cell, ...]
    runtime_min: int
    forecast: CellForecast | None = None

    def sbatch_words(self, site: Site, study: str, log_folder: Path, token: str | None = None) -> list[str]:
        """The words that submit it; the script comes through standard input.

        Args:
            site: where it runs.
            study: the study's name.
            log_folder: for Slurm's log of it.
            token: of its claim; None: it has none.
        """
        resources = cell_resources(site, self.cells[0], 1, self.forecast)
        comment = comment_together(study, token)
        if {cell.cap for cell in self.cells} == {self.cells[0].cap} and self.cells[0].cap != "none":
            # Where Slurm's Prolog sets power limits, it finds the cap here.
            comment += f" cap={self.cells[0].cap}"
        return [
            *("sbatch", "--parsable", "--job-name=shardwatt", f"--comment={comment}"),
            f"--output={log_folder / '%j.log'}",
            "--no-requeue",
            "--export=ALL",
            *(form.format(resources[name]) for name, form in _WORDS.items() if name in resources),
            f"--time={self.runtime_min}",
            *str(resources["slurm_extra"]).split(),
        ]

    def script(self, python: str, study: str) -> str:
        """What the job runs."""
        command = [python, "-m", "shardwatt", "run-cell", study, *(cell.path for cell in self.cells)]
        return f"#!/bin/sh\nexec {shlex.join(command)}\n"


def shared_jobs(
    root: Path,
    site: Site,
    cells: Iterable[Cell],
    cells_per_job: int,
    *,
    seed: int | None,
    forecast: Callable[[Cell], CellForecast | None] = lambda cell: None,
) -> list[SharedJob]:
    """Put cells that can share their ranks into jobs of at most so many.

    Cells that are compared stand in one job, as long as they are not more than a job may hold; then those
    of one repeat do. Where Slurm's prolog sets power limits, a job has one cap. Each cell has the time limit
    and the memory of a job of its own.

    Args:
        root: the project's root, where config/ lies.
        site: where they run.
        cells: which.
        cells_per_job: most cells of a job; fewer where its time limit would be longer than the partition
            allows.
        seed: for the order of a job's cells; None keeps that of `cells`.
        forecast: what a cell's own job is cut to; None: the site's figures alone count.

    Raises:
        SiteError: the shards have no layout on the site's nodes.
        ModelError: a model is not there: jobs of several cells do not make it.
    """
    has_one_cap = site.power_limits is not None and site.power_limits.set_by == "prolog"
    jobs = []
    for group in _alike(cells, (*SHARED_AXES, "cap") if has_one_cap else SHARED_AXES):
        _check_model(root, site, group[0])
        most = _Most(cells_per_job, site.words(group[0].gpu).runtime_max_min)
        asked = {cell: cell_resources(site, cell, 1, forecast(cell)) for cell in group}
        minutes = {cell: int(words["runtime"]) for cell, words in asked.items()}
        place = {cell: index for index, cell in enumerate(group)}
        for together in _packed(group, minutes, most):
            ordered = (
                in_random_order(together, seed)
                if seed is not None
                else sorted(together, key=place.__getitem__)
            )
            fullest = max(together, key=lambda cell: int(asked[cell].get("mem_mb", 0)))
            total_min = sum(minutes[cell] for cell in together)
            jobs.append(SharedJob(tuple(ordered), total_min, forecast(fullest)))
    return jobs


def _check_model(root: Path, site: Site, cell: Cell) -> None:
    """Make sure that a model is there; simulated cells need none.

    Raises:
        ModelError: it is not.
    """
    if ENGINES[cell.engine].simulates is not None:
        return
    checkpoint = find_checkpoint(root, site.models, cell.model, cell.shards)
    if not checkpoint.folder.is_dir():
        raise ModelError(
            f"model '{cell.model}': {checkpoint.folder} is not there yet, and jobs of several cells "
            f"make no models; make it first: snakemake --profile profiles/slurm {checkpoint.folder}"
        )


def in_random_order(cells: Iterable[Cell], seed: int) -> list[Cell]:
    """Shuffle cells: the same order from the same seed, whatever order they come in.

    The order is that of SHA-256 over seed and path: a cell's place beside another does not depend on which
    others there are, on the machine or on the version of Python.
    """
    return sorted(cells, key=lambda cell: hashlib.sha256(f"{seed} {cell.path}".encode()).digest())


def split_comparisons(jobs: Sequence[SharedJob]) -> list[tuple[Cell, ...]]:
    """Cells that are compared with each other and yet stand in several jobs, group by group."""
    job_of = {cell: index for index, job in enumerate(jobs) for cell in job.cells}
    return [tuple(group) for group in compared(job_of) if len({job_of[cell] for cell in group}) > 1]


def compared(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Groups of cells that differ in `COMPARED_AXES` alone, in order."""
    return _alike(cells, [axis for axis in AXES if axis not in COMPARED_AXES])


def _alike(cells: Iterable[Cell], axes: Sequence[str]) -> list[list[Cell]]:
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, axis) for axis in axes), []).append(cell)
    return list(groups.values())


@dataclass(frozen=True, slots=True)
class _Most:
    """What a job of several cells may be at most; minutes: None for no limit."""

    cells: int
    minutes: int | None

    def holds(self, cells: Sequence[Cell], minutes: Mapping[Cell, int]) -> bool:
        """Whether these cells may be a job: one alone always may."""
        total_min = sum(minutes[cell] for cell in cells)
        is_short = self.minutes is None or total_min <= self.minutes
        return len(cells) == 1 or (len(cells) <= self.cells and is_short)


def _packed(cells: Iterable[Cell], minutes: Mapping[Cell, int], most: _Most) -> list[list[Cell]]:
    """Fill jobs one after the other, with what is compared in one piece."""
    pieces: list[list[Cell]] = []
    for group in compared(cells):
        if most.holds(group, minutes):
            pieces.append(group)
            continue
        # Comparisons are made repeat by repeat: so the caps of one repeat stay together.
        for repeat in _alike(group, ("repeat",)):
            pieces += _filled([[cell] for cell in repeat], minutes, most)
    return _filled(pieces, minutes, most)


def _filled(pieces: Iterable[Sequence[Cell]], minutes: Mapping[Cell, int], most: _Most) -> list[list[Cell]]:
    """Put pieces into as few jobs as they fill in order; each may be a job by itself."""
    jobs: list[list[Cell]] = []
    for piece in pieces:
        if jobs and most.holds([*jobs[-1], *piece], minutes):
            jobs[-1] += piece
        else:
            jobs.append(list(piece))
    return jobs


def submit_together(
    base: Path,
    site: Site,
    study: str,
    python: str,
    jobs: Iterable[SharedJob],
    make_sure: Callable[[], None] = lambda: None,
) -> Iterator[str]:
    """Submit jobs of several cells: a run of Snakemake then waits for them.

    Which cells they run is noted of all of them before the first is submitted. If it is not known in the end
    whether a job was submitted, its note stays, and nothing is submitted before that is found out
    (leftovers.check_claims).

    Args:
        base: the folder in which Snakemake runs.
        site: where they run.
        study: the study's name.
        python: the interpreter.
        jobs: which.
        make_sure: called when all is noted and nothing submitted; raises what is against it.

    Yields:
        Slurm's number of each job.

    Raises:
        NoAnswerError: whether the job is in the queue is not known.
        SlurmError: sbatch is not there, or refuses.
        OSError: the logs cannot be written.
    """
    log_folder = base / "logs" / "slurm" / "together"
    log_folder.mkdir(parents=True, exist_ok=True)
    claims(base, study).mkdir(parents=True, exist_ok=True)
    unsent: list[tuple[SharedJob, Claim]] = []
    try:
        for job in jobs:
            unsent.append((job, Claim(job_id=new_token(), cells=[cell.path for cell in job.cells])))
            write(unsent[-1][1], claim_file(base, study, unsent[-1][1].job_id))
        make_sure()
        while unsent:
            job, claim = unsent.pop(0)
            words = job.sbatch_words(site, study, log_folder, claim.job_id)
            try:
                number = submit(words, job.script(python, study), base)
            except SlurmError as problem:
                if not isinstance(problem, NoAnswerError):
                    unsent.append((job, claim))
                raise
            number_claim(base, study, claim, number)
            yield number
    finally:
        for _, claim in unsent:
            claim_file(base, study, claim.job_id).unlink(missing_ok=True)
