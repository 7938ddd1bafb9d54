"""What a cell's job takes beside its inference window: time before and after it, and memory of the host."""

from __future__ import annotations

from dataclasses import dataclass

from shardwatt.architectures import Architecture
from shardwatt.devices import has_gpus
from shardwatt.jobshape import JobShape
from shardwatt.plan.memory import BYTES, MemoryNeed
from shardwatt.site import GpuType
from shardwatt.study import Constants
from shardwatt.units import GIB

#: Time in s from a job's start until all ranks have met, and from the window's end until the job's: Python
#: and torch read from a file system that others use too, NCCL's connections, writing and checking the results
#: (an assumption, by kind of device).
START_AND_END_S = {"cuda": 90.0, "cpu": 20.0}

#: Bytes of a checkpoint that a node reads in a second: a shared file system over 10 Gb/s (an assumption).
LOAD_B_S = 1e9

#: Host memory in GiB of one rank without its model: Python, torch and what it maps (0.26 GiB was the peak of
#: cells of the demo study on processors); with CUDA also its context, libraries and pinned buffers (an
#: assumption).
RANK_GIB = {"cuda": 4.0, "cpu": 0.4}

#: Host memory in GiB of supervisor, meters and launcher on a node (an assumption).
NODE_GIB = 0.3


@dataclass(frozen=True, slots=True)
class JobTime:
    """Time in s of a job outside of its window, by what takes it."""

    start_and_end_s: float
    load_s: float
    idle_s: float
    warm_up_s: float

    @property
    def total_s(self) -> float:
        return self.start_and_end_s + self.load_s + self.idle_s + self.warm_up_s


def job_time(
    architecture: Architecture,
    gpu_type: GpuType,
    shape: JobShape,
    constants: Constants,
    *,
    precision: str,
    prefill_s: float,
    step_s: float,
) -> JobTime:
    """What a job takes beside its window.

    Start and end, loading of the slices of a node's ranks one beside the other, idle baselines before the
    ranks start and with the model loaded, and the warm-up: a batch's prefill and a few steps after it.
    Waiting for devices to cool is left out: nobody knows how warm they are; see `cool_down_s`.

    Args:
        architecture: the model's shape.
        gpu_type: of the site.
        shape: nodes, and ranks on each.
        constants: the study's.
        precision: of the weights, taken to be saved so.
        prefill_s: time of the prefill of one batch.
        step_s: time of one decode step.
    """
    saved_bytes = shape.ranks_per_node * architecture.parameters_per_shard(shape.ranks) * BYTES[precision]
    warms_up = constants.warmup_tokens > 0
    return JobTime(
        start_and_end_s=START_AND_END_S[gpu_type.kind],
        load_s=saved_bytes / LOAD_B_S,
        idle_s=baselines_s(gpu_type, constants),
        warm_up_s=prefill_s + constants.warmup_tokens * step_s if warms_up else 0.0,
    )


def baselines_s(gpu_type: GpuType, constants: Constants) -> float:
    """Time of the two idle baselines: where energy is estimated there are none; RAPL, where the site does not
    ask for it, is taken not to be readable."""
    is_metered = gpu_type.kind == "cuda" or gpu_type.meter in ("nvml", "rapl")
    if not is_metered or not constants.idle_read_s:
        return 0.0
    return 2 * (constants.idle_settle_s + constants.idle_read_s)


def cool_down_s(gpu_type: GpuType, constants: Constants) -> float:
    """Longest time that a job waits for its devices to cool; how warm processors are no meter tells."""
    has_gate = constants.cool_down_c is not None and has_gpus(gpu_type)
    return constants.cool_down_max_s if has_gate else 0.0


def host_memory_gib(
    architecture: Architecture, gpu_type: GpuType, shape: JobShape, need: MemoryNeed, *, precision: str
) -> float:
    """Memory of a node's host in GiB that a job takes.

    On GPUs weights pass through a pinned buffer, and pages of their files are given back when memory is
    short; all the same a rank's slices are counted once, since containers may count those pages. On
    processors all that the device would hold lies there.

    Args:
        architecture: the model's shape.
        gpu_type: of the site.
        shape: nodes, and ranks on each.
        need: memory of one device; for processors what a device would need.
        precision: of the weights.
    """
    held_gib = need.allocated_gib
    if gpu_type.kind == "cuda":
        held_gib = architecture.parameters_per_shard(shape.ranks) * BYTES[precision] / GIB
    return NODE_GIB + shape.ranks_per_node * (RANK_GIB[gpu_type.kind] + held_gib)
