"""Guards the fit: factors that are known are found, and what the cells cannot tell stays as assumed."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import pytest

from shardwatt.analysis.calibrationcells import Observation, predict
from shardwatt.analysis.calibrationfit import FARTHEST, MOST_ERROR, NAMES, Fit, Predictions, fit
from shardwatt.plan.device import DEFAULT_FACTORS, Factors
from shardwatt.siteplan import FactorName
from synthetic_calibration import TRUE, cells, observed

ASSUMED = DEFAULT_FACTORS["cuda"]


def fitted(observations: list[Observation], assumed: Factors = ASSUMED) -> Fit:
    return fit(observations, assumed, Predictions(predict))


def unmetered(one: Observation) -> Observation:
    return replace(one, energy_j=None)


def test_factors_are_found_without_noise() -> None:
    found = fitted([observed(cell) for cell in cells()])
    assert found.kept == {}
    for name in NAMES:
        assert getattr(found.factors, name) == pytest.approx(getattr(TRUE, name), rel=0.01), name


def test_links_of_twice_the_latency_and_half_the_bandwidth_are_told_by_network_alone() -> None:
    """Decode sends messages so small that latency is most of their time: were it fixed, `launch` would have
    to make good for it, and cells of one shard be off."""
    observations = []
    for one in map(observed, cells()):
        link = replace(
            one.device.inside,
            bandwidth_b_s=one.device.inside.bandwidth_b_s / 2,
            latency_s=one.device.inside.latency_s * 2,
        )
        slow = replace(one, device=replace(one.device, inside=link))
        phases_s = dict(predict(slow, TRUE).phases_s)
        observations.append(replace(one, phases_s=phases_s, duration_s=sum(phases_s.values()), energy_j=None))
    found = fitted(observations)
    assert found.factors.network == pytest.approx(TRUE.network / 2, rel=0.02)
    for name in ("compute", "bandwidth", "launch"):
        assert getattr(found.factors, name) == pytest.approx(getattr(TRUE, name), rel=0.02), name


def test_factors_are_found_within_their_standard_errors_under_noise() -> None:
    """Over several draws: errors are neither too small nor so large that they say nothing."""
    over = []
    for seed in range(4):
        found = fitted([observed(cell, scatter=0.05, seed=seed) for cell in cells()])
        assert found.scatter < 0.1
        for name, error in found.standard_errors.items():
            over.append(abs(math.log(getattr(found.factors, name) / getattr(TRUE, name))) / error)
    assert sum(one <= 1 for one in over) >= 0.4 * len(over)
    assert sum(one <= 3 for one in over) >= 0.9 * len(over)


def test_the_answer_does_not_depend_on_what_was_assumed() -> None:
    observations = [observed(cell) for cell in cells()]
    far = replace(ASSUMED, compute=0.15, bandwidth=0.95, launch=0.8, power=0.6)
    found = fitted(observations, far)
    for name in NAMES:
        assert getattr(found.factors, name) == pytest.approx(getattr(TRUE, name), rel=0.01), name


def test_what_no_cell_depends_on_keeps_its_assumption_exactly() -> None:
    alone = [cell for cell in cells() if cell.shards == 1]
    found = fitted([unmetered(observed(cell)) for cell in alone])
    assert found.kept["network"] == "nothing that was measured depends on it"
    assert found.kept["power"] == "nothing that was measured depends on it"
    assert (found.factors.network, found.factors.power) == (ASSUMED.network, ASSUMED.power)
    assert found.factors.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.01)


def test_one_cell_tells_no_more_than_it_can() -> None:
    """Whatever is fitted to one cell is known to be known; the rest is as assumed."""
    found = fitted([unmetered(observed(cells()[0], scatter=0.02))])
    assert set(found.kept) | set(found.standard_errors) == set(NAMES)
    for name, error in found.standard_errors.items():
        assert error <= MOST_ERROR, name
    for name in found.kept:
        assert getattr(found.factors, name) == getattr(ASSUMED, name)


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_noise_of_a_cell_that_just_becomes_launch_bound_tells_no_launch(engine: str) -> None:
    """A slow cell is made good for by a launch at which it, alone, waits for the host: fitted to the cell's
    noise, with a small error, and wrong wherever launches count."""
    usual = replace(TRUE, launch=ASSUMED.launch)
    for seed in range(5):
        found = fitted([observed(cell, usual, scatter=0.03, seed=seed) for cell in cells(engine=engine)])
        assert found.factors.launch == ASSUMED.launch, seed
        assert "launch" in found.kept
        assert found.factors.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.1)


def test_one_cell_alone_tells_no_factor() -> None:
    """All but one of the cells have one shard: what it says of links may be its own bad luck."""
    alone = [observed(cell) for cell in [*cells(), *cells("a100")] if cell.shards == 1]
    exchanging, other = (observed(cell) for cell in cells() if cell.shards == 8 and cell.batch in (4, 16))
    repeats = [replace(exchanging, cell=replace(exchanging.cell, repeat=number)) for number in (1, 2)]
    assert "network" in fitted([*alone, *repeats]).kept
    assert "network" in fitted([*alone, *repeats, other]).standard_errors


def test_a_slow_host_is_not_taken_for_slow_memory() -> None:
    """Launches of eight times the assumption: from too near a start the search ended in less bandwidth."""
    for seed in range(4):
        slow_host = replace(TRUE, launch=8.0)
        found = fitted([observed(cell, slow_host, scatter=0.03, seed=seed) for cell in cells(engine="fast")])
        assert found.factors.launch == pytest.approx(8.0, rel=0.05), seed
        assert found.factors.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.1)


def test_a_factor_at_the_bound_of_the_search_is_not_called_fitted() -> None:
    """Launches of thirty times the assumption are not sought: no factor that stands in for them is told."""
    found = fitted([observed(cell, replace(TRUE, launch=30.0)) for cell in cells()])
    assert found.at_bound
    assert not set(found.at_bound) & (set(found.standard_errors) | set(found.kept))
    for name in found.at_bound:
        over = getattr(found.factors, name) / getattr(ASSUMED, name)
        assert max(over, 1 / over) == pytest.approx(FARTHEST)


@pytest.mark.parametrize(
    ("name", "truth"),
    [("bandwidth", replace(TRUE, bandwidth=0.04)), ("network", replace(TRUE, network=0.04))],
)
def test_the_bound_of_the_search_predicts_better_than_the_assumption(
    name: FactorName, truth: Factors
) -> None:
    """A twentieth of the assumption is not sought. Half of the cells are fitted, the others predicted: the
    bound is nearer than the assumption, which is why forecasts use it."""
    observations = [observed(cell, truth) for cell in cells()]
    found = fitted(observations[::2])
    assert found.at_bound == [name]

    def off(factors: Factors) -> float:
        return median(
            abs(math.log(predict(one, factors).duration_s / one.duration_s)) for one in observations[1::2]
        )

    assert off(found.factors) < 0.5 * off(replace(found.factors, **{name: getattr(ASSUMED, name)}))


def test_repeats_of_a_cell_have_the_weight_of_one() -> None:
    """Ten runs of one cell on a slow day must not pull the factors of all others."""
    observations = [observed(cell, scatter=0.03) for cell in cells()]
    slow = observed(cells()[0], slower=2.0)
    once = fitted([*observations[1:], slow])
    often = fitted(
        [*observations[1:], *(replace(slow, cell=replace(slow.cell, repeat=n)) for n in range(1, 11))]
    )
    for name in NAMES:
        assert getattr(often.factors, name) == pytest.approx(getattr(once.factors, name), rel=1e-3), name


def test_an_error_of_time_is_not_made_good_by_watts() -> None:
    """Cells that take twice as long at the same watts: power stays, whatever becomes of time."""
    found = fitted([observed(cell, slower=2.0) for cell in cells()])
    usual = fitted([observed(cell) for cell in cells()])
    assert found.factors.bandwidth < 0.75 * usual.factors.bandwidth
    power = predict(observed(cells()[2]), found.factors).power_w
    truth = predict(observed(cells()[2]), TRUE).power_w
    assert power is not None
    assert truth is not None
    assert power == pytest.approx(truth, rel=0.15)


def test_capped_cells_tell_their_factors_too() -> None:
    """Under a cap time depends on power, and watts hardly on it."""
    capped = [replace(cell, cap=str(cap)) for cell in cells()[::2] for cap in (120, 160)]
    found = fitted([observed(cell) for cell in [*cells(), *capped]])
    assert found.factors.power == pytest.approx(TRUE.power, rel=0.02)
    assert found.factors.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.02)


def test_a_prediction_is_worked_out_once() -> None:
    asked = []

    def counting(one: Observation, factors: Factors) -> object:
        asked.append((id(one), factors.compute, factors.launch))
        return predict(one, factors)

    predictions = Predictions(counting)  # type: ignore[arg-type]
    one = observed(cells()[0])
    assert predictions.of(one, TRUE) is predictions.of(one, TRUE)
    assert predictions.of(one, replace(TRUE, launch=2.0)) is not predictions.of(one, TRUE)
    assert len(asked) == 2
