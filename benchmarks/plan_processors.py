"""Forecasts of processors' cells that no factor was fitted to: `python benchmarks/plan_processors.py`.

Takes the finished cells of studies on this machine, of one engine: fits the plan's factors to a random half
of them and predicts the time of the other half, over and over; then leaves out all cells of a model, a data
set, a number of shards, … and predicts those from the others. Beside it, on the same halves: a regression on
output tokens alone, the mean, and the plan without a calibration. Nothing is written.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from measuring import ROOT, machine, positive, spread, table
from shardwatt.analysis.calibration import FEWEST, forecast_by_plan
from shardwatt.analysis.calibrationcells import Observation, observe, predict
from shardwatt.analysis.calibrationerrors import Approach, LeftOut, error, predicted
from shardwatt.analysis.calibrationfit import Predictions, fit
from shardwatt.analysis.calibrationwords import PREDICTORS
from shardwatt.analysis.survey import survey
from shardwatt.matrix import expand
from shardwatt.plan.calibrated import factors_of
from shardwatt.site import load_site
from shardwatt.study import load_study

SEED = 2023
AXES = ("model", "dataset", "shards", "batch", "length")
COLUMNS: tuple[Approach, ...] = ("work", "forecast", "tokens", "mean", "assumed")

#: Predicts some cells from others.
Split = Callable[[Sequence[Observation], Sequence[Observation]], list[LeftOut]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument(
        "studies", nargs="*", default=["demo", "first-light"], help="default: demo first-light"
    )
    options.add_argument(
        "--base", type=Path, default=Path.cwd(), help="folder of results/ (default: this one)"
    )
    options.add_argument("--site", type=Path, default=ROOT / "profiles" / "local" / "site.yaml")
    options.add_argument("--engine", default="reference", help="(default: reference)")
    options.add_argument("--splits", type=positive, default=20, help="random halves (default: 20)")
    given = options.parse_args()

    site = load_site([given.site]).model_copy(update={"calibration": {}})
    studies = {name: load_study(ROOT, name) for name in given.studies}
    cells: list[Observation] = []
    for name, study in studies.items():
        known = expand(ROOT, name, study, site, with_models=False)
        seen, skipped = observe(ROOT, site, survey(given.base, name, known, study.constants))
        cells += [
            one for one in seen if site.gpus[one.cell.gpu].kind == "cpu" and one.cell.engine == given.engine
        ]
        print(*(f"{name}: {words}" for words in skipped), sep="\n", file=sys.stderr)
    configurations = sorted({one.configuration for one in cells})
    if len(configurations) < 2 * FEWEST:
        sys.exit(
            f"{given.base}: {len(configurations)} finished cells of {', '.join(studies)}; expected at least "
            f"{2 * FEWEST}: run `snakemake --profile profiles/local results/STUDY/report.html`"
        )
    assumed = factors_of(site, cells[0].cell.gpu, given.engine)
    forecast = forecast_by_plan(ROOT, site, studies)
    predictions = Predictions(predict)

    def from_others(training: Sequence[Observation], held: Sequence[Observation]) -> list[LeftOut]:
        return predicted(training, held, assumed, predictions, forecast)

    print(f"{len(cells)} cells, {len(configurations)} different, of {', '.join(studies)}; {given.engine}.")
    print(machine("numpy"), end="\n\n")
    whole = fit(cells, assumed, predictions)
    values = {name: getattr(whole.factors, name) for name in ("compute", "bandwidth", "network", "launch")}
    told = [
        f"{name} {value:.3g}{'' if name in whole.standard_errors else ' (assumed)'}"
        for name, value in values.items()
    ]
    print(f"Fitted to all: {', '.join(told)}.", end="\n\n")
    print("Errors of the window's time, 100 |ln(measured / predicted)|: median; 90th percentile.", end="\n\n")
    rows = [_halves(cells, configurations, given.splits, from_others)]
    for words, training, held in _without_a_value(cells):
        found = from_others(training, held)
        rows.append([words, str(len(held)), *(_percents([found], name) for name in COLUMNS)])
    print(table(["left out", "cells", *(PREDICTORS[name] for name in COLUMNS)], rows))


def _halves(
    cells: Sequence[Observation], configurations: Sequence[object], splits: int, split: Split
) -> list[str]:
    """A line for random halves: medians over the splits, with their range."""
    draw = random.Random(SEED)
    made: list[list[LeftOut]] = []
    for _ in range(splits):
        half = set(draw.sample(list(configurations), len(configurations) // 2))
        training = [one for one in cells if one.configuration in half]
        made.append(split(training, [one for one in cells if one.configuration not in half]))
    errors = [_percents(made, name) for name in COLUMNS]
    return [f"a random half, {splits} times", str(len(made[0])), *errors]


def _without_a_value(
    cells: Sequence[Observation],
) -> Iterator[tuple[str, list[Observation], list[Observation]]]:
    """All cells of one value of an axis, to be predicted from those of the others."""
    for axis in AXES:
        for value in dict.fromkeys(getattr(one.cell, axis) for one in cells):
            held = [one for one in cells if getattr(one.cell, axis) == value]
            away = {one.configuration for one in held}
            training = [one for one in cells if one.configuration not in away]
            if len({one.configuration for one in training}) >= FEWEST:
                yield f"{axis} {value}", training, held


def _percents(splits: Sequence[Sequence[LeftOut]], approach: Approach) -> str:
    """Median and 90th percentile of the errors in each split, over the splits."""
    errors = [made for found in splits if (made := error(found, approach, "duration_s"))]
    if not errors:
        return "--"
    nineties = statistics.median(one.p90_percent for one in errors)
    return f"{spread([one.median_percent for one in errors], 1)}; {nineties:.1f}"


if __name__ == "__main__":
    main()
