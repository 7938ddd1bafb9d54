"""Starting the ranks of a cell and ending them; submitit's LocalExecutor on one machine."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Protocol

import psutil
import submitit

from shardwatt.run import rank

#: submitit ends its tasks after this many minutes; the supervisor has the only say here.
_NO_TIMEOUT_MIN = 60 * 24 * 365


class RankGroup(Protocol):
    """The running ranks of a cell."""

    def exited(self) -> set[int]:
        """Ranks whose processes are gone."""

    def kill(self) -> None:
        """End every rank at once and wait until all are gone."""


class LocalRanks:
    """Ranks of one machine, started by submitit's LocalExecutor."""

    def __init__(self, job: submitit.Job[None], ranks: int) -> None:
        self._job = job
        self._ranks = ranks
        self._controller = psutil.Process(int(job.job_id))
        self._processes: dict[int, psutil.Process] = {}

    def exited(self) -> set[int]:
        if self._job.done():
            return set(range(self._ranks))
        self._discover()
        return {number for number, process in self._processes.items() if not _alive(process)}

    def kill(self) -> None:
        processes = {self._controller, *self._processes.values()}
        with contextlib.suppress(psutil.NoSuchProcess):
            # Held first: it must start neither a rank nor a clean-up that outlives this call.
            self._controller.suspend()
            processes.update(self._controller.children())
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
        work: the cell's work folder, holding job.json; submitit keeps its files below it.
        ranks: processes to start.
    """
    executor = submitit.LocalExecutor(folder=work / "submitit")
    # Which GPUs a rank sees stands in job.json: submitit knows indices only, no UUIDs.
    executor.update_parameters(tasks_per_node=ranks, timeout_min=_NO_TIMEOUT_MIN)
    return LocalRanks(executor.submit(rank.main, str(work)), ranks)


def output_tail(work: Path) -> str:
    """What ranks printed before they had their own logs, e.g. a failed import."""
    files = sorted((work / "submitit").glob("*_log.err"))
    return "\n".join(path.read_text(errors="replace") for path in files)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
