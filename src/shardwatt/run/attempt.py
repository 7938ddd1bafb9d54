"""One start of a cell: its work folder, its start and end on disk, and its failure, if it fails."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import secrets
import sys
import traceback
from collections import deque
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path

from shardwatt.attempts import Attempt, Failure
from shardwatt.errors import CellFailure, Reason, RecordError, ShardwattError, storage_failure
from shardwatt.layout import CellPaths
from shardwatt.leftovers import read_attempt
from shardwatt.recordfiles import write
from shardwatt.records import CellRecord, Outcome
from shardwatt.run.endings import TAIL_LINES
from shardwatt.run.ranklog import said_by_rank
from shardwatt.run.signals import EndingSignals
from shardwatt.run.workfolder import WorkFolder, remove_abandoned
from shardwatt.slurm import own_cluster

log = logging.getLogger(__name__)


class OpenAttempt:
    """An attempt from its start to its end.

    Entered before anything is written, so that whatever is raised inside, by `begin` too, is written
    down: as failure.json, in the attempt's record, and in the log. It leaves as a CellFailure.

    Attributes:
        paths: where the cell lies.
        job_id: Slurm's, or one made of time, process and chance.
        node: this host.
        started_at: UTC; tells this start from another of the same job.
        works_since: UTC; the same, unless it had to wait for the machine.
        outcome: how it ended, unless something is raised.
        reason: the same in words.
        partial: where responses of finished batches were put aside, if any were.
        work: where it writes, after `begin`.
    """

    def __init__(self, paths: CellPaths, constants_hash: str, signals: EndingSignals) -> None:
        self.paths = paths
        self.started_at = self.works_since = datetime.now(UTC)
        self.node = platform.node()
        # Containers on one file system have the same numbers of processes: chance tells their starts apart.
        self.job_id = os.environ.get("SLURM_JOB_ID") or (
            f"local-{self.started_at:%Y%m%dT%H%M%S}-{os.getpid()}-{secrets.token_hex(4)}"
        )
        self.outcome = Outcome.OK
        self.reason: str | None = None
        self.partial: Path | None = None
        self._constants_hash = constants_hash
        self._signals = signals
        self._folder: WorkFolder | None = None
        self._log: _Log | None = None

    @property
    def work(self) -> Path:
        assert self._folder is not None, "before begin()"
        return self._folder.path

    def begin(self) -> None:
        """Open the log, write the start down, make the work folder, remove those of killed attempts.

        Raises:
            OSError: logs/ or results/ cannot be written.
        """
        self.paths.logs.mkdir(parents=True, exist_ok=True)
        self._log = _Log(self.paths.supervisor_log)
        logging.getLogger("shardwatt").addHandler(self._log)
        log.info("cell %s, job %s on %s", self.paths.cell.path, self.job_id, self.node)
        self._write_attempt(ended=False)
        begin = self.paths.work(self.job_id)
        for folder in remove_abandoned(begin.parent):
            log.info("removed %s, which a killed attempt left", folder)
        self._folder = WorkFolder(begin)

    def __enter__(self) -> OpenAttempt:
        return self

    def __exit__(self, kind: object, value: BaseException | None, trace: object) -> None:
        self._signals.hold()
        failure = self.write_down(value)
        if self._folder is not None:
            self._folder.remove()
        if self._log is not None:
            logging.getLogger("shardwatt").removeHandler(self._log)
            self._log.close()
        if failure is not None and failure is not value:
            raise failure from None

    def write_down(self, problem: BaseException | None) -> CellFailure | None:
        """Write down how the attempt ends; again, and better, if more is known later.

        Args:
            problem: what was raised; None if nothing was.

        Returns:
            The same as a failure of the cell.
        """
        failure = None if problem is None else _as_failure(problem)
        if problem is not None and failure is not None:
            if failure.reason is Reason.INTERNAL_ERROR:
                log.error("%s", "".join(traceback.format_exception(problem)))
            log.error("failed: %s: %s", failure.reason, failure.message)
            self.outcome, self.reason = Outcome.FAILED, str(failure.reason)
        try:
            # Somebody may have tidied them away.
            self.paths.logs.mkdir(parents=True, exist_ok=True)
            other = read_attempt(self.paths.attempt(self.job_id))
            if other is not None and other.started_at != self.started_at:
                log.warning("job %s was started again; what became of this start is not kept", self.job_id)
                return failure
            if failure is not None:
                self._write_failure(failure)
            self._write_attempt(ended=True)
        except OSError as trouble:
            print(f"shardwatt: the logs cannot be written: {trouble}", file=sys.stderr)
        return failure

    def _write_attempt(self, *, ended: bool) -> None:
        record = Attempt(
            job_id=self.job_id,
            cluster=own_cluster(),
            node=self.node,
            pid=os.getpid(),
            constants_hash=self._constants_hash,
            started_at=self.started_at,
            ended_at=datetime.now(UTC) if ended else None,
            outcome=self.outcome if ended else None,
            reason=self.reason if ended else None,
        )
        write(record, self.paths.attempt(self.job_id))

    def _write_failure(self, failure: CellFailure) -> None:
        source = self.paths.supervisor_log
        lines = list(self._log.last) if self._log is not None else []
        if failure.rank is not None and (said := said_by_rank(self.paths.rank_log(failure.rank), self.work)):
            source, lines = self.paths.rank_log(failure.rank), said.splitlines()
        record = Failure(
            study=self.paths.study,
            cell=CellRecord.of(self.paths.cell),
            constants_hash=self._constants_hash,
            job_id=self.job_id,
            reason=failure.reason,
            message=failure.message,
            node=failure.node or self.node,
            rank=failure.rank,
            exit_code=failure.exit_code,
            started_at=self.started_at,
            ended_at=datetime.now(UTC),
            log=str(source.relative_to(self.paths.base)),
            log_tail=lines[-TAIL_LINES:],
            partial=str(self.partial.relative_to(self.paths.base)) if self.partial else None,
        )
        write(record, self.paths.failure)


class _Log(WatchedFileHandler):
    """The supervisor's log, which other starts of the cell append to.

    Snakemake removes it when it begins one: then it is made anew. What cannot be written is let go.

    Attributes:
        last: the last lines of this start, whoever else writes into the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8")
        self.last: deque[str] = deque(maxlen=TAIL_LINES)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.last.extend(self.format(record).splitlines())
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's)
        pass

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def _as_failure(problem: BaseException) -> CellFailure:
    if isinstance(problem, CellFailure):
        return problem
    if isinstance(problem, KeyboardInterrupt):
        what = f"ended by {problem}" if str(problem) else "interrupted"
        return CellFailure(Reason.CANCELLED, f"{what}; the cell has no result")
    if isinstance(problem, OSError) and (failure := storage_failure(problem)):
        return failure
    if isinstance(problem, ShardwattError) and not isinstance(problem, RecordError):
        return CellFailure(Reason.CONFIGURATION, str(problem))
    return CellFailure(Reason.INTERNAL_ERROR, f"{type(problem).__name__}: {problem}")
