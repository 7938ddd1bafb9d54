"""What is to be said of a forecast: what is not known or assumed, not calibrated, or not to be believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from shardwatt.cell import Cell
from shardwatt.gpulimits import lowest_limit_w, unset_cap
from shardwatt.modelwork import PhaseName
from shardwatt.plan.device import OR_CALIBRATE, Factors, PlanDevice
from shardwatt.plan.jobtime import LOAD_B_S, START_AND_END_S
from shardwatt.plan.power import OperatingPoint, waits_under_cap
from shardwatt.plan.warned import Warned
from shardwatt.site import Site
from shardwatt.siteplan import Calibration, FactorName

#: What a calibration gives intervals for, in words.
_CALIBRATED = {"duration_s": "time", "energy_j": "watts and joules"}


def of_device(device: PlanDevice, found: Calibration | None, cell: Cell, factors: Factors) -> list[str]:
    """What is assumed: of the device and its links, of what is reached of them, and around the window.

    Links that nobody says are warned of, until a calibration tells what collectives reach of those assumed.
    """
    return [
        *(note if found is None else _after(found, note) for note in device.assumptions),
        *_of_calibration(found, cell, factors),
        f"of the job around the window, {START_AND_END_S[device.kind]:g} s of start and end, loading at "
        f"{LOAD_B_S / 1e9:g} GB/s a node and the host's memory are assumed: no calibration corrects them, "
        "and no interval holds them",
    ]


def _after(found: Calibration, note: str) -> str:
    """An assumption about a device or its links, after a calibration."""
    said = note.removesuffix(OR_CALIBRATE)
    if "network" in found.fitted or not isinstance(note, Warned):
        return said
    return Warned(f"{said}; the calibration could not tell it")


def of_model(why: str) -> tuple[str, ...]:
    """Why nothing is known of a model."""
    return (Warned(why),)


def _of_calibration(found: Calibration | None, cell: Cell, factors: Factors) -> list[str]:
    """What no calibration stands behind, and in what a cell lies outside of what one was fitted to."""
    if found is None:
        return [f"not calibrated: {factors.source}"]
    told = (*found.fitted, *found.at_bound)
    assumed = [name for name in get_args(FactorName) if name not in told]
    notes = []
    if not told:
        intervals = ", and the intervals alone come from cells" if found.spread else ""
        notes.append(
            f"not calibrated: the {found.cells} cells of the calibration told no factor, so that all are as "
            f"assumed{intervals}"
        )
    for quantity, word in _CALIBRATED.items() if told else ():
        if quantity in found.spread:
            continue
        is_assumed = quantity == "energy_j" and "power" in assumed
        why = "not calibrated: factor `power` is assumed" if is_assumed else "calibrated without an interval"
        notes.append(f"{word} {why}")
    if told and (of_time := [f"`{name}`" for name in assumed if name != "power"]):
        notes.append(f"the calibration could not tell {', '.join(of_time)}: as assumed")
    for name in found.at_bound:
        notes.append(
            f"factor `{name}` of the calibration is at the bound of its search, {getattr(found, name):g}, "
            "and not told: is what the site says of its devices and links right?"
        )
    if found.measured and (outside := found.measured.outside(cell)):
        notes.append(f"outside of what the calibration measured: {', '.join(outside)}")
    return notes


def of_prompts(cell: Cell, longest_prompt: int | None, positions: int, context: int) -> list[str]:
    """That prompts of a data set leave no room for a token: a plan cuts them, a run refuses them.

    Args:
        cell: the cell.
        longest_prompt: of its data set, in tokens; None where that is not known.
        positions: that prompt and response may take together.
        context: of its model.
    """
    if longest_prompt is None or longest_prompt < positions:
        return []
    limit, mend = f"the context of {cell.model}", "use a model with a longer one, or another data set"
    if positions < context:
        limit, mend = "the study's cache_tokens", "raise cache_tokens"
    return [
        Warned(
            f"{cell.dataset}: prompts have up to {longest_prompt} tokens, and prompt and response together "
            f"{positions} positions, {limit}: cells that draw a prompt which leaves no room for a token are "
            f"planned with it cut, and fail when they are run (prompt_too_long); {mend}"
        )
    ]


def of_site(site: Site, cell: Cell, host_memory_gib: float | None) -> list[str]:
    """What a site's words leave open or too small for a cell: its cap, and memory of its nodes.

    Args:
        site: where it is to run.
        cell: the cell.
        host_memory_gib: of each node; None where it is not known.
    """
    notes: list[str] = []
    if unset_cap(site, cell.gpu, cell.cap) is not None:
        found = f"site '{site.name}' sets no power limits"
        notes.append(f"{found}: cells with a cap are planned, and refused when they are to run")
    elif cell.cap != "none" and lowest_limit_w(site.gpus[cell.gpu]) is None:
        notes.append(
            f"cap {cell.cap}: the lowest limit that {cell.gpu} takes is not known, and is taken to be lower; "
            f"give gpus.{cell.gpu}.power_limits_w"
        )
    most_gib = site.words(cell.gpu).most_memory_gib if site.launcher == "slurm" else None
    if most_gib is not None and host_memory_gib is not None and host_memory_gib > most_gib:
        notes.append(
            Warned(
                f"{cell.gpu}: jobs ask for {most_gib:g} GiB of a node's memory at most, and some cells need "
                "more by the plan (host_memory_gib); raise memory_per_node_max_gib, or use other nodes"
            )
        )
    return notes


def of_power(points: Mapping[PhaseName, OperatingPoint], cell: Cell, device: PlanDevice) -> list[str]:
    """What is to be said of power: that it is not known, that a cap is below what devices draw at rest, or
    that it is predicted to change nothing and may all the same."""
    if any(point.power_w is None for point in points.values()):
        missing = "TDP" if device.tdp_w is None else "power at rest"
        return [f"{cell.gpu}: its {missing} is not known here, so watts and joules are not predicted"]
    if not all(point.holds_cap for point in points.values()):
        limit = f"TDP {device.tdp_w:g} W" if cell.cap_w is None else f"cap {cell.cap}"
        return [f"{limit}: {device.name} draws more at rest"]
    if waits_under_cap(points.values(), device, cell.cap_w):
        return [
            f"cap {cell.cap}: {device.name} mostly waits for collectives and draws less on average, so that "
            "the cap is taken to change nothing; published caps saved energy all the same: measure one"
        ]
    return []
