"""Guards what a calibration is said to be worth: folds that leave out, baselines, intervals by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from shardwatt.analysis import calibrationerrors
from shardwatt.analysis.calibrationcells import Observation, predict
from shardwatt.analysis.calibrationerrors import (
    LeftOut,
    coverage,
    error,
    leave_gpu_out,
    leave_one_out,
    predicted,
    spread,
    t_quantile,
)
from shardwatt.analysis.calibrationfit import Predictions, fit
from shardwatt.plan.device import DEFAULT_FACTORS, Factors
from synthetic_calibration import CONSTANTS, TRUE, cells, observed

ASSUMED = DEFAULT_FACTORS["cuda"]

#: Constants that change what a step of `fast` takes, by other values than the usual ones.
OTHER_STEPS = {"temperature": 0.0, "cuda_graphs": "never", "cache_tokens": 512}


@cache
def without_noise(gpu: str = "v100") -> tuple[Observation, ...]:
    """Each cell as the models say."""
    return tuple(map(observed, cells(gpu)))


@cache
def scattered(by: float, seed: int = 0) -> tuple[Observation, ...]:
    """Each cell on V100s with noise."""
    return tuple(observed(cell, scatter=by, seed=seed) for cell in cells())


@cache
def slow() -> Observation:
    """The first cell three times as slow as the models say."""
    return observed(cells()[0], slower=3.0)


#: Of observations that stay: what one test asks of the models, another need not ask again.
PREDICTIONS = Predictions(predict)


@cache
def each_left_out(*observations: Observation) -> Sequence[LeftOut]:
    """Cells that stay, each left out by itself."""
    return leave_one_out(observations, ASSUMED, PREDICTIONS)


#: Of `without_noise`, enough to tell every factor.
FEW = 6


def left_out(off: float, index: int, repeat: int = 1) -> LeftOut:
    """A cell whose time was exp(off) times what the models said."""
    one = observed(replace(cells()[0], length=index + 1, repeat=repeat))
    said = (one.duration_s / math.exp(off), None)
    return LeftOut(one, {"work": said, "forecast": (None, None), "tokens": said, "mean": said})


def test_a_cell_is_predicted_by_a_fit_that_has_not_seen_it() -> None:
    """However slow a cell was: its own prediction is that of the others, to the last digit."""
    mixed = [slow(), *scattered(0.03)[1:]]
    found = leave_one_out(mixed, ASSUMED, PREDICTIONS)
    assert [one.cell for one in found] == mixed
    without = fit(mixed[1:], ASSUMED, Predictions(predict))
    assert found[0].said["work"][0] == predict(slow(), without.factors).duration_s
    assert found[0].off("work", "duration_s") == pytest.approx(math.log(3), abs=0.15)


def test_every_other_fold_is_made_anew() -> None:
    observations = scattered(0.05)
    found = each_left_out(*observations)
    for index in (3, 8):
        others = observations[:index] + observations[index + 1 :]
        factors = fit(others, ASSUMED, Predictions(predict)).factors
        assert found[index].said["work"] == (
            predict(observations[index], factors).duration_s,
            predict(observations[index], factors).energy_j,
        )


def test_many_cells_leave_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of those that are left out together may be in the fit that predicts them."""
    monkeypatch.setattr(calibrationerrors, "MOST_FOLDS", 5)
    observations = scattered(0.05)
    found = {one.cell.cell: one for one in leave_one_out(observations, ASSUMED, PREDICTIONS)}
    assert len(found) == 12
    others = [one for index, one in enumerate(observations) if index % 5 != 1]
    factors = fit(others, ASSUMED, Predictions(predict)).factors
    for one in observations[1::5]:
        assert found[one.cell].said["work"][0] == predict(one, factors).duration_s


def test_repeats_leave_with_their_cell() -> None:
    """A repeat that stays would tell the time of the one that is left out."""
    others = without_noise()[1:FEW]
    again = replace(slow(), cell=replace(slow().cell, repeat=2))
    found = leave_one_out([slow(), again, *others], ASSUMED, Predictions(predict))
    alone = each_left_out(slow(), *others)
    assert found[0].said["work"] == found[1].said["work"] == alone[0].said["work"]
    assert found[0].said["mean"] == alone[0].said["mean"]
    assert found[0].said["tokens"] == alone[0].said["tokens"]


def test_a_calibrated_forecast_stands_beside_the_one_without() -> None:
    """Factors that were carried over from other GPUs may be worse than none: both errors are there."""

    def forecast(one: Observation, factors: Factors) -> tuple[float | None, float | None]:
        return predict(one, factors).duration_s, None

    both = [*without_noise("v100"), *without_noise("a100")]
    for one in leave_gpu_out(both, ASSUMED, PREDICTIONS, forecast):
        assert one.said["assumed"] == (predict(one.cell, ASSUMED).duration_s, None)
        assert one.said["forecast"] != one.said["assumed"]


