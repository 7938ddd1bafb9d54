"""Which GPUs of a node are the job's own."""

from __future__ import annotations

from collections.abc import Mapping

from shardwatt.errors import CellFailure, Reason
from shardwatt.site import GpuType

VISIBLE = "CUDA_VISIBLE_DEVICES"


def own_devices(gpu_type: GpuType, wanted: int, environment: Mapping[str, str]) -> list[str]:
    """The job's own devices on this node, as CUDA_VISIBLE_DEVICES names them; empty for processors that
    are metered as such.

    Indices count in PCI bus order, as NVML's and Slurm's do. Slurm sets the variable where it hands out
    GPUs; without it all GPUs of the node are the job's.

    Args:
        gpu_type: the site's GPU type.
        wanted: ranks on this node, one device each.
        environment: of a process of the job on this node.

    Raises:
        CellFailure: CONFIGURATION, fewer are visible than wanted.
    """
    if not has_gpus(gpu_type):
        return []
    visible = environment.get(VISIBLE)
    found = [str(index) for index in range(gpu_type.per_node)]
    if visible is not None:
        found = names(visible)
    if len(found) < wanted:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"CUDA_VISIBLE_DEVICES names {len(found)} GPUs on this node ({visible!r}), and the cell has "
            f"{wanted} ranks here, one GPU each; ask the scheduler for as many, or unset it",
        )
    return found[:wanted]


def has_gpus(gpu_type: GpuType) -> bool:
    """Whether cells of a type have GPUs: to compute on, or only metered (`kind: cpu` with `meter: nvml`)."""
    return gpu_type.kind == "cuda" or gpu_type.meter == "nvml"


def names(visible: str) -> list[str]:
    """The devices that a value of CUDA_VISIBLE_DEVICES names."""
    return [name.strip() for name in visible.split(",") if name.strip()]
