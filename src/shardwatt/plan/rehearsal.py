"""A simulated cell's own job: what it takes itself, and the identity of the forecast that it plays."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from shardwatt.engines import ENGINES
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.jobtime import NODE_GIB, RANK_GIB, START_AND_END_S, baselines_s
from shardwatt.site import GpuType
from shardwatt.study import Study

_S_PER_HOUR = 3600.0


def asked_of(forecast: CellForecast, gpu_type: GpuType, study: Study) -> CellForecast:
    """What a cell's job is cut to: its forecast, or of a simulated cell what it takes itself."""
    is_simulated = ENGINES[forecast.cell.engine].simulates is not None
    return own_job(forecast, gpu_type, study) if is_simulated else forecast


def own_job(forecast: CellForecast, gpu_type: GpuType, study: Study) -> CellForecast:
    """What the job of a simulated cell takes, of nodes, time and memory; nothing of what it stands for.

    Start and end, idle baselines and the window, in real time; of the host, ranks that load neither torch nor
    a model.

    Args:
        forecast: of the cell that it stands for.
        gpu_type: of the site.
        study: whose window and baselines it has.
    """
    job_s = START_AND_END_S[gpu_type.kind] + baselines_s(gpu_type, study) + study.simulated_window_s
    ranks_per_node = forecast.cell.shards / forecast.nodes
    bare = CellForecast(
        cell=forecast.cell,
        need=forecast.need,
        memory_gib=forecast.memory_gib,
        fits=forecast.fits,
        nodes=forecast.nodes,
        gpus=forecast.gpus,
        gpus_held=forecast.gpus_held,
    )
    return replace(
        bare,
        allocation_duration_s=job_s,
        longest_job_s=job_s,
        gpu_hours=forecast.gpus_held * job_s / _S_PER_HOUR,
        node_hours=forecast.nodes * job_s / _S_PER_HOUR,
        host_memory_gib=NODE_GIB + ranks_per_node * RANK_GIB["cpu"],
    )


def played(forecast: CellForecast) -> str:
    """In place of a model's fingerprint, what a simulated cell plays: `simulated-` and first 16 hex digits of
    a SHA-256 over its forecast. A changed plan or site makes another one, and its record outdated.

    Six digits of each number: those behind them depend on the machine's mathematics.
    """
    needed_gib = None if forecast.need is None else forecast.need.total_gib
    parts = [
        f"{forecast.fits} {forecast.nodes} {forecast.output_tokens} {forecast.batches}",
        f"{_rounded(needed_gib)} {_rounded(forecast.memory_gib)}",
    ]
    for name, phase in sorted(forecast.phases.items()):
        numbers = (phase.duration_s, phase.power_w, phase.busy, phase.busy_memory)
        parts.append(" ".join([name, *map(_rounded, numbers)]))
    return f"simulated-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"


def _rounded(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.6g}"
