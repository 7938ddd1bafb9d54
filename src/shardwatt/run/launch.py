"""Starting the ranks of a cell and ending them: what every launcher offers, and the one of one machine."""

from __future__ import annotations

import contextlib
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil
import submitit

from shardwatt.run import rank

#: Longest time in s that ranks get to end by themselves, with what they put aside.
ASK_S = 5.0

#: submitit ends its tasks after this many minutes; the supervisor has the only say here.
_NO_TIMEOUT_MIN = 60 * 24 * 365


@dataclass(frozen=True, slots=True)
class RankExit:
    """How the process of a rank went, as far as its launcher knows.

    Attributes:
        node: host, where known.
        exit_code: exit status, negative for a signal; None where unknown.
        out_of_memory: whether the system says that it was killed for want of host memory.
    """

    node: str | None = None
    exit_code: int | None = None
    out_of_memory: bool = False


class RankGroup(Protocol):
    """The running ranks of a cell."""

    def exits(self) -> dict[int, RankExit]:
        """Ranks whose processes are gone; those with an exit code in the order in which they went."""

    def said(self) -> str:
        """What the launcher and ranks without a log of their own printed, e.g. a failed import."""

    def end(self) -> None:
        """Ask every rank to end, kill those that don't within seconds, and wait until all are gone."""


class LocalRanks:
    """Ranks of one machine, started by submitit's LocalExecutor."""

    def __init__(self, job: submitit.Job[None], ranks: int, work: Path) -> None:
        self._job = job
        self._ranks = ranks
        self._folder = _submitit_folder(work)
        self._controller = psutil.Process(int(job.job_id))
        self._processes: dict[int, psutil.Process] = {}

    def exits(self) -> dict[int, RankExit]:
        if self._job.done():
            return dict.fromkeys(range(self._ranks), RankExit())
        self._discover()
        return {number: RankExit() for number, process in self._processes.items() if not _alive(process)}

    def said(self) -> str:
        files = sorted(self._folder.glob("*_log.err"))
        return "\n".join(path.read_text(errors="replace") for path in files).strip()

    def end(self) -> None:
        processes = {self._controller, *self._processes.values()}
        with contextlib.suppress(psutil.NoSuchProcess):
            # Held first: it must start neither a rank nor a clean-up that outlives this call.
            self._controller.suspend()
            processes.update(self._controller.children())
        ranks = processes - {self._controller}
        for process in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        # Nobody reaps them while their parent is held.
        _wait_until_gone(ranks)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=10)
        self._job.done()

    def _discover(self) -> None:
        """Find the ranks' processes by the number that submitit gives each in its environment."""
        if len(self._processes) == self._ranks:
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in self._controller.children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, KeyError):
                    number = int(process.environ()["SUBMITIT_LOCAL_GLOBALID"])
                    self._processes[number] = process


def launch_local(work: Path, *, ranks: int) -> LocalRanks:
    """Start the ranks of a cell on this machine.

    Args:
        work: the folder that the ranks share; its next-0.json says where the first cell is.
        ranks: processes to start.
    """
    executor = submitit.LocalExecutor(folder=_submitit_folder(work))
    # Which GPU a rank has is worked out by itself: submitit knows indices only, no UUIDs.
    executor.update_parameters(tasks_per_node=ranks, timeout_min=_NO_TIMEOUT_MIN)
    return LocalRanks(_submitted(executor, work), ranks, work)


def _submitted(executor: submitit.LocalExecutor, work: Path) -> submitit.Job[None]:
    """Start submitit's controller and its ranks deaf to SIGINT: a Ctrl-C is the supervisor's to answer.

    A blocked signal stays blocked in processes started meanwhile; here it arrives afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return executor.submit(rank.main, str(work))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _submitit_folder(work: Path) -> Path:
    return work / "submitit"


def _wait_until_gone(processes: set[psutil.Process]) -> None:
    deadline_s = time.monotonic() + ASK_S
    while any(map(_alive, processes)) and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
