"""Efficiency factors from finished cells: least squares on the logarithms of time and watts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from shardwatt.analysis.calibrationcells import Observation, Prediction
from shardwatt.plan.device import Factors
from shardwatt.siteplan import FactorName

Vector: TypeAlias = npt.NDArray[np.float64]
Predict: TypeAlias = Callable[[Observation, Factors], Prediction]

NAMES: tuple[FactorName, ...] = get_args(FactorName)

#: A factor stays within its assumption divided and multiplied by this.
FARTHEST = 10.0

#: A factor is told by the cells where the standard error of its logarithm is at most this, 40 % either way,
#: even without the cell that tells most of it.
MOST_ERROR = math.log(1.4)

#: Least scatter of a logarithm that is believed: two runs of one cell differ by about 2 % (an assumption; the
#: repeats of a study show more).
LEAST_SCATTER = 0.02

#: How much worse the fit must become without a factor that is not told for it to be kept all the same, in
#: variances of a cell, the cell that becomes worst left out of account: it is then known to be far from its
#: assumption, and not how far.
WORTH_KEEPING = 4.0

#: A search begins at the best of these multiples of the assumptions: which of compute, memory and launches
#: limits a phase changes with them, so that the nearest minimum need not be the lowest.
STARTS: Mapping[FactorName, Sequence[float]] = {
    "compute": (1 / 3, 1.0, 3.0),
    "bandwidth": (1 / 3, 1.0, 3.0),
    "launch": (1 / 3, 1.0, 3.0, FARTHEST),
}

_MOST_STEPS, _CONVERGED, _DIFFERENCE, _LONGEST_STEP = 40, 1e-4, 1e-3, 1.0

#: How far to either side of the best a residual must change with the logarithm of a factor to tell it: where
#: a phase just becomes launch-bound, it changes to one side alone, and tells no more than a bound.
_BESIDE = 0.1

_LEAST_DAMPING, _MOST_DAMPING = 1e-9, 1e4

#: Steps after which it is plain whether the others make good for a factor that is taken out.
_TRIED_STEPS = 3

#: A step that lowers the cost by less than this share of it is the last.
_WON = 1e-5

#: A residual that changes by less than this with the logarithm of a factor does not depend on it.
_NO_EFFECT = 1e-6


@dataclass(frozen=True, slots=True)
class Fit:
    """Factors, and how well they are known.

    Attributes:
        factors: those that the cells could tell, and the assumptions for the others.
        standard_errors: of the logarithms of those that were fitted.
        kept: why each of the others keeps its assumption.
        at_bound: those that the search would have moved past `FARTHEST`, and stopped there: their
            assumptions fit clearly worse.
        scatter: standard deviation of a cell's logarithms about the fit.
    """

    factors: Factors
    standard_errors: Mapping[FactorName, float]
    kept: Mapping[FactorName, str]
    at_bound: Sequence[FactorName]
    scatter: float


#: Predictions that are kept: some tens of MB.
_MOST_KNOWN = 100_000


@dataclass(slots=True)
class Predictions:
    """What is predicted for cells, worked out once: the folds of a cross-validation ask for the same."""

    predict: Predict
    _known: dict[tuple[int, tuple[float, ...]], Prediction] = field(default_factory=dict)

    def of(self, one: Observation, factors: Factors) -> Prediction:
        """What the models say of a cell's work with these factors; the cell must outlive this object."""
        key = id(one), tuple(getattr(factors, name) for name in NAMES)
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self.predict(one, factors)
        return self._known[key]


