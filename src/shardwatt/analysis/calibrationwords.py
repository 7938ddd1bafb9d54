"""What a calibration found, in words for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shardwatt.analysis.calibration import Calibrated
from shardwatt.analysis.calibrationerrors import (
    APPROACHES,
    BASELINES,
    QUANTITIES,
    Approach,
    LeftOut,
    Quantity,
    coverage,
    error,
)
from shardwatt.analysis.calibrationfit import NAMES

#: Who predicts.
PREDICTORS: dict[Approach, str] = {
    "work": "models, from the work measured",
    "forecast": "forecast, before the cell runs",
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
        else:
            lines.append(f"  {name:<10} {assumed:>8.3g} {'--':>8}  as assumed: {made.fit.kept[name]}")
    lines += errors_told("cells left out, each with its twins, and predicted from the others", made.left_out)
    if made.from_other_gpus:
        lines += errors_told("the same cells predicted from those of other GPU types", made.from_other_gpus)
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
    """Whether the forecast is better than what needs no model."""
    lines = []
    for quantity in QUANTITIES:
        basis = made.basis(quantity)
        own = error(made.left_out, basis, quantity)
        if own is None:
            lines.append(f"  {_QUANTITIES[quantity]}: not calibrated: no cell's was metered and is predicted")
            continue
        lost_to = [
            PREDICTORS[name]
            for name in BASELINES
            if (other := error(made.left_out, name, quantity)) and other.median_percent <= own.median_percent
        ]
        verdict = f"no better than: {', '.join(lost_to)}" if lost_to else "better than both baselines"
        lines.append(f"  {_QUANTITIES[quantity]}: {verdict}, by the median error of the {_BASES[basis]}")
    return lines


_BASES: dict[Approach, str] = {"work": "models", "forecast": "forecast"}


def _intervals(made: Calibrated) -> list[str]:
    lines = []
    for quantity, (low, high) in made.spread().items():
        within, asked = coverage(made.left_out, made.basis(quantity), quantity)
        lines.append(
            f"  90 % interval of a forecast's {_QUANTITIES[quantity]}: {low:.3f} to {high:.3f} times it; one "
            f"made without the cell holds it in {within} of {asked}"
        )
    return lines
