"""What a calibration found, in words for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shardwatt.analysis.calibration import Calibrated
from shardwatt.analysis.calibrationerrors import (
    APPROACHES,
    BASELINES,
    LEAST_INDEPENDENT,
    QUANTITIES,
    Approach,
    LeftOut,
    Quantity,
    coverage,
    error,
    independent,
)
from shardwatt.analysis.calibrationfit import FARTHEST, NAMES
from shardwatt.plan.digits import times

#: Who predicts.
PREDICTORS: dict[Approach, str] = {
    "work": "models, from the work measured",
    "forecast": "forecast, before the cell runs",
    "assumed": "forecast, not calibrated",
    "tokens": "regression on output tokens alone",
    "mean": "mean",
}
_QUANTITIES: dict[Quantity, str] = {"duration_s": "time", "energy_j": "energy"}


def told(made: Calibrated) -> list[str]:
    """Lines that say what came out for an engine on a GPU type."""
    lines = [
        f"{made.key}: {len(made.cells)} cells, {made.configurations} of them different",
        f"  {'factor':<10} {'assumed':>8} {'fitted':>8}  standard error",
    ]
    for name in NAMES:
        assumed, fitted = getattr(made.assumed, name), getattr(made.fit.factors, name)
        if name in made.fit.standard_errors:
            percent = 100 * math.expm1(made.fit.standard_errors[name])
            lines.append(f"  {name:<10} {assumed:>8.3g} {fitted:>8.3g}  {percent:.1f} %")
        elif name in made.fit.at_bound:
            lines.append(f"  {name:<10} {assumed:>8.3g} {fitted:>8.3g}  {_AT_BOUND}")
        else:
            lines.append(f"  {name:<10} {assumed:>8.3g} {'--':>8}  as assumed: {made.fit.kept[name]}")
    title = f"cells left out in {made.folds} folds, each with its twins, and predicted from the others"
    lines += errors_told(title, made.left_out)
    if made.from_other_gpus:
        title = "the same cells predicted from those of other GPU types, as if their factors held here"
        lines += errors_told(title, made.from_other_gpus)
    return [*lines, *_verdicts(made), *_intervals(made)]


def errors_told(title: str, found: Sequence[LeftOut]) -> list[str]:
    """Errors of all predictors on the same folds, a line each."""
    known = [one for one in QUANTITIES if error(found, "mean", one) is not None]
    heads = "".join(f"{_QUANTITIES[one] + ': median':>16} {'90th':>7}" for one in known)
    lines = [
        f"  {title}:",
        f"  {'|ln(measured / predicted)|, %':<34}{heads}",
    ]
    for approach in APPROACHES:
        errors = [error(found, approach, one) for one in known]
        if any(errors):
            values = "".join(
                f"{'--':>16} {'--':>7}"
                if one is None
                else f"{one.median_percent:>16.1f} {one.p90_percent:>7.1f}"
                for one in errors
            )
            lines.append(f"  {PREDICTORS[approach]:<34}{values}")
    return lines


def _verdicts(made: Calibrated) -> list[str]:
    """Whether the forecast is better than one without a calibration, and than what needs no model."""
    lines = []
    for quantity in QUANTITIES:
        basis = made.basis(quantity)
        own = error(made.left_out, basis, quantity)
        if own is None:
            lines.append(f"  {_QUANTITIES[quantity]}: not calibrated: no cell's was metered and is predicted")
            continue
        lost_to = [PREDICTORS[name] for name in ("assumed", *BASELINES) if _loses(made, quantity, name)]
        verdict = f"no better than: {', '.join(lost_to)}" if lost_to else "better than both baselines"
        lines.append(f"  {_QUANTITIES[quantity]}: {verdict}, by the median error of the {_BASES[basis]}")
    return lines


def _loses(made: Calibrated, quantity: Quantity, other: Approach) -> bool:
    """Whether the forecast is no better than another predictor, by the median error."""
    own = error(made.left_out, made.basis(quantity), quantity)
    others = error(made.left_out, other, quantity)
    return own is not None and others is not None and others.median_percent <= own.median_percent


def afterwords(made: Calibrated) -> str | None:
    """What is to be said of an entry when it is written; None where it is better than the assumptions."""
    if not made.fit.standard_errors and not made.fit.at_bound:
        return f"{made.key}: these cells told no factor; forecasts are those of the assumptions, as before"
    lost = [_QUANTITIES[one] for one in QUANTITIES if _loses(made, one, "assumed")]
    if not lost:
        return None
    return (
        f"{made.key}: predicts the {' and the '.join(lost)} of cells that it has not seen no better than the "
        "assumptions do, and is written all the same; remove the entry to plan with the assumptions again"
    )


#: Of a factor that the search could not move any farther.
_AT_BOUND = (
    f"not told: {FARTHEST:g} times off, the most that is sought, and used so; "
    "does the site give wrong figures?"
)

_BASES: dict[Approach, str] = {"work": "models", "forecast": "forecast"}

#: What cells have in common whose errors count as one.
_APART: dict[Approach, str] = {
    "work": "configurations",
    "forecast": "combinations of model, data set and batch",
}


def _intervals(made: Calibrated) -> list[str]:
    lines = []
    spread = made.spread()
    for quantity in QUANTITIES:
        if error(made.left_out, made.basis(quantity), quantity) is None:
            continue
        words = f"  90 % interval of a forecast's {_QUANTITIES[quantity]}"
        if quantity not in spread:
            basis = made.basis(quantity)
            own = independent(made.left_out, basis, quantity)
            lines.append(
                f"{words}: none; it takes {LEAST_INDEPENDENT} {_APART[basis]}, and these cells are of {own}"
            )
            continue
        low, high = spread[quantity]
        within, asked = coverage(made.left_out, made.basis(quantity), quantity)
        held = f"; one from the errors of cells independent of it holds a cell in {within} of {asked}"
        lines.append(f"{words}: {times(low)} to {times(high)} times it{held if asked else ''}")
    return lines
