"""Which meter a GPU type has, which reads the host beside it, and how many devices are metered on a node."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from shardwatt.power.protocol import Meter
from shardwatt.readings import KNOWN
from shardwatt.site import GpuType

#: Environment variable that names another folder of power domains than the kernel's.
POWERCAP_VARIABLE = "SHARDWATT_POWERCAP"


def open_meter(gpu_type: GpuType, selectors: Sequence[str]) -> Meter:
    """Open the meter of a GPU type on this node: the site's choice, or the best that there is.

    NVML for GPUs; for processors RAPL's packages where they can be read, otherwise an estimate. It never
    raises for what a node lacks: a meter that cannot read says so in `status` and `detail`.

    Args:
        gpu_type: the site's GPU type.
        selectors: the job's own GPUs on this node, NVML indices or UUIDs; unused for processors.
    """
    # Each meter's libraries are loaded only where it is wanted.
    if _is_nvml(gpu_type):
        from shardwatt.power.meters.nvml import NvmlMeter

        return NvmlMeter(selectors, gpu_type.tdp_w, gpu_type.tdp_source)
    from shardwatt.power.meters.estimate import CpuEstimate
    from shardwatt.power.meters.rapl import RaplMeter

    if gpu_type.meter == "estimate":
        return CpuEstimate(gpu_type.tdp_w, gpu_type.tdp_source)
    rapl = RaplMeter(("package",), powercap())
    if gpu_type.meter == "rapl" or rapl.status in KNOWN:
        return rapl
    rapl.close()
    return CpuEstimate(gpu_type.tdp_w, gpu_type.tdp_source, why=rapl.detail)


def open_host_meter() -> Meter:
    """Open what reads the processors and memory of this node beside whatever the headline is."""
    from shardwatt.power.meters.host import HostMeter

    return HostMeter(powercap())


def powercap() -> Path:
    """The folder of power domains: /sys/class/powercap, or the environment's SHARDWATT_POWERCAP."""
    from shardwatt.power.meters.rapl import POWERCAP

    return Path(os.environ.get(POWERCAP_VARIABLE) or POWERCAP)


def metered_devices(gpu_type: GpuType, ranks_per_node: int) -> int:
    """Devices that the meter of one node reads: a GPU a rank, or the processors together as one."""
    return ranks_per_node if _is_nvml(gpu_type) else 1


def _is_nvml(gpu_type: GpuType) -> bool:
    return gpu_type.meter == "nvml" or (gpu_type.meter is None and gpu_type.kind == "cuda")