def fit(observations: Sequence[Observation], assumed: Factors, predictions: Predictions) -> Fit:
    """Fit as many of the factors as the cells can tell; the others keep what is assumed.

    Least is the sum over cells of: the squared logarithm of predicted over measured time of each phase, by
    the phase's share of the time; and that of predicted over measured watts, where they were metered. Watts
    are those of the measured times, so that an error of time is not made good by one of power. Twins
    (`Observation.configuration`) share the weight of one. Found by damped least squares (Levenberg 1944,
    Marquardt 1963) in the logarithms of the factors.

    Then factors are taken out, the least known first, as long as one's standard error is above
    `MOST_ERROR`, unless its assumption fits much worse; either must be so by more than one cell and its
    twins. What is taken out is as assumed, exactly.

    Args:
        observations: at least one.
        assumed: the factors without a calibration.
        predictions: what the models say.
    """
    search = _Search(observations, assumed, predictions)
    chosen, firm = list(NAMES), set[FactorName]()
    kept: dict[FactorName, str] = {}
    found = search.solve(search.best_start(), chosen)
    while (loose := search.least_known(found, chosen, firm)) is not None:
        others = [name for name in chosen if name != loose]
        without = search.solve(search.as_assumed(found, loose), others, _TRIED_STEPS)
        worse = search.residuals(without) ** 2 - search.residuals(found) ** 2
        if search.spared(worse) > WORTH_KEEPING * search.variance(found, len(chosen)):
            firm.add(loose)
            continue
        has_effect = np.abs(search.slopes(without, [loose])).max() > _NO_EFFECT
        kept[loose] = "the cells cannot tell it" if has_effect else "nothing that was measured depends on it"
        found, chosen = search.solve(without, others), others
    at_bound = [name for name in chosen if search.is_at_bound(found, name)]
    errors = search.standard_errors(found, chosen)
    return Fit(
        replace(search.factors(found), source=f"fitted to {len(observations)} cells", spread={}),
        {name: error for name, (error, _) in errors.items() if name not in at_bound},
        {name: kept[name] for name in NAMES if name in kept},
        at_bound,
        math.sqrt(search.variance(found, len(chosen))),
    )


