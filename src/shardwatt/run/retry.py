"""Retries that cannot help: what only a person can mend is not tried again in the same run."""

from __future__ import annotations

from shardwatt.attempts import Failure
from shardwatt.errors import INCURABLE, CellFailure, RecordError
from shardwatt.layout import CellPaths
from shardwatt.leftovers import attempts_of
from shardwatt.recordfiles import read


def refuse_hopeless(paths: CellPaths, constants_hash: str, job_id: str, number: int) -> None:
    """End a retry at once whose last attempt failed for a reason that trying again cannot mend.

    The first attempt of a run is always made: by then somebody may have mended the cause.

    Args:
        paths: where the cell lies.
        constants_hash: of the study's constants now.
        job_id: this attempt's.
        number: this attempt's, from 1, in this run of Snakemake.

    Raises:
        CellFailure: with the reason of the last attempt.
    """
    if number < 2:
        return
    try:
        failure = read(Failure, paths.failure)
    except (FileNotFoundError, RecordError):
        return
    if (
        failure.reason in INCURABLE
        and failure.constants_hash == constants_hash
        and failure.job_id == _last_attempt(paths, job_id)
    ):
        raise CellFailure(
            failure.reason,
            f"{failure.message} (attempt {number}: not tried again, for nothing has been mended since)",
            node=failure.node,
            rank=failure.rank,
            exit_code=failure.exit_code,
        )


def _last_attempt(paths: CellPaths, job_id: str) -> str | None:
    """Job id of the newest attempt but this one."""
    others = [attempt.job_id for attempt in attempts_of(paths) if attempt.job_id != job_id]
    return others[-1] if others else None
