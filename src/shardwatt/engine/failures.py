"""What torch raises, put into the outcomes and reasons of a cell."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from shardwatt.errors import CellFailure, DoesNotFit, Reason, ShardwattError

# Wording of gloo's TCP transport, of NCCL and of torch's store; they raise no types of their own.
_PEER_LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|connection refused|remote process|ncclRemoteError", re.I
)
# A CUDA error is this device's own: "the launch timed out" is told of a kernel that ran too long.
_TIMED_OUT = re.compile(r"(?!CUDA error:).*(timed? ?out|timeout)", re.I | re.S)
_HOST_ALLOCATION = re.compile(r"DefaultCPUAllocator|cannot allocate memory|not enough memory", re.I)
_NO_KERNELS = re.compile(r"no kernel image is available|CUDA driver version is insufficient", re.I)
# The last is NCCL's word; older ones leave the number out.
_DEVICE_ALLOCATION = re.compile(
    r"CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of memory|Cuda failure (\d+ )?'out of memory'", re.I
)


@contextmanager
def torch_failures() -> Iterator[None]:
    """Translate torch's errors; use as a context manager or as a decorator.

    Raises:
        DoesNotFit: a CUDA device ran out of memory.
        CellFailure: HOST_OOM, the host ran out of memory; RANK_DIED, the connection to another rank
            was lost; COLLECTIVE_TIMEOUT, another rank did not answer in time; CONFIGURATION, torch was not
            built for the device.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise DoesNotFit(_first_line(error)) from error
    except MemoryError as error:
        raise _host_oom(error) from error
    except RuntimeError as error:
        failure = _translated(error)
        if failure is None:
            raise
        raise failure from error


def _translated(error: RuntimeError) -> ShardwattError | None:
    text = str(error)
    if _NO_KERNELS.search(text):
        return CellFailure(
            Reason.CONFIGURATION,
            f"this torch was not built for this GPU ({_first_line(error)}); give the GPU type an environment "
            "whose torch was: `shardwatt check-site` compares them",
        )
    if _DEVICE_ALLOCATION.search(text):
        # NCCL tells it after lines that say nothing.
        return DoesNotFit(next(filter(_DEVICE_ALLOCATION.search, text.splitlines())).strip())
    if _HOST_ALLOCATION.search(text):
        return _host_oom(error)
    if _PEER_LOST.search(text):
        return CellFailure(
            Reason.RANK_DIED,
            f"the connection to another rank was lost ({_first_line(error)}); see the other ranks' logs",
        )
    if _TIMED_OUT.match(text):
        return CellFailure(
            Reason.COLLECTIVE_TIMEOUT,
            f"another rank did not answer in time ({_first_line(error)}); see the other ranks' logs, "
            "or raise the site's collective_timeout_s",
        )
    return None


def _host_oom(error: BaseException) -> CellFailure:
    return CellFailure(
        Reason.HOST_OOM,
        f"the host ran out of memory ({_first_line(error) or 'MemoryError'}); "
        "use a smaller batch or more shards, or ask for more memory",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
