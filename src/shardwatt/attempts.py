"""What the logs of a cell tell of its attempts: their start and end, why one failed, what a job claims."""

from __future__ import annotations

from datetime import datetime

from shardwatt.errors import Reason
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion
from shardwatt.records import CellRecord, Outcome


class Failure(RecordModel):
    """The contents of failure.json: the last attempt that failed."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    study: str
    cell: CellRecord
    constants_hash: str
    job_id: str
    reason: Reason
    message: str
    node: str | None = None
    rank: int | None = None
    exit_code: int | None = None
    started_at: datetime
    ended_at: datetime
    log: str
    """The log to read, relative to the folder in which Snakemake runs."""
    log_tail: list[str]
    """The last lines of that log."""
    partial: str | None = None
    """Responses of the batches that were finished, relative to the same folder; null where none were."""
    slurm_state: str | None = None
    """Slurm's word for the job when it was asked afterwards; UNKNOWN: it had forgotten the job."""


class Attempt(RecordModel):
    """The contents of attempt-JOBID.json, written when a cell starts and again when it ends."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    job_id: str
    cluster: str | None = None
    """Slurm's name of the cluster that counts this job; null without Slurm, and in records of old."""
    node: str
    pid: int
    constants_hash: str | None = None
    """Of the study's constants at its start."""
    started_at: datetime
    ended_at: datetime | None = None
    outcome: Outcome | None = None
    reason: str | None = None


class Claim(RecordModel):
    """Which cells a job of several cells runs: logs/STUDY/together/JOBID.json.

    Until its number is known, the file has the name of a token, which stands in the job's comment.
    """

    schema_version: SchemaVersion = SCHEMA_VERSION
    job_id: str
    """Slurm's number of the job, or the token."""
    cells: list[str]
    """Their paths, in the order in which they run."""
