"""What GPU types of a site cannot do: precisions that they only emulate, power caps that nobody can set."""

from __future__ import annotations

from shardwatt.datasheets import DATA_SHEETS
from shardwatt.devices import has_gpus
from shardwatt.engines import BF16_CAPABILITY
from shardwatt.site import Site

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


def cap_problem(site: Site, gpu: str, cap: str) -> str | None:
    """Why a power cap cannot be set: a cell that only carries its name would be false.

    Args:
        site: the place.
        gpu: one of its GPU types.
        cap: in W, or `none`.
    """
    if cap == "none":
        return None
    gpu_type = site.gpus[gpu]
    where = f"cap: {cap} on {gpu}"
    if site.power_limits is None:
        return (
            f"{where}: site '{site.name}' sets no power limits; use `none`, or say in the site's key "
            "power_limits who sets them (docs/power-caps.md)"
        )
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
    if gpu_type.data_sheet is None:
        return None
    sheet = DATA_SHEETS[gpu_type.data_sheet]
    if sheet.idle_w < int(cap) <= _MOST_OVER_TDP * sheet.tdp_w:
        return None
    return (
        f"{where}: a {sheet.name} draws some {sheet.idle_w:g} W at rest and is made for {sheet.tdp_w:g} W; "
        f"use a cap between, and say in the site's key gpus.{gpu}.power_limits_w what these GPUs take"
    )
