"""Guards retries: what only a person can mend ends at once, everything else is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shardwatt.attempts import Attempt, Failure
from shardwatt.errors import CellFailure, Reason
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import write
from shardwatt.records import CellRecord, Outcome
from shardwatt.run.retry import refuse_hopeless
from synthetic_cells import make_cell

HASH = "c" * 16
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def paths(tmp_path: Path) -> CellPaths:
    paths = CellPaths(tmp_path, "study", make_cell())
    paths.logs.mkdir(parents=True)
    return paths


def fail(paths: CellPaths, job_id: str, reason: Reason, constants_hash: str = HASH) -> None:
    failure = Failure(
        study=paths.study,
        cell=CellRecord.of(paths.cell),
        constants_hash=constants_hash,
        job_id=job_id,
        reason=reason,
        message="params.json: dim is 0",
        node="v100-0",
        started_at=BEGAN,
        ended_at=BEGAN,
        log="a.log",
        log_tail=[],
    )
    write(failure, paths.failure)
    begin(paths, job_id, ended=True)


def begin(paths: CellPaths, job_id: str, *, ended: bool = False, after_s: int = 0) -> None:
    attempt = Attempt(
        job_id=job_id,
        node="v100-0",
        pid=1,
        started_at=BEGAN + timedelta(seconds=after_s),
        ended_at=BEGAN + timedelta(seconds=after_s) if ended else None,
        outcome=Outcome.FAILED if ended else None,
        reason="x" if ended else None,
    )
    write(attempt, paths.attempt(job_id))


def test_a_retry_of_what_only_a_person_can_mend_ends_at_once(paths: CellPaths) -> None:
    fail(paths, "1", Reason.BAD_CHECKPOINT)
    begin(paths, "2", after_s=60)
    with pytest.raises(CellFailure, match=r"^params.json: dim is 0 \(attempt 2: not tried again") as raised:
        refuse_hopeless(paths, HASH, "2", 2)
    assert (raised.value.reason, raised.value.node) == (Reason.BAD_CHECKPOINT, "v100-0")


def test_the_first_attempt_of_a_run_is_made(paths: CellPaths) -> None:
    fail(paths, "1", Reason.BAD_CHECKPOINT)
    refuse_hopeless(paths, HASH, "2", 1)


@pytest.mark.parametrize("reason", [Reason.RANK_DIED, Reason.NODE_FAIL, Reason.HOST_OOM, Reason.STORAGE])
def test_what_may_pass_is_tried_again(paths: CellPaths, reason: Reason) -> None:
    fail(paths, "1", reason)
    refuse_hopeless(paths, HASH, "2", 2)


def test_other_constants_are_another_cell(paths: CellPaths) -> None:
    fail(paths, "1", Reason.CONFIGURATION, "d" * 16)
    refuse_hopeless(paths, HASH, "2", 2)


def test_a_failure_older_than_the_last_attempt_says_nothing_of_it(paths: CellPaths) -> None:
    """The last attempt lost its node and wrote nothing."""
    fail(paths, "1", Reason.CONFIGURATION)
    begin(paths, "2", after_s=60)
    refuse_hopeless(paths, HASH, "3", 3)
