"""What is to be said of a forecast: what nothing is known of, what is not calibrated, what not to believe."""

from __future__ import annotations

from collections.abc import Mapping

from shardwatt.cell import Cell
from shardwatt.engines import loop_of
from shardwatt.modelwork import PhaseName
from shardwatt.plan.device import Factors, PlanDevice
from shardwatt.plan.power import OperatingPoint, waits_under_cap
from shardwatt.site import Site

#: What a calibration gives intervals for, in words.
_CALIBRATED = {"duration_s": "time", "energy_j": "watts and joules"}


def not_calibrated(factors: Factors) -> list[str]:
    """Which quantities no calibration stands behind: a site's may be of time alone."""
    missing = [word for quantity, word in _CALIBRATED.items() if quantity not in factors.spread]
    if len(missing) == len(_CALIBRATED):
        return [f"not calibrated: {factors.source}"]
    return [f"{word} not calibrated: factor `power` is assumed" for word in missing]


def extrapolated(site: Site, cell: Cell) -> list[str]:
    """In what a cell lies outside of what its calibration was fitted to."""
    found = site.calibration.get(f"{cell.gpu}/{loop_of(cell.engine)}")
    outside = [] if found is None or found.measured is None else found.measured.outside(cell)
    return [f"outside of what the calibration measured: {', '.join(outside)}"] if outside else []


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
