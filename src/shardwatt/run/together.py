"""Several cells of one model in one job: loaded once, and compared on the same GPUs.

GPUs of one model differ more than a power cap changes (docs/results.md, Paired comparisons). So cells that
are compared with each other, those that differ in `COMPARED_AXES` alone, are put into one job.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardwatt.attempts import Claim
from shardwatt.cell import AXES, Cell
from shardwatt.checkpoints import ModelError
from shardwatt.layout import claim_file
from shardwatt.models import find_checkpoint
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
        runtime_min: the time limit: that of one cell for each.
    """

    cells: tuple[Cell, ...]
    runtime_min: int

    def sbatch_words(self, site: Site, study: str, log_folder: Path) -> list[str]:
        """The words that submit it; the script comes through standard input."""
        resources = cell_resources(site, self.cells[0], 1)
        comment = f"shardwatt run-together {study}"
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
    root: Path, site: Site, cells: Iterable[Cell], cells_per_job: int, *, seed: int | None
) -> list[SharedJob]:
    """Put cells that can share their ranks into jobs of at most so many.

    Cells that are compared stand in one job, as long as they are not more than a job may hold; then those
    of one repeat do. Where Slurm's prolog sets power limits, a job has one cap.

    Args:
        root: the project's root, where config/ lies.
        site: where they run.
        cells: which.
        cells_per_job: most cells of a job; fewer where its time limit would be longer than the partition
            allows.
        seed: for the order of a job's cells; None keeps that of `cells`.

    Raises:
        SiteError: the shards have no layout on the site's nodes.
        ModelError: a model is not there: jobs of several cells do not make it.
    """
    has_one_cap = site.power_limits is not None and site.power_limits.set_by == "prolog"
    jobs = []
    for group in _alike(cells, (*SHARED_AXES, "cap") if has_one_cap else SHARED_AXES):
        checkpoint = find_checkpoint(root, site.models, group[0].model, group[0].shards)
        if not checkpoint.folder.is_dir():
            raise ModelError(
                f"model '{group[0].model}': {checkpoint.folder} is not there yet, and jobs of several cells "
                f"make no models; make it first: snakemake --profile profiles/slurm {checkpoint.folder}"
            )
        one_min = int(cell_resources(site, group[0], 1)["runtime"])
        most_min = site.words(group[0].gpu).runtime_max_min
        size = cells_per_job if most_min is None else min(cells_per_job, max(1, most_min // one_min))
        place = {cell: index for index, cell in enumerate(group)}
        for together in _packed(group, size):
            ordered = (
                in_random_order(together, seed)
                if seed is not None
                else sorted(together, key=place.__getitem__)
            )
            jobs.append(SharedJob(tuple(ordered), one_min * len(ordered)))
    return jobs


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


def _packed(cells: Iterable[Cell], size: int) -> list[list[Cell]]:
    """Fill jobs of at most `size` cells one after the other, with what is compared in one piece."""
    pieces: list[list[Cell]] = []
    for group in compared(cells):
        if len(group) <= size:
            pieces.append(group)
            continue
        # Comparisons are made repeat by repeat: so the caps of one repeat stay together.
        for repeat in _alike(group, ("repeat",)):
            pieces += [repeat[first : first + size] for first in range(0, len(repeat), size)]
    jobs: list[list[Cell]] = []
    for piece in pieces:
        if jobs and len(jobs[-1]) + len(piece) <= size:
            jobs[-1] += piece
        else:
            jobs.append(list(piece))
    return jobs


def submit_together(base: Path, site: Site, study: str, python: str, job: SharedJob) -> str:
    """Submit a job of several cells, and note which: a run of Snakemake then waits for them.

    Returns:
        Slurm's number of the job.

    Raises:
        SlurmError: sbatch is not there, or refuses.
        OSError: the logs cannot be written.
    """
    log_folder = base / "logs" / "slurm" / "together"
    log_folder.mkdir(parents=True, exist_ok=True)
    number = submit(job.sbatch_words(site, study, log_folder), job.script(python, study), base)
    path = claim_file(base, study, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(Claim(job_id=number, cells=[cell.path for cell in job.cells]), path)
    return number
