"""Which meters work on this node, how finely and how steadily they read, and whether they agree."""

from __future__ import annotations

import io
import socket
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr
from typing import TypeVar

import numpy as np

from shardwatt.checks.gpumeters import energy_row, gpu_row, gpus_here, look, power_row, warnings_of
from shardwatt.checks.idle import IdleReading, Read, read_idle
from shardwatt.checks.metertable import MeterName, MeterRow, NodeMeters, Sampling, counter_row
from shardwatt.errors import SlurmError
from shardwatt.power.dcgm.program import Dcgmi
from shardwatt.power.dcgm.text import DcgmError, discovered
from shardwatt.power.meters.choose import open_meter, powercap
from shardwatt.power.meters.estimate import CpuEstimate
from shardwatt.power.meters.gpus import Gpu
from shardwatt.power.meters.nvml import NvmlMeter
from shardwatt.power.meters.rapl import Kind, RaplMeter
from shardwatt.power.protocol import Meter
from shardwatt.readings import KNOWN, Method, Status
from shardwatt.run.meters import PERIOD_S
from shardwatt.run.slurmenergy import NoEnergyError, energy_plugin
from shardwatt.site import GpuType, Site
from shardwatt.sitepower import Dcgm
from shardwatt.slurm import available

#: Longest time in s for DCGM to answer.
_DCGM_TIMEOUT_S = 10.0

AnyMeter = TypeVar("AnyMeter", bound=Meter)

#: RAPL's domains by the name of their meter.
_DOMAINS: dict[MeterName, Kind] = {MeterName.PACKAGE: "package", MeterName.DRAM: "dram"}
#: Which meter's row shows whether a cell's counter works.
_READ_BY: dict[Method | None, MeterName] = {
    Method.NVML_COUNTER: MeterName.COUNTER,
    Method.RAPL: MeterName.PACKAGE,
}


def look_at_meters(site: Site | None, gpu: str | None, seconds: float) -> NodeMeters:
    """Try every meter of this node, and read them for some seconds; no setting is changed.

    Args:
        site: for its `tdp_w` and `dcgm`; None: neither.
        gpu: a GPU type of the site, which says how many GPUs to read; None: all that NVML shows. In both
            cases CUDA_VISIBLE_DEVICES is heeded.
        seconds: how long to read, in s.
    """
    kind = site.gpus[gpu] if site is not None and gpu is not None else None
    with ExitStack() as stack:
        # Sensors that fail are told in the report.
        stack.enter_context(redirect_stderr(io.StringIO()))
        gpus, refused, selectors = gpus_here(stack, kind)
        nvml_meter = _opened(stack, NvmlMeter(selectors)) if gpus else None
        rapl = {name: _opened(stack, RaplMeter([domain], powercap())) for name, domain in _DOMAINS.items()}
        estimate = _opened(stack, _estimate(site, kind))
        meters: dict[str, Read] = {name: meter.sample for name, meter in rapl.items()}
        counters = dict(meters)
        meters[MeterName.ESTIMATE] = estimate.sample
        if nvml_meter is not None:
            meters[MeterName.NVML] = nvml_meter.sample
            counters[MeterName.NVML] = lambda: list(map(look, gpus))
        reading = read_idle(meters, counters, seconds, PERIOD_S)
        sources = nvml_meter.power_sources if nvml_meter is not None else []
        rows = [
            *(MeterRow(meter=MeterName.NVML, status=error.status, detail=str(error)) for error in refused),
            *(energy_row(gpu, reading) for gpu in gpus),
            *(power_row(gpu, source, reading) for gpu, source in zip(gpus, sources, strict=True)),
            *(_rapl_row(name, meter, reading) for name, meter in rapl.items()),
            _dcgm_row(site, gpus),
            _slurm_row(),
            _estimate_row(estimate, reading),
        ]
        gpu_rows = [gpu_row(gpu, reading) for gpu in gpus]
        failed = [failure for meter in (*rapl.values(), nvml_meter) if meter for failure in meter.failures]
        cell: Meter | None = _opened(stack, open_meter(kind, selectors)) if kind else nvml_meter
        if cell is None:
            cell = rapl[MeterName.PACKAGE] if rapl[MeterName.PACKAGE].status in KNOWN else estimate
        broken = [row for row in rows if row.meter is _READ_BY.get(cell.method) and not row.measures]
        return NodeMeters(
            node=socket.gethostname(),
            seconds=seconds,
            asked_period_s=PERIOD_S,
            rows=rows,
            gpus=gpu_rows,
            sampling=_sampling(reading),
            processors_busy=reading.samples[MeterName.ESTIMATE, 0].mean("cpu_utilisation"),
            cell_method=None if broken else cell.method,
            cell_status=Status.UNAVAILABLE if broken else cell.status,
            cell_detail=broken[0].detail if broken else cell.detail,
            warnings=[*failed, *warnings_of(gpu_rows)],
        )