@pytest.mark.parametrize(
    "changes",
    [{"seed": 7}, {"prompts": 4096}, {"top_p": 0.5}, {"cuda_graphs": "never"}],
    ids=lambda changes: next(iter(changes)),
)
def test_the_same_cell_in_another_study_leaves_with_it(changes: dict[str, Any]) -> None:
    """Kept in the training it would tell the time, and the errors be those of repeats."""
    others = without_noise()[1:FEW]
    twin = replace(slow(), study="another", constants=CONSTANTS.model_copy(update=changes))
    found = leave_one_out([slow(), twin, *others], ASSUMED, Predictions(predict))
    alone = each_left_out(slow(), *others)
    assert found[0].said["work"] == found[1].said["work"] == alone[0].said["work"]
    assert found[0].said["mean"] == alone[0].said["mean"]


def test_a_cap_that_holds_nothing_back_makes_no_other_cell() -> None:
    """On eight shards a V100 mostly waits, far below 200 W; alone it works, and each cap is another clock."""
    waiting, busy = cells()[5], cells()[1]
    free = [observed(replace(waiting, cap=cap)) for cap in ("none", "200", "225", "250")]
    assert {one.holding_cap_w for one in free} == {None}
    assert len({one.configuration for one in free}) == 1
    held = [observed(replace(busy, cap=cap)) for cap in ("none", "250", "200", "150")]
    assert [one.holding_cap_w for one in held] == [None, None, 200, 150]
    assert len({one.configuration for one in held}) == 3


def test_what_changes_a_step_makes_another_cell() -> None:
    one = observed(cells(engine="fast")[0])

    def configuration(**constants: object) -> object:
        return replace(one, constants=CONSTANTS.model_copy(update=constants)).configuration

    usual = configuration()
    assert configuration(temperature=0.5) == usual
    others = [configuration(**{key: value}) for key, value in OTHER_STEPS.items()]
    assert len({usual, *others}) == 1 + len(OTHER_STEPS)
    few = replace(one, cell=replace(one.cell, batch=256)), replace(one, cell=replace(one.cell, batch=512))
    assert few[0].configuration == few[1].configuration, "128 prompts fill neither"


def test_a_whole_gpu_type_is_left_out() -> None:
    """What A100s did must not matter for their own prediction, only for that of the V100s."""
    v100s, a100s = without_noise("v100"), without_noise("a100")
    odd = [observed(cell, slower=5.0) for cell in cells("a100")]
    usual = {one.cell.cell: one for one in leave_gpu_out([*v100s, *a100s], ASSUMED, PREDICTIONS)}
    changed = {one.cell.cell: one for one in leave_gpu_out([*v100s, *odd], ASSUMED, Predictions(predict))}
    assert len(usual) == 24
    for cell in cells("a100"):
        assert changed[cell].said == usual[cell].said
    for cell in cells("v100"):
        assert changed[cell].said["mean"] != usual[cell].said["mean"]


def test_a_gpu_that_differs_is_seen_by_leaving_its_type_out_alone() -> None:
    """A100s half as fast as V100s' factors promise: off by up to ln 2, and fine by themselves."""
    slow = replace(TRUE, bandwidth=TRUE.bandwidth / 2, compute=TRUE.compute / 2, launch=2 * TRUE.launch)
    both = [*without_noise("v100"), *(observed(cell, slow) for cell in cells("a100"))]
    across = [
        one for one in leave_gpu_out(both, ASSUMED, Predictions(predict)) if one.cell.cell.gpu == "a100"
    ]
    within = leave_one_out(both[12:], ASSUMED, Predictions(predict))
    far, near = error(across, "work", "duration_s"), error(within, "work", "duration_s")
    assert far is not None
    assert near is not None
    assert far.median_percent == pytest.approx(100 * math.log(2), rel=0.1)
    assert near.p90_percent < 5


def test_one_gpu_type_has_no_other_to_learn_from() -> None:
    assert leave_gpu_out(without_noise(), ASSUMED, PREDICTIONS) == []


def test_the_models_beat_both_baselines_where_they_are_right() -> None:
    found = each_left_out(*scattered(0.03))
    for quantity in ("duration_s", "energy_j"):
        own = error(found, "work", quantity)
        assert own is not None
        assert own.median_percent < 5
        for baseline in ("tokens", "mean"):
            other = error(found, baseline, quantity)
            assert other is not None
            assert other.median_percent > 5 * own.median_percent


def test_the_mean_is_geometric_and_the_regression_a_power_law() -> None:
    """Time as the square of output tokens: the line through the logarithms is exact, the mean is not."""
    shapes = [replace(cells()[0], length=length) for length in (16, 32, 64, 128, 256)]
    law = [
        replace(one, duration_s=0.01 * one.output_tokens**2, energy_j=3.0 * one.output_tokens)
        for one in map(observed, shapes)
    ]
    (held,) = predicted(law[:-1], law[-1:], ASSUMED, Predictions(predict))
    assert held.said["tokens"] == pytest.approx((law[-1].duration_s, law[-1].energy_j))
    mean = math.prod(one.duration_s for one in law[:-1]) ** (1 / 4)
    assert held.said["mean"][0] == pytest.approx(mean)


