"""One rank's process: its log, its lifeline, and one cell after another until there are no more."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import platform
import select
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from shardwatt.errors import CellFailure, DoesNotFit, Reason, storage_failure
from shardwatt.layout import is_there, listed
from shardwatt.recordfiles import read, write
from shardwatt.run.batches import TimedResults, batch_run
from shardwatt.run.exchange import (
    JOB_FILE,
    PARTIAL_FILE,
    JobSpec,
    NextCell,
    PartialRun,
    RankEnd,
    RankStart,
    next_file,
    rank_end_file,
    rank_start_file,
)
from shardwatt.run.place import Place, own_place, see_devices
from shardwatt.run.ranklog import redirect_output, say
from shardwatt.run.simulated import run_simulated

if TYPE_CHECKING:
    from shardwatt.run.session import Session

#: Seconds between two looks at the supervisor's process, or for the next cell.
LIFELINE_PERIOD_S = 2.0

#: Longest time in s that a rank that ended well waits for the others to say the same.
LINGER_S = 10.0

_POLL_S = 0.2


def main(session_folder: str) -> None:
    """Run this process's rank; the launcher's environment says which one it is.

    Args:
        session_folder: shared by the ranks; its next-0.json says where the first cell is.

    Ends the process: with exit code 1 when it could not say how the cell ended on this rank; otherwise
    rank-R.end.json does, and the supervisor ends the others. A launcher that kills them at the first bad
    exit code would not leave rank 0 the time to put aside what is finished.
    """
    session = Path(session_folder)
    # Taken by a thread alone: the main thread may be deep in a collective for minutes.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    work = read(NextCell, next_file(session, 0)).work
    spec = read(JobSpec, work / JOB_FILE)
    see_devices(spec.visible_devices, os.environ)
    place = own_place(spec.ranks_per_node)
    node = platform.node()
    redirect_output(spec.log_folder / f"rank-{place.rank}.log", work)
    # A crash in a library leaves its stack in the log.
    faulthandler.enable()
    cells = Cells(session, work, spec, place, node)
    cells.begin()
    _follow_supervisor(spec, place, cells)
    while cells.run():
        pass
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    # Not through torch's clean-up, which may wait for ranks that are gone.
    os._exit(cells.exit_code)


class Cells:
    """The cells that this rank runs, one after another, in the ranks' one session.

    Attributes:
        ok: whether the last one ended well on this rank, and that was told.
    """

    def __init__(self, session: Path, work: Path, spec: JobSpec, place: Place, node: str) -> None:
        self.ok = False
        self._folder = session
        self._work = work
        self._spec = spec
        self._place = place
        self._node = node
        self._number = 0
        self._results: TimedResults = []
        self._ranks: Session | None = None
        self._telling = threading.Lock()
        self._told = False

    @property
    def exit_code(self) -> int:
        """0 once it is told how the last cell ended, however that was."""
        return 0 if self._told else 1

    def begin(self) -> None:
        """Tell that this rank has begun the cell."""
        start = RankStart(rank=self._place.rank, node=self._node, pid=os.getpid(), device=self._place.device)
        write(start, rank_start_file(self._work, self._place.rank))

    def run(self) -> bool:
        """Run the cell to its end and find the next one; False where there is none."""
        end = self._end()
        self.ok = self._tell(end)
        if end.ok and self.ok:
            self._await_others()
        if not (end.ok and self.ok and self._spec.more):
            return False
        self._number += 1
        path = next_file(self._folder, self._number)
        while not is_there(path):
            time.sleep(_POLL_S)
        self._work = read(NextCell, path).work
        self._spec = read(JobSpec, self._work / JOB_FILE)
        redirect_output(self._spec.log_folder / f"rank-{self._place.rank}.log", self._work)
        self._results = []
        self.ok = self._told = False
        self.begin()
        return True

    def give_up(self, why: str) -> None:
        """End the process early, from another thread."""
        if self.ok:
            # Between two cells: there is no next one.
            os._exit(0)
        self._tell(self._failed(reason=Reason.CANCELLED, message=why))
        say(f"rank {self._place.rank}: {why}; ending")
        os._exit(self.exit_code)

    def _tell(self, end: RankEnd) -> bool:
        """Say how this rank ended, once, with what is finished put aside if that was no good end; whether
        that, or an earlier word, is on disk."""
        with self._telling:
            if self._told:
                return True
            if not end.ok:
                self._put_aside()
            try:
                write(end, rank_end_file(self._work, self._place.rank))
            except OSError as problem:
                say(f"rank {end.rank} cannot say how it ended: {problem}")
                return False
            self._told = True
            return True

    def _put_aside(self) -> None:
        with contextlib.suppress(OSError):
            if self._place.rank == 0 and self._results:
                finished = [batch_run(result, times) for result, times in self._results]
                write(PartialRun(batches=finished), self._work / PARTIAL_FILE)

    def _end(self) -> RankEnd:
        """Run the cell; whatever is raised becomes how it ended."""
        try:
            if self._spec.acting is not None:
                return run_simulated(self._spec, self._spec.acting, self._work, self._place, self._node)
            if self._ranks is None:
                # torch comes with it: the supervisor imports this module to name `main`, and needs none.
                from shardwatt.run.session import Session

                self._ranks = Session(self._folder, self._place, self._node)
            return self._ranks.run_cell(self._spec, self._work, self._results)
        except DoesNotFit as problem:
            return self._failed(does_not_fit=True, message=str(problem))
        except BaseException as problem:
            failure = _as_failure(problem, self._place.rank)
            return self._failed(reason=failure.reason, message=failure.message)

    def _failed(self, *, message: str, reason: Reason | None = None, does_not_fit: bool = False) -> RankEnd:
        return RankEnd(
            rank=self._place.rank,
            node=self._node,
            ok=False,
            does_not_fit=does_not_fit,
            reason=reason,
            message=message,
        )

    def _await_others(self) -> None:
        """Keep the connections open until all have ended: another rank may still be in its last barrier."""
        deadline_s = time.monotonic() + LINGER_S
        others = {rank_end_file(self._work, number).name for number in range(self._spec.cell.shards)}
        while time.monotonic() < deadline_s and not others <= set(listed(self._work)):
            time.sleep(_POLL_S)


def _as_failure(problem: BaseException, rank: int) -> CellFailure:
    if isinstance(problem, CellFailure):
        return problem
    if isinstance(problem, KeyboardInterrupt):
        return CellFailure(Reason.CANCELLED, "interrupted by a signal")
    if isinstance(problem, MemoryError):
        message = f"rank {rank} ran out of the host's memory: {problem or 'allocation refused'}"
        return CellFailure(Reason.HOST_OOM, message)
    if isinstance(problem, OSError) and (failure := storage_failure(problem)):
        return failure
    say("".join(traceback.format_exception(problem)))
    return CellFailure(Reason.INTERNAL_ERROR, f"{type(problem).__name__}: {problem}")


def _follow_supervisor(spec: JobSpec, place: Place, cells: Cells) -> None:
    """End this rank soon after its supervisor, or a signal, wants it to, or the supervisor is gone."""

    def on_signal() -> None:
        signal.sigwait({signal.SIGTERM})
        cells.give_up("asked to end (SIGTERM)")

    def on_end_of_input() -> None:
        # srun passes the end of the supervisor's pipe to every rank on every node.
        while select.select([0], [], []) and os.read(0, 4096):
            pass
        cells.give_up("asked to end, or the supervisor is gone")

    def on_dead_supervisor() -> None:
        # is_running compares start times too, so that another process with its number is not taken for it.
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor = psutil.Process(spec.supervisor_pid)
            while supervisor.is_running() and supervisor.status() != psutil.STATUS_ZOMBIE:
                time.sleep(LIFELINE_PERIOD_S)
        cells.give_up("the supervisor is gone")

    lifeline = on_end_of_input if place.in_step else on_dead_supervisor
    for watch in (on_signal, lifeline):
        threading.Thread(target=watch, name=watch.__name__, daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1])
