"""Where everything lies on disk: results, logs, and the work folder of a running cell."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from shardwatt.cell import Cell

#: The declared outputs of a cell; `result.json` is put in place last.
CELL_FILES = ("responses.parquet", "batches.parquet", "power.parquet", "result.json")


@dataclass(frozen=True, slots=True)
class CellPaths:
    """Paths of one cell of one study, below the folder in which Snakemake runs.

    Attributes:
        base: the folder that holds `results` and `logs`.
        study: the study's name.
        cell: the cell.
    """

    base: Path
    study: str
    cell: Cell

    @property
    def results(self) -> Path:
        """Folder of the cell's four declared outputs."""
        return self.base.joinpath("results", self.study, "cells", self.cell.path)

    @property
    def record(self) -> Path:
        return self.results / "result.json"

    @property
    def target(self) -> str:
        """What to ask Snakemake for to run this cell again."""
        return cell_target(self.study, self.cell.path)

    @property
    def logs(self) -> Path:
        """Folder of rank logs, supervisor log, attempts and failure.json; Snakemake keeps it."""
        return self.base.joinpath("logs", self.study, "cells", self.cell.path)

    @property
    def supervisor_log(self) -> Path:
        return self.logs / "supervisor.log"

    @property
    def failure(self) -> Path:
        return self.logs / "failure.json"

    @property
    def sampler_log(self) -> Path:
        return self.logs / "sampler.log"

    @property
    def commit_lock(self) -> Path:
        """Held while an attempt's files are put into place."""
        return self.logs / "commit.lock"

    def rank_log(self, rank: int) -> Path:
        return self.logs / f"rank-{rank}.log"

    def attempt(self, job_id: str) -> Path:
        """The start record of one attempt."""
        return self.logs / f"attempt-{job_id}.json"

    def work(self, job_id: str) -> Path:
        """Begin of the folder in which an attempt writes; outside `cells/`, on the same file system."""
        digest = hashlib.sha256(self.cell.path.encode()).hexdigest()[:16]
        return self.base / "results" / self.study / ".work" / f"{digest}-{job_id}"


def cell_target(study: str, path: str) -> str:
    """What to ask Snakemake for to run a cell, given its path."""
    return f"results/{study}/cells/{path}/result.json"


def study_results(base: Path, study: str) -> Path:
    """Folder of a study's tables, figures, report and cells."""
    return base / "results" / study
