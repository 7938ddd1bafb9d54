"""How far predictions are off for cells that took no part in the fit, beside baselines on the same folds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles
from typing import Literal, TypeAlias, get_args

import numpy as np

from shardwatt.analysis.calibrationcells import Observation
from shardwatt.analysis.calibrationfit import Fit, Predictions, fit
from shardwatt.plan.device import Factors

#: What is predicted: the inference window, and the joules of all devices over it.
Quantity = Literal["duration_s", "energy_j"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

#: Who predicts: the calibrated models from the work that was measured; the whole forecast, with the work too
#: only assumed; the same without a calibration; a regression on output tokens alone; the mean.
Approach = Literal["work", "forecast", "assumed", "tokens", "mean"]
APPROACHES: tuple[Approach, ...] = get_args(Approach)
BASELINES: tuple[Approach, ...] = ("tokens", "mean")

#: Duration in s and energy in J, either None where it is not forecast.
Said: TypeAlias = tuple[float | None, float | None]

#: A cell's forecast with given factors, before it runs: nothing that was measured in it may enter.
Forecast: TypeAlias = Callable[[Observation, Factors], Said]

#: Most fits to the cells of an engine on a GPU type that are made to see how well cells are predicted.
MOST_FOLDS = 40

#: 95 % quantiles of Student's t for 1 to 30 degrees of freedom, so that 90 % lie between them and their
#: negatives (NIST/SEMATECH e-Handbook of Statistical Methods, section 1.3.6.7.2), and of the normal.
_T_95 = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812,
    1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734, 1.729, 1.725,
    1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697,
)  # fmt: skip
_Z_95 = 1.6449

#: Fewest independent errors that make an interval: two tell next to nothing of how they scatter.
LEAST_INDEPENDENT = 3


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A cell that was predicted without having been looked at.

    Attributes:
        cell: what was measured.
        said: duration in s and energy in J, by who predicts them.
    """

    cell: Observation
    said: Mapping[Approach, Said]

    def off(self, approach: Approach, quantity: Quantity) -> float | None:
        """Natural logarithm of measured over predicted; None where either is not known."""
        measured = getattr(self.cell, quantity)
        said = self.said[approach][QUANTITIES.index(quantity)]
        return None if measured is None or not said else math.log(measured / said)


@dataclass(frozen=True, slots=True)
class Error:
    """Size of |ln(measured / predicted)| over cells, in per cent; near 0 the same as a relative error."""

    median_percent: float
    p90_percent: float
    cells: int


def leave_one_out(
    observations: Sequence[Observation],
    assumed: Factors,
    predictions: Predictions,
    forecast: Forecast | None = None,
) -> list[LeftOut]:
    """Predict every cell from a fit to the others, made anew each time.

    A cell is left out with all its twins, which would tell its time: its repeats, the same cell in another
    study, the same with a cap that holds nothing back. Of more than
    `MOST_FOLDS` different cells several are left out at a time, every `MOST_FOLDS`th, so that the time that
    it takes does not grow with the square of their number.

    Args:
        observations: cells of one GPU type and engine, of at least two configurations.
        assumed: factors without a calibration.
        predictions: what the models say of work that was measured.
        forecast: what they say of work that is assumed; None: that is not asked.
    """
    found = []
    configurations = list(dict.fromkeys(one.configuration for one in observations))
    for first in range(folds(len(configurations))):
        away = set(configurations[first::MOST_FOLDS])
        training = [one for one in observations if one.configuration not in away]
        held = [one for one in observations if one.configuration in away]
        found += predicted(training, held, assumed, predictions, forecast)
    return found


def folds(configurations: int) -> int:
    """How many fits `leave_one_out` makes for so many different cells."""
    return min(MOST_FOLDS, configurations)


def leave_gpu_out(
    observations: Sequence[Observation],
    assumed: Factors,
    predictions: Predictions,
    forecast: Forecast | None = None,
) -> list[LeftOut]:
    """Predict the cells of every GPU type from a fit to those of the other types; none where there is one.

    Args:
        observations: cells of one engine, of any GPU types of one kind.
        assumed: factors without a calibration.
        predictions: what the models say of work that was measured.
        forecast: what they say of work that is assumed; None: that is not asked.
    """
    types = list(dict.fromkeys(one.cell.gpu for one in observations))
    found: list[LeftOut] = []
    for gpu in types if len(types) > 1 else ():
        training = [one for one in observations if one.cell.gpu != gpu]
        held = [one for one in observations if one.cell.gpu == gpu]
        found += predicted(training, held, assumed, predictions, forecast)
    return found


def predicted(
    training: Sequence[Observation],
    held: Sequence[Observation],
    assumed: Factors,
    predictions: Predictions,
    forecast: Forecast | None = None,
) -> list[LeftOut]:
    """Predict cells from a fit to others, and by the baselines from the same others."""
    fitted = fit(training, assumed, predictions)
    baselines = {name: [_baseline(name, training, quantity) for quantity in QUANTITIES] for name in BASELINES}
    found = []
    for one in held:
        said: dict[Approach, Said] = {
            "work": _by_work(one, fitted, predictions),
            "forecast": forecast(one, fitted.factors) if forecast else (None, None),
            "assumed": forecast(one, assumed) if forecast else (None, None),
        }
        for name, (duration, energy) in baselines.items():
            said[name] = duration(one), energy(one)
        found.append(LeftOut(one, said))
    return found