def test_a_forecast_gets_the_factors_of_its_fold_alone() -> None:
    asked = []

    def forecast(one: Observation, factors: Factors) -> tuple[float | None, float | None]:
        asked.append((one, factors))
        return one.duration_s / 2, None

    observations = scattered(0.05)
    found = leave_one_out(observations, ASSUMED, PREDICTIONS, forecast)
    fitted = [(one, factors) for one, factors in asked if factors is not ASSUMED]
    assert tuple(one for one, _ in fitted) == observations
    assert len({factors.bandwidth for _, factors in fitted}) == len(observations), "each fold has its own"
    assert found[0].off("forecast", "duration_s") == pytest.approx(math.log(2))
    assert found[0].off("forecast", "energy_j") is None
    assert error(found, "forecast", "energy_j") is None


def test_errors_by_hand() -> None:
    """100 |ln r| of 1, 2, … 11 %: the median is 6, nine tenths of the way from least to most is 10."""
    found = [left_out((-1) ** index * index / 100, index) for index in range(1, 12)]
    made = error(found, "work", "duration_s")
    assert made is not None
    assert (made.median_percent, made.p90_percent) == pytest.approx((6.0, 10.0))
    assert made.cells == 11


def test_an_interval_by_hand() -> None:
    """Four cells off by 10 % of a logarithm: t of 3 degrees 2.353, times 0.1, times sqrt(5 / 4)."""
    found = [left_out(0.1 * sign, index) for index, sign in enumerate((1, -1, 1, -1))]
    half = 2.353 * 0.1 * math.sqrt(1.25)
    assert spread(found, "work", "duration_s") == pytest.approx((math.exp(-half), math.exp(half)))
    assert spread(found[:3], "work", "duration_s") is not None
    assert spread(found[:2], "work", "duration_s") is None, "two tell next to nothing of how they scatter"
    assert spread(found, "forecast", "duration_s") is None


def test_errors_of_one_draw_of_prompts_are_one_error() -> None:
    """Forecasts of a batch are off by the same walk, whatever length and shards: three batches of twelve
    cells each know no more than three do, t of 2 degrees 2.920, and the others' interval is that of two."""
    found = []
    for batch, off in ((4, 0.1), (8, -0.1), (16, 0.1)):
        for length in range(1, 13):
            one = observed(replace(cells()[0], batch=batch, length=length))
            found.append(LeftOut(one, {"forecast": (one.duration_s / math.exp(off), None)}))
    half = 2.920 * 0.1 * math.sqrt(4 / 3)
    interval = spread(found, "forecast", "duration_s")
    assert interval == pytest.approx((math.exp(-half), math.exp(half)))
    assert coverage(found, "forecast", "duration_s") == (0, 0)
    assert spread(found[:24], "forecast", "duration_s") is None


def test_an_interval_holds_its_prediction_even_where_all_cells_were_slower() -> None:
    low, high = spread([left_out(0.3, index) for index in range(5)], "work", "duration_s") or (0, 0)
    assert low < 1 < math.exp(0.3) < high


def test_repeats_make_no_interval_narrower() -> None:
    """Ten repeats of one cell are no ten cells."""
    four = [left_out(0.1 * sign, index) for index, sign in enumerate((1, -1, 1, -1))]
    repeated = [*four, *(left_out(0.1, 0, repeat) for repeat in range(2, 11))]
    assert spread(repeated, "work", "duration_s") == pytest.approx(spread(four, "work", "duration_s"))


def test_the_same_cells_in_another_study_make_no_interval_narrower() -> None:
    four = [left_out(0.1 * sign, index) for index, sign in enumerate((1, -1, 1, -1))]
    again = [replace(one, cell=replace(one.cell, study="another")) for one in four]
    assert spread([*four, *again], "work", "duration_s") == spread(four, "work", "duration_s")
    assert coverage([*four, *again], "work", "duration_s")[1] == 8


def test_coverage_judges_a_cell_by_the_others_interval() -> None:
    """Of eight cells one is far off: the others' interval does not hold it, with it it would."""
    found = [left_out(0.1 * (-1) ** index, index) for index in range(7)]
    found.append(left_out(0.3, 7))
    assert coverage(found, "work", "duration_s") == (7, 8)
    assert coverage(found, "forecast", "duration_s") == (0, 0)


def test_nine_tenths_of_right_models_lie_in_their_interval() -> None:
    """Over noise of 5 % the interval is neither a tenth nor ten times of it, and holds about what it says."""
    within = asked = 0
    for seed in range(3):
        found = each_left_out(*scattered(0.05, seed))
        low, high = spread(found, "work", "duration_s") or (0, 0)
        assert 0.02 < math.log(high / low) / 2 < 0.2
        counts = coverage(found, "work", "duration_s")
        within, asked = within + counts[0], asked + counts[1]
    assert 0.75 * asked <= within


def test_quantiles_fall_to_the_normal_without_a_step() -> None:
    values = [t_quantile(degrees) for degrees in range(1, 60)]
    assert values == sorted(values, reverse=True)
    assert t_quantile(30) - t_quantile(31) < 0.003
    assert t_quantile(10_000) == pytest.approx(1.645, abs=1e-3)
    with pytest.raises(ValueError, match="at least 1"):
        t_quantile(0)
