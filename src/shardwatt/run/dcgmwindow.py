"""DCGM's job statistics around a cell's window: watched from before the ranks start, started one interval
before the window and stopped one after it."""

from __future__ import annotations

import logging
import platform
import time
from contextlib import ExitStack
from pathlib import Path

from shardwatt.power.dcgm.session import DcgmSession
from shardwatt.power.dcgm.text import DcgmError
from shardwatt.power.sampling.files import MeterFile
from shardwatt.readings import Status
from shardwatt.run.gate import Gates
from shardwatt.run.job import Job
from shardwatt.run.measured import DcgmMissing, DcgmRun

#: Longest time in s from here to the end of a cell where no time limit says more.
_LONGEST_S = 24 * 3600.0

#: Longest time in s for one call of `dcgmi`.
_TIMEOUT_S = 30.0

log = logging.getLogger(__name__)


class DcgmWindow:
    """DCGM beside the other meters, if the site has it; what it refuses, and that it hangs, ends no cell.

    Args:
        job: the cell.
        job_id: the attempt's.
        meter: what NVML reads on the node of rank 0, where this process is too.
        left_s: time in s until the job's time limit; None where there is none.
        given_up: what an earlier cell of the same job found; None where that had no trouble.

    Attributes:
        outcome: what it said, or why it did not.
        given_up: what the next cells of the job need not ask again; None where there was no trouble.
    """

    def __init__(
        self, job: Job, job_id: str, meter: MeterFile, left_s: float | None, given_up: DcgmMissing | None
    ) -> None:
        self.outcome: DcgmRun | DcgmMissing
        self.given_up = given_up
        self._stack = ExitStack()
        self._session: DcgmSession | None = None
        self._complaints: list[str] = []
        self._site = job.site.dcgm
        uuids = [device.uuid for device in meter.devices if device.uuid is not None]
        if self._site is None:
            self.outcome = DcgmMissing(Status.UNAVAILABLE, "DCGM was not asked: the site has no key `dcgm`")
        elif job.simulation is not None:
            self.outcome = DcgmMissing(Status.UNAVAILABLE, "DCGM was not asked: the cell is simulated")
        elif not uuids:
            self.outcome = DcgmMissing(Status.UNAVAILABLE, "DCGM was not asked: no GPU is metered by NVML")
        elif meter.node != platform.node():
            self.outcome = DcgmMissing(
                Status.UNAVAILABLE,
                f"DCGM was not asked: rank 0 is on {meter.node}, and its supervisor on {platform.node()}",
            )
        elif given_up is not None:
            self.outcome = given_up
        else:
            self.outcome = DcgmMissing(Status.UNAVAILABLE, "the window was never opened")
            self._session = DcgmSession(
                self._site,
                uuids,
                job_id,
                horizon_s=min(left_s or _LONGEST_S, _LONGEST_S),
                # The ranks wait for two calls at a gate, and give up at their own time-out.
                timeout_s=min(_TIMEOUT_S, job.site.collective_timeout_s / 4),
            )
            self._complaints = self._session.complaints

    def __enter__(self) -> DcgmWindow:
        if self._session is not None:
            try:
                self._stack.enter_context(self._session)
            except DcgmError as problem:
                self._give_up(problem)
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._stack.close()
        for complaint in self._complaints:
            log.warning("DCGM: %s", complaint)

    @property
    def is_open(self) -> bool:
        """Whether there is something to be done at the window's borders."""
        return self._session is not None

    def gates(self, work: Path) -> Gates:
        """The gates at which rank 0 waits for it."""
        return Gates(work, {"open": self._start, "close": self._stop} if self.is_open else {})

    def _start(self) -> None:
        if self._session is None:
            return
        try:
            self._session.start()
        except DcgmError as problem:
            self._give_up(problem)
        else:
            time.sleep(self._session.margin_s)

    def _stop(self) -> None:
        session = self._session
        if session is None:
            return
        try:
            time.sleep(session.margin_s)
            session.stop()
            devices = session.read()
        except DcgmError as problem:
            self._give_up(problem)
        else:
            assert self._site is not None, "a session comes from a site that has DCGM"
            self.outcome = DcgmRun(
                node=session.node,
                interval_ms=self._site.interval_ms,
                start_s=session.start_s,
                stop_s=session.stop_s,
                devices=devices,
            )

    def _give_up(self, problem: DcgmError) -> None:
        log.warning("no joules from DCGM: %s", problem)
        self.outcome = self.given_up = DcgmMissing(problem.status, str(problem))
        self._session = None
