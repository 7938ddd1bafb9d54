"""Several cells of one model in one job: the model is loaded once, for all of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shardwatt.attempts import Claim
from shardwatt.cell import Cell
from shardwatt.layout import claim_file
from shardwatt.models import ModelError, find_checkpoint
from shardwatt.records import write
from shardwatt.resources import cell_resources
from shardwatt.site import Site
from shardwatt.slurm import submit

#: What must be the same for ranks to stay, with their weights.
SHARED_AXES = ("engine", "model", "precision", "gpu", "shards", "cap")

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
        return [
            *("sbatch", "--parsable", "--job-name=shardwatt", f"--comment=shardwatt run-together {study}"),
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


def shared_jobs(root: Path, site: Site, cells: Iterable[Cell], cells_per_job: int) -> list[SharedJob]:
    """Put cells that can share their ranks into jobs of at most so many.

    Args:
        root: the project's root, where config/ lies.
        site: where they run.
        cells: which.
        cells_per_job: most cells of a job; fewer where its time limit would be longer than the partition
            allows.

    Raises:
        SiteError: the shards have no layout on the site's nodes.
        ModelError: a model is not there: jobs of several cells do not make it.
    """
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, axis) for axis in SHARED_AXES), []).append(cell)
    jobs = []
    for group in groups.values():
        checkpoint = find_checkpoint(root, site.models, group[0].model, group[0].shards)
        if not checkpoint.folder.is_dir():
            raise ModelError(
                f"model '{group[0].model}': {checkpoint.folder} is not there yet, and jobs of several cells "
                f"make no models; make it first: snakemake --profile profiles/slurm {checkpoint.folder}"
            )
        one_min = int(cell_resources(site, group[0], 1)["runtime"])
        most_min = site.words(group[0].gpu).runtime_max_min
        size = cells_per_job if most_min is None else min(cells_per_job, max(1, most_min // one_min))
        jobs += [
            SharedJob(tuple(group[first : first + size]), one_min * len(group[first : first + size]))
            for first in range(0, len(group), size)
        ]
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
