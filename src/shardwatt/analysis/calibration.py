"""Calibration: efficiency factors of GPU types and engines from finished cells, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import yaml

from shardwatt.analysis.calibrationcells import Observation, predict
from shardwatt.analysis.calibrationerrors import (
    QUANTITIES,
    Approach,
    Forecast,
    LeftOut,
    Quantity,
    Said,
    error,
    folds,
    leave_gpu_out,
    leave_one_out,
    spread,
)
from shardwatt.analysis.calibrationfit import NAMES, Fit, Predictions, fit
from shardwatt.errors import ShardwattError, SiteError
from shardwatt.locks import alone
from shardwatt.plan.calibrated import factors_of, figures_of
from shardwatt.plan.device import Factors
from shardwatt.plan.forecast import Forecaster
from shardwatt.recordfiles import write_whole
from shardwatt.site import Site
from shardwatt.siteplan import Calibration, CalibrationFile, Measured, watts
from shardwatt.study import Study
from shardwatt.yamlfile import parse_model, read_mapping

#: Fewest cells of an engine on a GPU type that are no twins: each is predicted from the others, and three of
#: those are the least that a straight line, the regression it is compared with, does not simply pass through.
FEWEST = 4

#: Significant digits of what is stored.
_DIGITS = 5

_HEAD = """\
# Written by `shardwatt calibrate`, and read with the site file beside it: efficiency factors of the plan's
# models, fitted to finished cells. Remove an entry to plan with the assumptions again.
"""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """One engine on one GPU type.

    Attributes:
        gpu: the GPU type.
        engine: the engine.
        assumed: its factors without a calibration.
        figures: what they are relative to, by name.
        cells: what was fitted to.
        fit: the factors.
        left_out: each of the cells, predicted from the others.
        from_other_gpus: each of the cells, predicted from those of other GPU types; empty without any.
    """

    gpu: str
    engine: str
    assumed: Factors
    figures: Mapping[str, float]
    cells: Sequence[Observation]
    fit: Fit
    left_out: Sequence[LeftOut]
    from_other_gpus: Sequence[LeftOut]

    @property
    def key(self) -> str:
        """As it is called in the site's calibration."""
        return f"{self.gpu}/{self.engine}"

    @property
    def configurations(self) -> int:
        """Cells that are no twins of each other."""
        return _configurations(self.cells)

    @property
    def folds(self) -> int:
        """Fits that were made to see how well cells are predicted that they have not seen."""
        return folds(self.configurations)

    def basis(self, quantity: Quantity) -> Approach:
        """Whose errors make the intervals of forecasts: the whole forecast's, where there are any."""
        return "work" if error(self.left_out, "forecast", quantity) is None else "forecast"

    def spread(self) -> dict[Quantity, tuple[float, float]]:
        """The 90 % intervals that forecasts carry, of measured over predicted."""
        found = {one: spread(self.left_out, self.basis(one), one) for one in QUANTITIES}
        return {quantity: interval for quantity, interval in found.items() if interval is not None}


def calibrate(cells: Sequence[Observation], site: Site, forecast: Forecast | None) -> list[Calibrated]:
    """Fit the factors of every engine on every GPU type that has cells enough.

    Args:
        cells: what finished cells did.
        site: the place; a calibration that it has already plays no part.
        forecast: a cell's forecast with given factors; None: it is not compared.

    Raises:
        ShardwattError: no engine on any GPU type has `FEWEST` configurations.
    """
    groups = grouped(cells)
    enough = [key for key, own in groups.items() if _configurations(own) >= FEWEST]
    if not enough:
        raise ShardwattError(
            f"{'; '.join(too_few(cells)) or 'no cell has run to its end'}; a calibration needs {FEWEST} "
            "cells of an engine on a GPU type that differ in more than their repeat, their study or a cap "
            "that holds nothing back: run more batch sizes, lengths or shard counts"
        )
    plain = site.model_copy(update={"calibration": {}})
    predictions = Predictions(predict)
    elsewhere = _across_gpus(groups, plain, predictions, forecast)
    found = []
    for gpu, engine in enough:
        own, assumed = groups[gpu, engine], factors_of(plain, gpu, engine)
        found.append(
            Calibrated(
                gpu,
                engine,
                assumed,
                figures_of(plain, gpu, {one.cell.precision for one in own}),
                own,
                fit(own, assumed, predictions),
                leave_one_out(own, assumed, predictions, forecast),
                [one for one in elsewhere.get(engine, ()) if one.cell.cell.gpu == gpu],
            )
        )
    return found


def grouped(cells: Sequence[Observation]) -> dict[tuple[str, str], list[Observation]]:
    """Cells by GPU type and engine."""
    groups: dict[tuple[str, str], list[Observation]] = {}
    for one in cells:
        groups.setdefault((one.cell.gpu, one.cell.engine), []).append(one)
    return groups


