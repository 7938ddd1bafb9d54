"""Which meter a GPU type has, and how many devices it reads on a node."""

from __future__ import annotations

from collections.abc import Sequence

from shardwatt.power.protocol import Meter
from shardwatt.site import GpuType


def open_meter(gpu_type: GpuType, selectors: Sequence[str]) -> Meter:
    """Open the best meter there is for a GPU type on this node.

    It never raises for what a node lacks: a meter that cannot read says so in `status` and `detail`.

    Args:
        gpu_type: the site's GPU type.
        selectors: the job's own GPUs on this node, NVML indices or UUIDs; unused for processors.
    """
    # The driver's library is loaded only where it is wanted.
    if gpu_type.kind == "cuda":
        from shardwatt.power.nvml import NvmlMeter

        return NvmlMeter(selectors)
    from shardwatt.power.estimate import CpuEstimate

    return CpuEstimate(gpu_type.tdp_w, gpu_type.tdp_source)


def metered_devices(gpu_type: GpuType, ranks_per_node: int) -> int:
    """Devices that the meter of one node reads: a GPU a rank, or the processors together as one."""
    return ranks_per_node if gpu_type.kind == "cuda" else 1
