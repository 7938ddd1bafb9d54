"""NVIDIA GPUs through NVML: the driver's energy counter first, its power sensor where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pynvml

from shardwatt.power.meters.gpus import Gpu, GpuError, find_gpus, nvml, status_of
from shardwatt.power.meters.tenants import Tenants, tenants
from shardwatt.power.protocol import Sample
from shardwatt.readings import Device, DriverLimits, Method, PowerSource, Status
from shardwatt.units import MILLI

#: NVML's field values for power in mW: over the driver's own averaging time, and the sensor's latest.
_AVERAGE, _INSTANT = pynvml.NVML_FI_DEV_POWER_AVERAGE, pynvml.NVML_FI_DEV_POWER_INSTANT

#: Member of a field value's union by NVML's valueType.
_MEMBERS = {
    pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    pynvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
}

#: Better first: what a meter's joules are worth is what those of its worst GPU are.
_ORDER = (Status.MEASURED, Status.DERIVED, Status.ESTIMATED)
_METHODS = {
    Status.MEASURED: Method.NVML_COUNTER,
    Status.DERIVED: Method.POWER_INTEGRAL,
    Status.ESTIMATED: Method.ESTIMATE,
}


@dataclass(frozen=True, slots=True)
class _Sensors:
    """What a GPU told when it was opened.

    Attributes:
        fields: field values for power that answered.
        status: what its joules are worth.
        detail: why they are no better.
    """

    gpu: Gpu
    has_counter: bool
    fields: list[int]
    source: PowerSource | None
    status: Status
    detail: str | None


class NvmlMeter:
    """The job's own GPUs of this node.

    Joules come from the energy counter. A GPU without one, or that does not let it be read, is derived
    from its power; one that tells neither, but how busy it is, is estimated:
    P = `tdp_w` x share of time in which a kernel ran. A GPU on which somebody else computes is refused; one
    on which somebody begins later is told by `strangers`.

    Args:
        selectors: the GPUs, as `find_gpus` takes them.
        tdp_w: thermal design power of one GPU in W; without it nothing is estimated.
        tdp_source: where that figure comes from.

    What cannot be opened leaves a meter without devices, whose `status` and `detail` say why.
    """

    def __init__(
        self, selectors: Sequence[str], tdp_w: float | None = None, tdp_source: str | None = None
    ) -> None:
        self.method: Method | None = None
        self.status = Status.UNAVAILABLE
        self.detail: str | None = None
        self.devices: list[Device] = []
        self.power_sources: list[PowerSource | None] = []
        self.limits: list[DriverLimits | None] = []
        self.failures: list[str] = []
        self._tdp_w, self._tdp_source = tdp_w, tdp_source
        self._sensors: list[_Sensors] = []
        self._reported: set[tuple[int, str]] = set()
        self._library = ExitStack()
        try:
            self._library.enter_context(nvml())
        except GpuError as error:
            self.status, self.detail = error.status, str(error)
            return
        gpus, refused = find_gpus(selectors)
        self._sensors = [self._probe(*each) for each in zip(gpus, tenants(gpus), strict=True)]
        self.devices = [gpu.device for gpu in gpus]
        self.power_sources = [sensors.source for sensors in self._sensors]
        self.limits = [_limits(gpu) for gpu in gpus]
        statuses = [error.status for error in refused] + [sensors.status for sensors in self._sensors]
        details = [str(error) for error in refused] + [sensors.detail for sensors in self._sensors]
        self.detail = "; ".join(filter(None, details)) or None
        self.status = next((status for status in statuses if status not in _ORDER), None) or max(
            statuses, key=_ORDER.index
        )
        self.method = _METHODS.get(self.status)
        # What fails now has never worked, and is in the log alone.
        self.sample()
        self.failures.clear()

    def _probe(self, gpu: Gpu, others: Tenants) -> _Sensors:
        counter_error = _error(pynvml.nvmlDeviceGetTotalEnergyConsumption, gpu.handle)
        fields = _told_fields(gpu.handle)
        power_error = None if _INSTANT in fields else _error(pynvml.nvmlDeviceGetPowerUsage, gpu.handle)
        source: PowerSource | None = None
        if power_error is None:
            source = PowerSource.INSTANT if _INSTANT in fields else PowerSource.USAGE
        reason = f"{gpu}: energy counter: {counter_error}"
        detail: str | None = None
        if counter_error is None:
            status = Status.MEASURED
        elif power_error is None:
            status = Status.DERIVED
            detail = f"{reason}; sampled power ({source}) is integrated instead"
        elif _error(pynvml.nvmlDeviceGetUtilizationRates, gpu.handle) is not None:
            status = status_of(power_error)
            detail = f"{reason}; power: {power_error}"
        elif self._tdp_w is None:
            status = status_of(power_error)
            detail = f"{reason}; power: {power_error}; no estimate: the site gives no tdp_w for this GPU type"
        else:
            status, source = Status.ESTIMATED, PowerSource.ESTIMATE
            detail = (
                f"{reason}; power: {power_error}; an estimate, not a measurement: tdp_w {self._tdp_w:g} "
                f"(source: {self._tdp_source or 'not given'}) x share of time in which a kernel ran"
            )
        if others.strangers:
            status = Status.UNSUPPORTED
            detail = (
                f"{gpu}: processes that are not of this job compute on it, and NVML meters whole GPUs "
                f"only: {', '.join(map(str, others.strangers))}; end them, or ask for nodes or GPUs that are "
                "the job's alone"
            )
        elif others.hidden:
            hidden = (
                f"{gpu}: processes that cannot be seen from here compute on it "
                f"({', '.join(map(str, others.hidden))}): joules are the job's alone only if those are"
            )
            detail = f"{detail}; {hidden}" if detail else hidden
        return _Sensors(gpu, counter_error is None, fields, source, status, detail)

    def strangers(self) -> list[str]:
        """Who computes on its GPUs now that is not of this job; takes a second where somebody does."""
        gpus = [sensors.gpu for sensors in self._sensors]
        found = zip(gpus, tenants(gpus), strict=True)
        return [
            f"{gpu}: {', '.join(map(str, others.strangers))}" for gpu, others in found if others.strangers
        ]

    def sample(self) -> list[Sample]:
        return [self._sample(sensors) for sensors in self._sensors]

    def _sample(self, sensors: _Sensors) -> Sample:
        gpu = sensors.gpu
        before_s = time.monotonic()
        counter_mj = None
        if sensors.has_counter:
            counter_mj = self._read(gpu, "energy counter", pynvml.nvmlDeviceGetTotalEnergyConsumption)
        after_s = time.monotonic()
        powers_mw = self._field_values(gpu, sensors.fields) if sensors.fields else {}
        power_mw = powers_mw.get(_INSTANT)
        if sensors.source is PowerSource.USAGE:
            power_mw = self._read(gpu, "power", pynvml.nvmlDeviceGetPowerUsage)
        rates = self._read(gpu, "utilisation", pynvml.nvmlDeviceGetUtilizationRates)
        memory = self._read(gpu, "memory", pynvml.nvmlDeviceGetMemoryInfo)
        # No GPU that answers draws 0 W: some drivers give it for a failed read.
        power_w = power_mw * MILLI if power_mw else None
        if sensors.source is PowerSource.ESTIMATE and self._tdp_w is not None and rates is not None:
            power_w = self._tdp_w * rates.gpu / 100
        average_mw = powers_mw.get(_AVERAGE)
        return Sample(
            # The counter is what the time must fit; a driver call can take milliseconds.
            t_s=(before_s + after_s) / 2,
            device=gpu.device.index,
            power_w=power_w,
            power_average_w=average_mw * MILLI if average_mw else None,
            counter_j=None if counter_mj is None else counter_mj * MILLI,
            sm_utilisation=None if rates is None else rates.gpu / 100,
            memory_activity=None if rates is None else rates.memory / 100,
            memory_filled=memory.used / memory.total if memory and memory.total else None,
            clock_sm_mhz=self._read(gpu, "clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_SM),
            clock_memory_mhz=self._read(
                gpu, "memory clock", pynvml.nvmlDeviceGetClockInfo, pynvml.NVML_CLOCK_MEM
            ),
            temperature_c=self._read(
                gpu, "temperature", pynvml.nvmlDeviceGetTemperature, pynvml.NVML_TEMPERATURE_GPU
            ),
            throttle_reasons=self._read(gpu, "throttle reasons", _throttle_reasons),
        )

    def _field_values(self, gpu: Gpu, fields: list[int]) -> dict[int, float]:
        """Field values that could be read, by id; each has a return code of its own."""
        known = {}
        for value in self._read(gpu, "field values", pynvml.nvmlDeviceGetFieldValues, fields) or ():
            if value.nvmlReturn == pynvml.NVML_SUCCESS:
                known[value.fieldId] = _decoded(value)
            else:
                sensor = "instant power" if value.fieldId == _INSTANT else "average power"
                self._report(gpu, sensor, pynvml.NVMLError(value.nvmlReturn))
        return known

    def _read(self, gpu: Gpu, sensor: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Read one sensor; None where it fails."""
        try:
            return call(gpu.handle, *arguments)
        except pynvml.NVMLError as error:
            self._report(gpu, sensor, error)
            return None

    def _report(self, gpu: Gpu, sensor: str, error: pynvml.NVMLError) -> None:
        """Keep a sensor's first reason, in the sampler's log too."""
        if (gpu.device.index, sensor) not in self._reported:
            self._reported.add((gpu.device.index, sensor))
            self.failures.append(f"{gpu}: {sensor}: {error}")
            print(self.failures[-1], file=sys.stderr, flush=True)

    def close(self) -> None:
        self._library.close()


