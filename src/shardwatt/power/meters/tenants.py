"""Who computes on a GPU besides this job: NVML meters whole GPUs, other people's joules included."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import pynvml

from shardwatt.power.meters.gpus import Gpu

#: Time in s for which a process that is ending may still be in the driver's list.
_ENDING_S = 1.0

_JOB = "SLURM_JOB_ID"


@dataclass(frozen=True, slots=True)
class Tenants:
    """Compute processes on a GPU that are not known to be of this job.

    Attributes:
        strangers: pids of processes of somebody else, or that cannot be looked at.
        hidden: pids that do not exist here, as in a container with pids of its own: they may be anybody's.
    """

    strangers: list[int]
    hidden: list[int]


def tenants(gpus: Sequence[Gpu]) -> list[Tenants]:
    """Look who computes on each GPU; takes a second where somebody does who is not known to be of this job.

    Of this job are processes with its SLURM_JOB_ID, as ranks that an earlier cell of the job has left, and
    those that come from the process that has started this one. A driver that does not list processes
    cannot be asked: then there are none.
    """
    found = [_look(gpu) for gpu in gpus]
    if any(one.strangers or one.hidden for one in found):
        time.sleep(_ENDING_S)
        found = [_in_both(before, _look(gpu)) for before, gpu in zip(found, gpus, strict=True)]
    return found


def _in_both(before: Tenants, after: Tenants) -> Tenants:
    return Tenants(
        [pid for pid in after.strangers if pid in before.strangers],
        [pid for pid in after.hidden if pid in before.hidden],
    )


def _look(gpu: Gpu) -> Tenants:
    try:
        pids = sorted({process.pid for process in _processes(gpu)})
    except pynvml.NVMLError:
        return Tenants([], [])
    here = [pid for pid in pids if _exists(pid)]
    return Tenants([pid for pid in here if not _is_own(pid)], [pid for pid in pids if pid not in here])


def _processes(gpu: Gpu) -> list[Any]:
    # By version: without one, pynvml has an error outside NVMLError for drivers before 510.
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu.handle)
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses_v2(gpu.handle)
    return list(processes)


def _exists(pid: int) -> bool:
    """Whether there is such a process here, even where /proc hides those of others."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid > 0


def _is_own(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        if os.getppid() in (pid, *(parent.pid for parent in process.parents())):
            return True
        job = os.environ.get(_JOB)
        return job is not None and process.environ().get(_JOB) == job
    except (psutil.Error, OSError):
        return False