class _Search:
    """Cells, and the space of the logarithms of factors over what is assumed, in which the best is sought."""

    def __init__(
        self, observations: Sequence[Observation], assumed: Factors, predictions: Predictions
    ) -> None:
        self._observations = observations
        self._assumed = assumed
        self._predictions = predictions
        twins = Counter(one.configuration for one in observations)
        self._weights = [1 / math.sqrt(twins[one.configuration]) for one in observations]
        places = {configuration: place for place, configuration in enumerate(twins)}
        self._owners = [
            places[one.configuration]
            for one in observations
            for _ in range(len(one.phases_s) + (one.power_w is not None))
        ]
        watts = {one.configuration for one in observations if one.power_w is not None}
        # A cell counts once for its time, and once for its watts.
        self._values = len(twins) + len(watts)

    def factors(self, at: Vector) -> Factors:
        """The factors of a place."""
        values = {
            name: getattr(self._assumed, name) * math.exp(shift)
            for name, shift in zip(NAMES, at.tolist(), strict=True)
        }
        return replace(self._assumed, **values)

    def as_assumed(self, at: Vector, name: FactorName) -> Vector:
        """The place with one factor moved back to its assumption."""
        moved = at.copy()
        moved[NAMES.index(name)] = 0.0
        return moved

    def residuals(self, at: Vector) -> Vector:
        """Weighted logarithms of predicted over measured, of all cells."""
        factors = self.factors(at)
        values: list[float] = []
        for one, weight in zip(self._observations, self._weights, strict=True):
            said = self._predictions.of(one, factors)
            values += [weight * value for value in _residuals(one, said)]
        return np.array(values)

    def cost(self, at: Vector) -> float:
        """Sum of the squared residuals."""
        values = self.residuals(at)
        return float(values @ values)

    def variance(self, at: Vector, fitted: int) -> float:
        """Of a cell's logarithms about the fit."""
        return max(LEAST_SCATTER**2, self.cost(at) / max(1, self._values - fitted))

    def spared(self, values: Vector) -> float:
        """Sum of a value of each residual, without the cell, twins included, that has most of it."""
        by_configuration = np.bincount(self._owners, values)
        return float(by_configuration.sum() - by_configuration.max())

    def is_at_bound(self, at: Vector, name: FactorName) -> bool:
        """Whether the search could not move a factor any farther."""
        return bool(abs(at[NAMES.index(name)]) >= math.log(FARTHEST))

    def slopes(self, at: Vector, names: Sequence[FactorName], by: float = _DIFFERENCE) -> Vector:
        """Change of each residual with the logarithm of each factor, by differences; [residuals, names]."""
        here = self.residuals(at)
        found = np.empty((len(here), len(names)))
        for column, name in enumerate(names):
            moved = at.copy()
            moved[NAMES.index(name)] += by
            found[:, column] = (self.residuals(moved) - here) / by
        return found

    def standard_errors(
        self, at: Vector, names: Sequence[FactorName]
    ) -> dict[FactorName, tuple[float, float]]:
        """Of the logarithms of factors fitted together: by all cells, and by all but the one, twins included,
        that tells most of it; infinite where nothing depends on it."""
        above, below = self.slopes(at, names, _BESIDE), self.slopes(at, names, -_BESIDE)
        # The smaller where both are of one sign, otherwise nothing.
        slopes = np.where(above * below > 0, np.sign(above) * np.minimum(abs(above), abs(below)), 0.0)
        scatter = math.sqrt(self.variance(at, len(names)))
        found = {}
        for index, name in enumerate(names):
            others = np.delete(slopes, index, axis=1)
            # What of its effect the others together could not bring about.
            own = slopes[:, index] - others @ np.linalg.pinv(others) @ slopes[:, index]
            told, spared = (math.sqrt(max(0.0, one)) for one in (float(own @ own), self.spared(own**2)))
            found[name] = _over(scatter, told), _over(scatter, spared)
        return found

    def least_known(
        self, at: Vector, names: Sequence[FactorName], firm: set[FactorName]
    ) -> FactorName | None:
        """The factor that the cells tell least of all, of those that they tell too little or that are farther
        than that from their assumption; None where all are told."""
        errors = self.standard_errors(at, names)
        far = {name for name in names if abs(at[NAMES.index(name)]) > MOST_ERROR}
        loose = [name for name in names if name not in firm and (errors[name][1] > MOST_ERROR or name in far)]
        return max(loose, key=lambda name: errors[name][::-1], default=None)

    def best_start(self) -> Vector:
        """The best of the multiples of the assumptions from which a search begins."""
        starts = []
        for multiples in product(*STARTS.values()):
            at = np.zeros(len(NAMES))
            for name, multiple in zip(STARTS, multiples, strict=True):
                at[NAMES.index(name)] = math.log(multiple)
            starts.append(at)
        return min(starts, key=self.cost)

    def solve(self, start: Vector, names: Sequence[FactorName], most_steps: int = _MOST_STEPS) -> Vector:
        """Where the cost is least over some of the factors, the others staying as they are."""
        places = [NAMES.index(name) for name in names]
        farthest = math.log(FARTHEST)
        at, cost, damping = start, self.cost(start), 1e-3
        for _ in range(most_steps if places else 0):
            slopes, values = self.slopes(at, names), self.residuals(at)
            square = slopes.T @ slopes
            while True:
                damped = square + damping * np.diag(np.diag(square)) + _LEAST_DAMPING * np.eye(len(places))
                step = np.clip(-np.linalg.solve(damped, slopes.T @ values), -_LONGEST_STEP, _LONGEST_STEP)
                tried = at.copy()
                tried[places] = np.clip(at[places] + step, -farthest, farthest)
                if (next_cost := self.cost(tried)) < cost:
                    break
                damping *= 10
                if damping > _MOST_DAMPING:
                    return at
            moved = float(np.abs(tried - at).max())
            won = cost - next_cost
            at, cost, damping = tried, next_cost, damping / 10
            if moved < _CONVERGED or won < _WON * cost:
                break
        return at


def _over(scatter: float, slope: float) -> float:
    return scatter / slope if slope > _NO_EFFECT else math.inf


def _residuals(one: Observation, said: Prediction) -> list[float]:
    """Logarithms of predicted over measured: of the time of each phase, by its share, and of the watts."""
    total_s = sum(one.phases_s.values())
    values = [
        math.sqrt(measured_s / total_s) * math.log(said.phases_s[phase] / measured_s)
        for phase, measured_s in one.phases_s.items()
    ]
    if one.power_w is not None:
        assert said.power_w is not None  # watts are observed only where they are predicted
        values.append(math.log(said.power_w / one.power_w))
    return values