def _told_fields(handle: Any) -> list[int]:
    """Field values for power that a GPU tells; none on drivers that do not know them."""
    try:
        values = pynvml.nvmlDeviceGetFieldValues(handle, [_INSTANT, _AVERAGE])
    except pynvml.NVMLError:
        return []
    return [
        value.fieldId for value in values if value.nvmlReturn == pynvml.NVML_SUCCESS and _decoded(value) > 0
    ]


def _decoded(value: Any) -> float:
    return float(getattr(value.value, _MEMBERS.get(value.valueType, "uiVal")))


def _throttle_reasons(handle: Any) -> int:
    """Why clocks are held back, as bits; under the name that drivers before 535 know where need be."""
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError as error:
        if error.value != pynvml.NVML_ERROR_FUNCTION_NOT_FOUND:
            raise
    return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _limits(gpu: Gpu) -> DriverLimits:
    """The power limits of a GPU; null for what the driver does not tell."""

    def told_w(call: Callable[[Any], int]) -> float | None:
        try:
            return call(gpu.handle) * MILLI
        except pynvml.NVMLError:
            return None

    return DriverLimits(
        enforced_w=told_w(pynvml.nvmlDeviceGetEnforcedPowerLimit),
        default_w=told_w(pynvml.nvmlDeviceGetPowerManagementDefaultLimit),
    )


def _error(call: Callable[[Any], Any], handle: Any) -> pynvml.NVMLError | None:
    try:
        call(handle)
    except pynvml.NVMLError as error:
        return error
    return None
