"""What a forecast says of a cell and of its phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shardwatt.cell import Cell
from shardwatt.modelwork import PhaseName
from shardwatt.plan.memory import MemoryNeed


@dataclass(frozen=True, slots=True)
class PhaseForecast:
    """One phase of a cell, all batches together.

    Attributes:
        duration_s: how long it takes.
        parts_s: what of it takes how long, by name (`compute`, `memory`, `copies`, `kernels`, `sampling`,
            `latency`, `transfer`, `launch`); they overlap where the model says so and need not add up.
        power_w: of all devices together; None where it is not predicted.
        clock: core clock over that without a cap.
        busy: share of it in which a kernel runs on a device, collectives included; None where that is not
            known.
        busy_memory: share of it in which a device's memory is read or written; None likewise.
    """

    duration_s: float
    parts_s: Mapping[str, float]
    power_w: float | None
    clock: float
    busy: float | None = None
    busy_memory: float | None = None


@dataclass(frozen=True, slots=True)
class CellForecast:
    """What a cell will take; every figure but the counts of nodes and GPUs is an estimate, None is unknown.

    Attributes:
        cell: the cell.
        need: memory of one device; None for processors or where the model's shape is not known.
        memory_gib: what one device has.
        fits: whether it fits; None where `need` is None.
        nodes: of the job.
        gpus: one a shard; 0 for processors.
        gpus_held: those that the job keeps from others, of exclusive nodes all.
        batches: of the window; this and the next three are None where the model's shape is not known.
        prompt_tokens: of all prompts.
        output_tokens: of all responses, before their end of sequence.
        generated_tokens: rows x steps that the engine's loop computes.
        phases: prefill, walk, decode, those that the engine has; empty where time is not predicted.
        duration_s: the inference window.
        allocation_duration_s: how long the job keeps its nodes: start, both idle baselines, loading, warm-up,
            window and end; waits for cool devices are not foreseen.
        longest_job_s: the same if no response ends by itself and devices cool slowly: what a time limit has
            to hold.
        power_w: of all devices, mean over the window.
        energy_j: of all devices, over the window.
        allocation_energy_j: of all devices that the job holds, used or not, over `allocation_duration_s`.
        duration_range_s: 90 % interval; None without a calibration.
        energy_range_j: likewise.
        is_calibrated: whether finished cells told any of the factors that it is made with.
        gpu_hours: of `gpus_held` over the job.
        node_hours: of `nodes` over the job.
        cost: in the site's currency; None without a price.
        carbon_kg: kgCO2e with the site's PUE; None without its factors.
        host_memory_gib: of each node.
        notes: assumptions, and why something is unknown; a sentence each.
    """

    cell: Cell
    need: MemoryNeed | None
    memory_gib: float
    fits: bool | None
    nodes: int
    gpus: int
    gpus_held: int
    batches: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    generated_tokens: int | None = None
    phases: Mapping[PhaseName, PhaseForecast] = field(default_factory=dict)
    duration_s: float | None = None
    allocation_duration_s: float | None = None
    longest_job_s: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    allocation_energy_j: float | None = None
    duration_range_s: tuple[float, float] | None = None
    energy_range_j: tuple[float, float] | None = None
    is_calibrated: bool = False
    gpu_hours: float | None = None
    node_hours: float | None = None
    cost: float | None = None
    carbon_kg: float | None = None
    host_memory_gib: float | None = None
    notes: tuple[str, ...] = ()