def _opened(stack: ExitStack, meter: AnyMeter) -> AnyMeter:
    """A meter that is closed with the stack."""
    stack.callback(meter.close)
    return meter


def _rapl_row(name: MeterName, meter: RaplMeter, reading: IdleReading) -> MeterRow:
    if not meter.devices:
        return MeterRow(meter=name, status=meter.status, detail=meter.detail)
    device = meter.devices[0]
    row = counter_row(name, device, reading.steps[name, device.index])
    return row if row.detail else row.model_copy(update={"detail": device.name})


def _dcgm_row(site: Site | None, gpus: Sequence[Gpu]) -> MeterRow:
    asked = Dcgm() if site is None or site.dcgm is None else site.dcgm
    dcgmi = Dcgmi(asked.command, _DCGM_TIMEOUT_S)
    try:
        # It fails where switches cannot be listed, below a whole table of GPUs: what it printed counts.
        known = dcgmi.understand(discovered, dcgmi.run("discovery", "-l").stdout)
    except DcgmError as error:
        return MeterRow(meter=MeterName.DCGM, status=error.status, detail=error.message)
    missing = [gpu for gpu in gpus if (gpu.device.uuid or "").lower() not in known]
    if missing:
        detail = f"knows {len(known)} GPUs, and not {', '.join(map(str, missing))}"
        return MeterRow(meter=MeterName.DCGM, status=Status.UNAVAILABLE, detail=detail)
    detail = f"its host engine knows {len(known)} GPUs"
    if site is not None and site.dcgm is None:
        detail += "; cells do not ask it: the site file has no `dcgm`"
    return MeterRow(meter=MeterName.DCGM, status=None, detail=detail)


def _slurm_row() -> MeterRow:
    if not available():
        return MeterRow(meter=MeterName.SLURM, status=Status.UNAVAILABLE, detail="no Slurm here")
    try:
        return MeterRow(meter=MeterName.SLURM, status=None, detail=str(energy_plugin()))
    except NoEnergyError as problem:
        return MeterRow(meter=MeterName.SLURM, status=problem.status, detail=str(problem))
    except SlurmError as problem:
        return MeterRow(meter=MeterName.SLURM, status=Status.UNAVAILABLE, detail=str(problem))


def _estimate(site: Site | None, kind: GpuType | None) -> CpuEstimate:
    """With the figure of the GPU type, or of the site's first type of processors."""
    kinds = [kind] if kind is not None else list(site.gpus.values()) if site is not None else []
    known = next((kind for kind in kinds if kind.kind == "cpu" and kind.tdp_w is not None), None)
    return CpuEstimate(known.tdp_w, known.tdp_source) if known is not None else CpuEstimate(None, None)


def _estimate_row(estimate: CpuEstimate, reading: IdleReading) -> MeterRow:
    spread = reading.samples[MeterName.ESTIMATE, 0].spread
    return MeterRow(
        meter=MeterName.ESTIMATE,
        device=estimate.devices[0],
        status=estimate.status,
        detail=estimate.detail,
        power_w=spread.mean_w,
        power_sd_w=spread.sd_w,
    )


def _sampling(reading: IdleReading) -> Sampling:
    """Of all devices together, as each was read once a period."""
    distances_s = np.concatenate([samples.distances_s for samples in reading.samples.values()])
    return Sampling(
        samples=max(len(samples.samples) for samples in reading.samples.values()),
        period_s=float(np.median(distances_s)),
        jitter_s=float(np.quantile(np.abs(distances_s - PERIOD_S), 0.95)),
        max_gap_s=float(np.max(distances_s)),
    )
