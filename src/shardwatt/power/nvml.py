"""NVIDIA GPUs through NVML: the driver's energy counter first, its power sensor where there is none."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pynvml

from shardwatt.power.protocol import Sample
from shardwatt.records import Device, Method, Status
from shardwatt.units import MILLI


@dataclass(frozen=True, slots=True)
class _Gpu:
    """A GPU of the job, and whether its energy counter answered when it was opened."""

    handle: Any
    device: Device
    has_counter: bool


class NvmlMeter:
    """The job's own GPUs of this node.

    Args:
        selectors: NVML indices (`0`) or whole UUIDs (`GPU-…`), as CUDA_VISIBLE_DEVICES has them. CUDA
            numbers GPUs as NVML does under CUDA_DEVICE_ORDER=PCI_BUS_ID. Slices of a GPU (`MIG-…`) are
            refused, since NVML meters whole GPUs only.

    What cannot be opened leaves a meter without devices, whose `status` and `detail` say why.
    """

    def __init__(self, selectors: Sequence[str]) -> None:
        self.method: Method | None = None
        self.status = Status.UNAVAILABLE
        self.detail: str | None = None
        self.devices: list[Device] = []
        self._gpus: list[_Gpu] = []
        self._reported: set[tuple[int, str]] = set()
        self._open = False
        if refusal := _refusal(selectors):
            self.status, self.detail = refusal
            return
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            self.status = _status(error)
            self.detail = f"{socket.gethostname()}: NVML (libnvidia-ml.so.1, of NVIDIA's driver): {error}"
            return
        self._open = True
        self._open_gpus(selectors)

    def _open_gpus(self, selectors: Sequence[str]) -> None:
        node = socket.gethostname()
        derived: list[str] = []
        unknown: list[tuple[Status, str]] = []
        for selector in selectors:
            try:
                handle = _handle(selector)
                device = Device(
                    node=node,
                    index=pynvml.nvmlDeviceGetIndex(handle),
                    name=pynvml.nvmlDeviceGetName(handle),
                    uuid=pynvml.nvmlDeviceGetUUID(handle),
                )
            except pynvml.NVMLError as error:
                unknown.append((_status(error), f"GPU {selector} of {node} cannot be opened: {error}"))
                continue
            if any(device.uuid == other.uuid for other in self.devices):
                unknown.append((Status.UNSUPPORTED, f"GPU {selector} of {node} is named twice"))
                continue
            if _is_sliced(handle):
                unknown.append((Status.UNSUPPORTED, f"GPU {selector} of {node} is in MIG mode; {_WHOLE}"))
                continue
            counter_error = _probe(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)
            self._gpus.append(_Gpu(handle, device, counter_error is None))
            self.devices.append(device)
            if counter_error is None:
                continue
            power_error = _probe(pynvml.nvmlDeviceGetPowerUsage, handle)
            reason = f"GPU {device.index} of {node}: energy counter: {counter_error}"
            if power_error is None:
                derived.append(f"{reason}; sampled power is integrated instead")
            else:
                unknown.append((_status(power_error), f"{reason}; power: {power_error}"))
        self.detail = "; ".join([detail for _, detail in unknown] + derived) or None
        if unknown:
            self.status = unknown[0][0]
        elif derived:
            self.method, self.status = Method.POWER_INTEGRAL, Status.DERIVED
        else:
            self.method, self.status = Method.NVML_COUNTER, Status.MEASURED

    def sample(self) -> list[Sample]:
        return [self._sample(gpu) for gpu in self._gpus]

    def _sample(self, gpu: _Gpu) -> Sample:
        before_s = time.monotonic()
        counter_mj = None
        if gpu.has_counter:
            counter_mj = self._read(gpu, "energy counter", pynvml.nvmlDeviceGetTotalEnergyConsumption)
        after_s = time.monotonic()
        power_mw = self._read(gpu, "power", pynvml.nvmlDeviceGetPowerUsage)
        rates = self._read(gpu, "utilisation", pynvml.nvmlDeviceGetUtilizationRates)
        memory = self._read(gpu, "memory", pynvml.nvmlDeviceGetMemoryInfo)
        clock_mhz = self._read(gpu, "clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM)
        temperature_c = self._read(
            gpu, "temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU
        )
        return Sample(
            # The counter is what the time must fit; a driver call can take milliseconds.
            t_s=(before_s + after_s) / 2,
            device=gpu.device.index,
            # No GPU that answers draws 0 W: some drivers give it for a failed read.
            power_w=power_mw * MILLI if power_mw else None,
            counter_j=None if counter_mj is None else counter_mj * MILLI,
            sm_utilisation=None if rates is None else rates.gpu / 100,
            memory_activity=None if rates is None else rates.memory / 100,
            memory_filled=memory.used / memory.total if memory and memory.total else None,
            clock_sm_mhz=clock_mhz,
            temperature_c=temperature_c,
        )

    def _read(self, gpu: _Gpu, sensor: str, call: Callable[..., Any], *arguments: int) -> Any:
        """Read one sensor; None where it fails, with its first reason in the sampler's log."""
        try:
            return call(gpu.handle, *arguments)
        except pynvml.NVMLError as error:
            if (gpu.device.index, sensor) not in self._reported:
                self._reported.add((gpu.device.index, sensor))
                message = f"GPU {gpu.device.index} of {gpu.device.node}: {sensor}: {error}"
                print(message, file=sys.stderr, flush=True)
            return None

    def close(self) -> None:
        if self._open:
            self._open = False
            pynvml.nvmlShutdown()


_WHOLE = "NVML meters whole GPUs only: run the cell on whole GPUs"


def _refusal(selectors: Sequence[str]) -> tuple[Status, str] | None:
    """Why selectors are refused before the driver is asked."""
    if not selectors:
        return Status.UNAVAILABLE, "no GPUs named; expected indices or UUIDs, as in CUDA_VISIBLE_DEVICES"
    for selector in selectors:
        if selector.startswith("MIG-"):
            return Status.UNSUPPORTED, f"{selector} is a slice of a GPU; {_WHOLE}"
        if not (selector.startswith("GPU-") or (selector.isascii() and selector.isdecimal())):
            return Status.UNAVAILABLE, f"GPU '{selector}': expected an index (0) or a UUID (GPU-…)"
    return None


def _handle(selector: str) -> Any:
    if selector.startswith("GPU-"):
        return pynvml.nvmlDeviceGetHandleByUUID(selector)
    return pynvml.nvmlDeviceGetHandleByIndex(int(selector))


def _is_sliced(handle: Any) -> bool:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # GPUs that know no MIG say `Not Supported`
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _probe(call: Callable[[Any], Any], handle: Any) -> pynvml.NVMLError | None:
    try:
        call(handle)
    except pynvml.NVMLError as error:
        return error
    return None


def _status(error: pynvml.NVMLError) -> Status:
    if error.value == pynvml.NVML_ERROR_NO_PERMISSION:
        return Status.PERMISSION_DENIED
    if error.value in (pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND):
        return Status.UNSUPPORTED
    return Status.UNAVAILABLE
