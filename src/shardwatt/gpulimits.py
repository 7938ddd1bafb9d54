"""What GPU types of a site cannot do: precisions that they only emulate, power caps that nobody can set."""

from __future__ import annotations

from shardwatt.datasheets import DATA_SHEETS
from shardwatt.devices import has_gpus
from shardwatt.engines import BF16_CAPABILITY
from shardwatt.plan.device import idle_w
from shardwatt.site import GpuType, Site

#: No board takes a power limit above this many times its thermal design power: an assumption with room to
#: spare, for those of data centres take none above it, and an RTX 4090 of 450 W takes 600 W.
_MOST_OVER_TDP = 1.5


def precision_problem(site: Site, gpu: str, precision: str) -> str | None:
    """Why cells must not run in a precision: torch would emulate bf16 on old GPUs without a word."""
    gpu_type = site.gpus[gpu]
    capability = gpu_type.compute_capability
    if precision != "bf16" or gpu_type.kind != "cuda" or capability is None:
        return None
    major, minor = map(int, capability.split("."))
    if (major, minor) >= BF16_CAPABILITY:
        return None
    return (
        f"precision: bf16 on {gpu}: these GPUs have compute capability {capability} at site '{site.name}', "
        "and bfloat16 arithmetic needs 8.0; use fp16 or fp32"
    )


def unset_cap(site: Site, gpu: str, cap: str) -> str | None:
    """Why a power cap would be a cell's name alone, which would be false: nobody sets it.

    Args:
        site: the place.
        gpu: one of its GPU types.
        cap: in W, or `none`.
    """
    if cap == "none" or site.power_limits is not None:
        return None
    return (
        f"cap: {cap} on {gpu}: site '{site.name}' sets no power limits; use `none`, or say in the site's key "
        "power_limits who sets them (docs/power-caps.md)"
    )


def lowest_limit_w(gpu_type: GpuType) -> float | None:
    """Lowest power limit in W that a GPU takes, as the site or its data sheet says; None: not known."""
    if gpu_type.power_limits_w is not None:
        return gpu_type.power_limits_w[0]
    if gpu_type.data_sheet is not None:
        return DATA_SHEETS[gpu_type.data_sheet].power_min_w
    return None if gpu_type.peak is None else gpu_type.peak.power_min_w


def cap_problem(site: Site, gpu: str, cap: str) -> str | None:
    """Why no GPU of a type can take a power cap.

    Args:
        site: the place.
        gpu: one of its GPU types.
        cap: in W, or `none`.
    """
    if cap == "none":
        return None
    gpu_type = site.gpus[gpu]
    where = f"cap: {cap} on {gpu}"
    if not has_gpus(gpu_type):
        return (
            f"{where}: site '{site.name}' has processors there, which have no power limit to set; use "
            "`none`, or a GPU type of kind `cuda`"
        )
    if gpu_type.power_limits_w is not None:
        least_w, most_w = gpu_type.power_limits_w
        if least_w <= int(cap) <= most_w:
            return None
        return (
            f"{where}: one GPU takes {least_w:g} to {most_w:g} W at site '{site.name}' (its key "
            f"gpus.{gpu}.power_limits_w); use a cap within that"
        )
    sheet = DATA_SHEETS[gpu_type.data_sheet] if gpu_type.data_sheet else None
    tdp_w = gpu_type.tdp_w or (sheet.tdp_w if sheet else None)
    rest_w = idle_w(gpu, gpu_type, sheet, tdp_w, [])
    if gpu_type.kind == "cpu" or tdp_w is None or rest_w is None:
        return None
    lowest_w = lowest_limit_w(gpu_type)
    is_enough = int(cap) > rest_w if lowest_w is None else int(cap) >= lowest_w
    if is_enough and int(cap) <= _MOST_OVER_TDP * tdp_w:
        return None
    name = f"a {sheet.name}" if sheet else "this GPU"
    least = f"draws some {rest_w:g} W at rest" if lowest_w is None else f"takes no limit below {lowest_w:g} W"
    return (
        f"{where}: {name} {least} and is made for {tdp_w:g} W; use a cap between, or say in the site's key "
        f"gpus.{gpu}.power_limits_w what these GPUs take"
    )
