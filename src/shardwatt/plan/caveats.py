"""What is to be said of a forecast: what nothing is known of, what is not calibrated, what not to believe."""

from __future__ import annotations

from collections.abc import Mapping

from shardwatt.cell import Cell
from shardwatt.gpulimits import unset_cap
from shardwatt.modelwork import PhaseName
from shardwatt.plan.device import Factors, PlanDevice
from shardwatt.plan.power import OperatingPoint, waits_under_cap
from shardwatt.site import Site
from shardwatt.siteplan import Calibration

#: What a calibration gives intervals for, in words.
_CALIBRATED = {"duration_s": "time", "energy_j": "watts and joules"}


def of_calibration(found: Calibration | None, cell: Cell, factors: Factors) -> list[str]:
    """What no calibration stands behind, and in what a cell lies outside of what one was fitted to."""
    if found is None:
        return [f"not calibrated: {factors.source}"]
    notes = []
    for quantity, word in _CALIBRATED.items():
        if quantity in found.spread:
            continue
        is_assumed = quantity == "energy_j" and "power" not in found.fitted
        why = "not calibrated: factor `power` is assumed" if is_assumed else "calibrated without an interval"
        notes.append(f"{word} {why}")
    if found.measured and (outside := found.measured.outside(cell)):
        notes.append(f"outside of what the calibration measured: {', '.join(outside)}")
    return notes


def not_limited(site: Site, cell: Cell) -> list[str]:
    """That nobody at a site sets a cell's cap: such a cell can be planned there, and not be run."""
    if unset_cap(site, cell.gpu, cell.cap) is None:
        return []
    found = f"site '{site.name}' sets no power limits"
    return [f"{found}: cells with a cap are planned, and refused when they are to run"]


def of_power(points: Mapping[PhaseName, OperatingPoint], cell: Cell, device: PlanDevice) -> list[str]:
    """What is to be said of power: that it is not known, that a cap is below what devices draw at rest, or
    that it is predicted to change nothing and may all the same."""
    if any(point.power_w is None for point in points.values()):
        missing = "TDP" if device.tdp_w is None else "power at rest"
        return [f"{cell.gpu}: its {missing} is not known here, so watts and joules are not predicted"]
    if not all(point.holds_cap for point in points.values()):
        return [f"cap {cell.cap}: {device.name} draws more at rest"]
    if waits_under_cap(points.values(), device, cell.cap_w):
        return [
            f"cap {cell.cap}: {device.name} mostly waits for collectives and draws less on average, so that "
            "the cap is taken to change nothing; published caps saved energy all the same: measure one"
        ]
    return []