def _by_work(one: Observation, fitted: Fit, predictions: Predictions) -> Said:
    said = predictions.of(one, fitted.factors)
    return said.duration_s, said.energy_j


def _baseline(
    approach: Approach, training: Sequence[Observation], quantity: Quantity
) -> Callable[[Observation], float | None]:
    """A prediction that needs no model of a machine: of None where no cell trained on knows the quantity.

    Each is the best of its kind for errors of logarithms: the geometric mean, and a straight line through the
    logarithms over those of the output tokens, which are those measured even of the cell to predict.
    """
    known = [(one, value) for one in training if (value := getattr(one, quantity)) is not None]
    if not known:
        return lambda one: None
    ends = np.array([math.log(value) for _, value in known])
    if approach == "mean":
        mean = math.exp(ends.mean())
        return lambda one: mean
    terms = np.array([[1.0, _log_tokens(one)] for one, _ in known])
    level, slope = np.linalg.lstsq(terms, ends, rcond=None)[0].tolist()
    return lambda one: math.exp(level + slope * _log_tokens(one))


def _log_tokens(one: Observation) -> float:
    return math.log(max(1, one.output_tokens))


def error(found: Iterable[LeftOut], approach: Approach, quantity: Quantity) -> Error | None:
    """Median and 90th percentile of an approach's errors; None where no cell has one."""
    sizes = sorted(100 * abs(off) for one in found if (off := one.off(approach, quantity)) is not None)
    if not sizes:
        return None
    ninetieth = sizes[0] if len(sizes) == 1 else quantiles(sizes, n=10, method="inclusive")[-1]
    return Error(median(sizes), ninetieth, len(sizes))


def spread(found: Sequence[LeftOut], approach: Approach, quantity: Quantity) -> tuple[float, float] | None:
    """Factors of measured over predicted between which 90 % of further cells are expected.

    A prediction interval about the prediction itself: exp(-h) to exp(h), with h = t sqrt(m (1 + 1 / n)), m
    the mean square of the logarithms of cells that were left out, n the number of independent ones
    (`_together`), of which each has the weight of one, and t Student's 95 % quantile of n - 1 degrees of
    freedom. It supposes that those logarithms are about normal; `coverage` says how often it was right. None
    for fewer than `LEAST_INDEPENDENT`.
    """
    groups = _independent(found, approach, quantity)
    count = len(groups)
    if count < LEAST_INDEPENDENT:
        return None
    square = fmean(fmean(off * off for off in offs) for offs in groups.values())
    half = t_quantile(count - 1) * math.sqrt(square * (1 + 1 / count))
    return math.exp(-half), math.exp(half)


def independent(found: Iterable[LeftOut], approach: Approach, quantity: Quantity) -> int:
    """How many errors of an approach are no other one's."""
    return len(_independent(found, approach, quantity))


def _independent(
    found: Iterable[LeftOut], approach: Approach, quantity: Quantity
) -> dict[object, list[float]]:
    """Logarithms of measured over predicted, by what those that are one error have in common."""
    groups: dict[object, list[float]] = {}
    for one in found:
        if (off := one.off(approach, quantity)) is not None:
            groups.setdefault(_together(one, approach), []).append(off)
    return groups


def _together(one: LeftOut, approach: Approach) -> object:
    """What cells whose errors are one error have in common.

    With the work that was measured: the configuration. Of a whole forecast: model, data set and batch, too,
    which say which prompts meet in a batch, and so how long its walk is, whatever the shards and the length.
    """
    configuration = one.cell.configuration
    cell = configuration.cell
    return configuration if approach == "work" else (cell.model, cell.dataset, cell.batch)


def coverage(found: Sequence[LeftOut], approach: Approach, quantity: Quantity) -> tuple[int, int]:
    """How many cells lie in the interval that the errors independent of theirs make, and of how many."""
    within, asked = 0, 0
    for one in found:
        own = _together(one, approach)
        others = [other for other in found if _together(other, approach) != own]
        interval, off = spread(others, approach, quantity), one.off(approach, quantity)
        if interval is not None and off is not None:
            asked += 1
            within += interval[0] <= math.exp(off) <= interval[1]
    return within, asked


def t_quantile(degrees: int) -> float:
    """95 % quantile of Student's t.

    Tabled to 30 degrees of freedom; above, the expansion about the normal quantile (Abramowitz and Stegun
    1964, 26.7.5).

    Raises:
        ValueError: there is no degree of freedom.
    """
    if degrees < 1:
        raise ValueError(f"{degrees} degrees of freedom; expected at least 1")
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    z = _Z_95
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