def too_few(cells: Sequence[Observation]) -> list[str]:
    """GPU types and engines that have too few cells for a calibration, in words."""
    counts = {f"{gpu}/{engine}": _configurations(own) for (gpu, engine), own in grouped(cells).items()}
    return [f"{key}: {count} of {FEWEST} cells" for key, count in counts.items() if count < FEWEST]


def _configurations(cells: Sequence[Observation]) -> int:
    return len({one.configuration for one in cells})


def _across_gpus(
    groups: Mapping[tuple[str, str], Sequence[Observation]],
    site: Site,
    predictions: Predictions,
    forecast: Forecast | None,
) -> dict[str, list[LeftOut]]:
    """Cells predicted from those of other GPU types of their kind, by engine."""
    pools: dict[tuple[str, str], list[Observation]] = {}
    for (gpu, engine), own in groups.items():
        if _configurations(own) >= FEWEST:
            pools.setdefault((engine, site.gpus[gpu].kind), []).extend(own)
    found: dict[str, list[LeftOut]] = {}
    for (engine, _), pool in pools.items():
        assumed = factors_of(site, pool[0].cell.gpu, engine)
        found.setdefault(engine, []).extend(leave_gpu_out(pool, assumed, predictions, forecast))
    return found


def forecast_by_plan(root: Path, site: Site, studies: Mapping[str, Study]) -> Forecast:
    """The plan's own forecast of a cell, as a user would get it with given factors.

    Args:
        root: the project's root.
        site: the place.
        studies: those that the cells are of, by name.
    """
    made: dict[tuple[object, ...], Forecaster] = {}

    def forecast(one: Observation, factors: Factors) -> Said:
        key = f"{one.cell.gpu}/{one.cell.engine}"
        values = {name: getattr(factors, name) for name in NAMES}
        place = one.study, key, *values.values()
        if place not in made:
            own = Calibration(**values, fitted=[], cells=1, source="a fold", fitted_on=date.min)
            there = site.model_copy(update={"calibration": {key: own}})
            made[place] = Forecaster(root, one.study, studies[one.study], there)
        said = made[place].cell(one.cell)
        return said.duration_s, said.energy_j

    return forecast


def entry(made: Calibrated, source: str, today: date) -> Calibration:
    """What is stored of a calibration.

    Args:
        made: the calibration.
        source: which studies the cells are of.
        today: when it was made.
    """
    errors: dict[str, float] = {}
    for approach in ("work", "forecast"):
        for quantity in QUANTITIES:
            found = error(made.left_out, approach, quantity)
            if found is not None:
                errors[f"{approach}_{quantity}_median_percent"] = _rounded(found.median_percent)
                errors[f"{approach}_{quantity}_p90_percent"] = _rounded(found.p90_percent)
    return Calibration(
        **{name: _rounded(getattr(made.fit.factors, name)) for name in NAMES},
        fitted=[name for name in NAMES if name in made.fit.standard_errors],
        at_bound=list(made.fit.at_bound),
        spread={name: (_rounded(low), _rounded(high)) for name, (low, high) in made.spread().items()},
        cells=len(made.cells),
        measured=_measured(made.cells),
        figures=dict(made.figures),
        source=source,
        fitted_on=today,
        errors=errors,
    )


def _measured(observations: Sequence[Observation]) -> Measured:
    """What cells there are, by the axes that forecasts may leave; a cap that holds nothing back is none."""
    cells = [one.cell for one in observations]
    uncapped = {"none" for one in observations if one.holding_cap_w is None}

    def ends(counts: Sequence[int]) -> tuple[int, int]:
        return min(counts), max(counts)

    return Measured(
        models=sorted({one.model for one in cells}),
        precisions=sorted({one.precision for one in cells}),
        datasets=sorted({one.dataset for one in cells}),
        caps=sorted(uncapped | {one.cap for one in cells}, key=watts),
        shards=ends([one.shards for one in cells]),
        batch=ends([one.batch for one in cells]),
        length=ends([one.length for one in cells]),
    )


def store(entries: Mapping[str, Calibration], path: Path) -> None:
    """Write calibrations into a file, whole or not at all; entries of other keys that it has stay.

    Who writes it at that time is waited for: of two, neither loses the other's entries.

    Raises:
        SiteError: there is a file, and it has a mistake.
        OSError: the folder cannot be written or the disk is full; the file is as it was before.
    """
    with alone(path.with_name(f".{path.name}.lock")):
        known: dict[str, Calibration] = {}
        if path.is_file():
            stored = parse_model(CalibrationFile, read_mapping(path, SiteError), path, SiteError)
            known = dict(stored.calibration)
        content = CalibrationFile(calibration=known | dict(entries)).model_dump(mode="json")
        write_whole(_HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110), path)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
