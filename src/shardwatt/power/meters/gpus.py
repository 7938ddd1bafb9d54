"""The job's own GPUs of this node, opened through NVML: whole ones, each once, and those only."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from shardwatt.readings import Device, Status

_WHOLE = "NVML meters and limits whole GPUs only: run the cell on whole GPUs"


class GpuError(Exception):
    """GPUs cannot be opened.

    Attributes:
        status: what readings of them are worth: unavailable, unsupported or permission_denied.
    """

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Gpu:
    """A whole GPU of this node.

    Attributes:
        handle: pynvml's; good while `nvml()` is entered.
        device: node, NVML index, name and UUID.
    """

    handle: Any
    device: Device

    def __str__(self) -> str:
        return f"GPU {self.device.index} of {self.device.node}"


@contextmanager
def nvml() -> Iterator[None]:
    """Hold the driver's library open.

    Raises:
        GpuError: it is missing, or does not start.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        message = f"{socket.gethostname()}: NVML (libnvidia-ml.so.1, of NVIDIA's driver): {error}"
        raise GpuError(status_of(error), message) from None
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def find_gpus(selectors: Sequence[str]) -> tuple[list[Gpu], list[GpuError]]:
    """Open what can be opened of the job's GPUs, within `nvml()`.

    Args:
        selectors: NVML indices (`0`) or whole UUIDs (`GPU-…`), as CUDA_VISIBLE_DEVICES has them. CUDA
            numbers GPUs as NVML does under CUDA_DEVICE_ORDER=PCI_BUS_ID.

    Returns:
        The GPUs in the order of their selectors, and an error for each selector that is refused: a slice
        of a GPU (MIG), a GPU that is named twice, does not answer, or is not there.
    """
    gpus: list[Gpu] = []
    refused: list[GpuError] = []
    if not selectors:
        message = "no GPUs named; expected indices or UUIDs, as in CUDA_VISIBLE_DEVICES"
        refused.append(GpuError(Status.UNAVAILABLE, message))
    for selector in selectors:
        try:
            gpu = _open(selector)
            if any(gpu.device.uuid == other.device.uuid for other in gpus):
                raise GpuError(Status.UNSUPPORTED, f"{gpu} is named twice, now as '{selector}'")
            gpus.append(gpu)
        except GpuError as error:
            refused.append(error)
    return gpus, refused


def open_gpus(selectors: Sequence[str]) -> list[Gpu]:
    """Open the job's GPUs, all of them, within `nvml()`; `find_gpus` explains the selectors.

    Raises:
        GpuError: one is refused; the status of the first, the words of all.
    """
    gpus, refused = find_gpus(selectors)
    if refused:
        raise GpuError(refused[0].status, "; ".join(map(str, refused)))
    return gpus


def status_of(error: pynvml.NVMLError) -> Status:
    """What a reading is worth that the driver refused so."""
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        return Status.PERMISSION_DENIED
    if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        return Status.UNSUPPORTED
    return Status.UNAVAILABLE


def _open(selector: str) -> Gpu:
    if selector.startswith("MIG-"):
        raise GpuError(Status.UNSUPPORTED, f"{selector} is a slice of a GPU; {_WHOLE}")
    by_uuid = selector.startswith("GPU-")
    if not by_uuid and not (selector.isascii() and selector.isdecimal()):
        message = f"GPU '{selector}': expected an index (0) or a UUID (GPU-…)"
        raise GpuError(Status.UNAVAILABLE, message)
    node = socket.gethostname()
    try:
        if by_uuid:
            handle = pynvml.nvmlDeviceGetHandleByUUID(selector)
        else:
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(selector))
        device = Device(
            node=node,
            index=pynvml.nvmlDeviceGetIndex(handle),
            name=pynvml.nvmlDeviceGetName(handle),
            uuid=pynvml.nvmlDeviceGetUUID(handle),
        )
    except pynvml.NVMLError as error:
        message = f"GPU {selector} of {node} cannot be opened: {error}"
        raise GpuError(status_of(error), message) from None
    gpu = Gpu(handle, device)
    if _is_sliced(handle):
        raise GpuError(Status.UNSUPPORTED, f"{gpu} is in MIG mode; {_WHOLE}")
    return gpu


def _is_sliced(handle: Any) -> bool:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # GPUs that know no MIG say `Not Supported`
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)
