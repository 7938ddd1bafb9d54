"""Where everything lies on disk: results, logs, and the work folder of a running cell."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from shardwatt.cell import Cell

RECORD = "result.json"

#: The declared outputs of a cell; the record is put in place last.
CELL_FILES = ("responses.parquet", "batches.parquet", "power.parquet", RECORD)


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
        return self.results / RECORD

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

    def partial(self, job_id: str) -> Path:
        """What an attempt that ended early had answered: the form of responses.parquet."""
        return self.logs / f"partial-{job_id}.parquet"

    def attempt(self, job_id: str) -> Path:
        """The start record of one attempt."""
        return self.logs / f"attempt-{job_id}.json"

    def work(self, job_id: str) -> Path:
        """Begin of the folder in which an attempt writes; outside `cells/`, on the same file system."""
        digest = hashlib.sha256(self.cell.path.encode()).hexdigest()[:16]
        return work_folders(self.base, self.study) / f"{digest}-{job_id}"


def ranks_folder(base: Path, study: str, job_id: str) -> Path:
    """Begin of the folder that all ranks of a job share."""
    return work_folders(base, study) / f"ranks-{job_id}"


def work_folders(base: Path, study: str) -> Path:
    """Where a study's attempts have their work folders."""
    return base / "results" / study / ".work"


def cell_target(study: str, path: str) -> str:
    """What to ask Snakemake for to run a cell, given its path."""
    return f"results/{study}/cells/{path}/{RECORD}"


def study_results(base: Path, study: str) -> Path:
    """Folder of a study's tables, figures, report and cells."""
    return base / "results" / study


def claim_file(base: Path, study: str, job_id: str) -> Path:
    """Which cells a job of several cells runs."""
    return claims(base, study) / f"{job_id}.json"


def claims(base: Path, study: str) -> Path:
    """Folder of those files."""
    return base / "logs" / study / "together"


def is_there(path: Path) -> bool:
    """Whether a file is there now, also where another node has just made it."""
    return path.name in listed(path.parent)


def listed(folder: Path) -> list[str]:
    """Names in a folder now; none where it cannot be listed.

    A network file system remembers for up to a minute that there was no file of a name; it looks again
    when the folder is listed.
    """
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []
