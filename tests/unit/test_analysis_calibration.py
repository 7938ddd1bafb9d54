"""Guards the calibration: what of a record it takes, what it stores, and that the plan reads it back."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardwatt.analysis.calibration import (
    FEWEST,
    Calibrated,
    calibrate,
    entry,
    forecast_by_plan,
    store,
    too_few,
)
from shardwatt.analysis.calibrationcells import Observation, observe, predict, unusable
from shardwatt.analysis.calibrationerrors import LeftOut, Quantity, error
from shardwatt.analysis.calibrationlengths import lengths_told, mean_output_tokens
from shardwatt.analysis.calibrationwords import afterwords, told
from shardwatt.analysis.residualfigure import Group, compose, draw_residuals
from shardwatt.analysis.survey import CellState, survey
from shardwatt.errors import ShardwattError, SiteError
from shardwatt.figurelist import FORMATS
from shardwatt.layout import CellPaths
from shardwatt.locks import alone
from shardwatt.plan.calibrated import factors_of
from shardwatt.plan.device import DEFAULT_FACTORS, Factors
from shardwatt.plan.forecast import Forecaster
from shardwatt.readings import Status, Violation
from shardwatt.site import Site, load_site
from shardwatt.siteplan import Calibration, CalibrationFile, Measured, calibration_file
from shardwatt.study import Study
from shardwatt.yamlfile import parse_model, read_mapping
from small_project import DATASETS, make_root, site_content, study_content, write_yaml
from synthetic_calibration import CONSTANTS, GPUS, TOKENS, TRUE, cells, observed, site, write_observed
from synthetic_cells import STUDY, Numbers, write_does_not_fit, write_failed, write_ok

TODAY = date(2026, 1, 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose data sets say how long their prompts and responses are."""
    folder = make_root(tmp_path / "project")
    datasets = {name: {**dataset, "tokens": TOKENS} for name, dataset in DATASETS.items()}
    write_yaml(folder / "config" / "datasets.yaml", {"datasets": datasets})
    return folder


def study() -> Study:
    return Study.model_validate(study_content(prompts=CONSTANTS.prompts))


def states(base: Path, *found: Observation) -> list[CellState]:
    return survey(base, STUDY, [one.cell for one in found], CONSTANTS)


def calibrated(*found: Observation, there: Site | None = None) -> list[Calibrated]:
    return calibrate(found, there or site(), None)


@cache
def of_all_cells() -> Calibrated:
    """Of `v100/reference`, without noise."""
    (made,) = calibrated(*map(observed, cells()))
    return made


@cache
def of_time_alone() -> Calibrated:
    """The same with noise, where no energy was metered."""
    (made,) = calibrated(*(replace(observed(cell, scatter=0.02), energy_j=None) for cell in cells()))
    return made


@cache
def of_noisy_cells() -> Calibrated:
    """Of as many as tell every factor, with more noise."""
    (made,) = calibrated(*(observed(cell, scatter=0.1) for cell in cells()[:8]))
    return made


def stored(name: str = "v100/reference") -> Calibration:
    return entry(of_all_cells(), f"study of {name}", TODAY)


def calibrated_site(factors: Factors) -> Site:
    """The site, with these factors for two engines on its V100s."""
    stored_as = Calibration(
        compute=factors.compute, bandwidth=factors.bandwidth, network=factors.network, launch=factors.launch,
        power=factors.power, fitted=[], cells=1, source="the truth", fitted_on=TODAY,
    )  # fmt: skip
    return site().model_copy(update={"calibration": {"v100/reference": stored_as, "v100/fast": stored_as}})


def test_the_work_of_a_record_is_what_the_engine_counted(root: Path) -> None:
    """Steps, tokens, logits and every position that was attended to come back exactly."""
    for engine in ("reference", "reference-v2", "fast", "hf"):
        for cell in cells(engine=engine)[::3]:
            one = observed(cell)
            write_observed(root, one)
            (found,), skipped = observe(root, site(), states(root, one))
            assert skipped == []
            assert found.loads.keys() == one.loads.keys()
            for phase, load in one.loads.items():
                assert found.loads[phase].steps == load.steps
                assert found.loads[phase].work == load.work, (engine, phase)
                assert found.loads[phase].rows == pytest.approx(load.rows, rel=0.02), (engine, phase)
                assert found.loads[phase].positions == pytest.approx(load.positions, rel=0.02), (
                    engine,
                    phase,
                )
            assert found.phases_s == pytest.approx(one.phases_s)
            assert found.energy_j == pytest.approx(one.energy_j)


def test_a_prediction_is_the_forecast_of_the_same_work(root: Path) -> None:
    """Calibration and plan must not drift apart: factors mean the same in both."""
    forecaster = Forecaster(root, STUDY, study(), calibrated_site(TRUE))
    for engine in ("reference", "fast"):
        for cell in cells(engine=engine):
            said, forecast = predict(observed(cell), TRUE), forecaster.cell(cell)
            assert said.duration_s == pytest.approx(forecast.duration_s, rel=1e-6)
            assert said.energy_j == pytest.approx(forecast.energy_j, rel=1e-6)


@pytest.mark.parametrize("constants", [{"cuda_graphs": "never"}, {"temperature": 0.0}])
def test_the_constants_of_a_cell_reach_its_prediction(root: Path, constants: dict[str, Any]) -> None:
    """As they reach its forecast: launches that are not replayed, tokens that are not sorted."""
    other = CONSTANTS.model_copy(update=constants)
    content = study_content(prompts=CONSTANTS.prompts, **constants)
    slow_host = replace(TRUE, launch=20.0)
    forecaster = Forecaster(root, STUDY, Study.model_validate(content), calibrated_site(slow_host))
    usual = observed(cells(engine="fast")[0])
    one = replace(usual, constants=other)
    said = predict(one, slow_host)
    assert said.duration_s == pytest.approx(forecaster.cell(one.cell).duration_s, rel=1e-6)
    assert said.duration_s != pytest.approx(predict(usual, slow_host).duration_s, rel=1e-3)
    write_observed(root, one)
    (found,), _ = observe(root, site(), survey(root, STUDY, [one.cell], other))
    assert found.constants == other


def test_only_cells_that_ran_are_observed(root: Path) -> None:
    ran, torn, unfit, simulated = (observed(cell) for cell in cells()[:4])
    rehearsed = replace(simulated, cell=replace(simulated.cell, engine="simulated"))
    write_observed(root, ran)
    write_failed(root, torn.cell, CONSTANTS)
    write_does_not_fit(root, unfit.cell, None, CONSTANTS)
    write_ok(root, rehearsed.cell, None, CONSTANTS)
    found, skipped = observe(root, site(), states(root, ran, torn, unfit, rehearsed))
    assert [one.cell for one in found] == [ran.cell]
    assert skipped == []


def test_cells_whose_records_are_damaged_or_outdated_are_left_out_and_counted(root: Path) -> None:
    """A file that ends in the middle must not make a calibration from fewer cells without a word."""
    ran, *others, old, simulated = (observed(cell) for cell in cells()[:5])
    rehearsed = replace(simulated, cell=replace(simulated.cell, engine="simulated"))
    for one in (ran, *others, old):
        write_observed(root, one)
    write_ok(root, rehearsed.cell, None, CONSTANTS)
    for one in (*others, rehearsed):
        record = CellPaths(root, STUDY, one.cell).record
        record.write_bytes(record.read_bytes()[:500])
    changed = CONSTANTS.model_copy(update={"seed": CONSTANTS.seed + 1})
    found = [*states(root, ran, *others, rehearsed), *survey(root, STUDY, [old.cell], changed)]
    assert [one.cell for one in observe(root, site(), found)[0]] == [ran.cell]
    assert unusable(STUDY, found) == [
        f"2 cells: invalid, and left out; `shardwatt cells {STUDY} --outcome invalid` says why",
        f"1 cell: outdated, and left out; `shardwatt cells {STUDY} --outcome outdated` says why",
    ]
    assert unusable(STUDY, states(root, ran)) == []


def test_an_estimate_tells_no_watts(root: Path) -> None:
    """A factor of power fitted to an estimate would repeat the estimate's own constants."""
    one = observed(cells()[0])
    write_observed(root, one, Numbers(status=Status.ESTIMATED))
    (found,), skipped = observe(root, site(), states(root, one))
    assert found.energy_j is None
    assert found.duration_s == pytest.approx(one.duration_s)
    assert skipped == ["1 cell: time alone, no watts: its energy is estimated, not metered"]


def test_joules_that_break_a_rule_tell_no_watts(root: Path) -> None:
    one = observed(cells()[0])
    write_observed(root, one, Numbers(violations=[Violation(code="shared_gpu", message="pid 17")]))
    (found,), skipped = observe(root, site(), states(root, one))
    assert found.energy_j is None
    assert "breaks a rule" in skipped[0]


def test_what_the_site_does_not_know_is_said_and_left_out(root: Path) -> None:
    found = [observed(cell) for cell in cells()]
    for one in found:
        write_observed(root, one)
    bare = site().model_copy(
        update={"gpus": {"v100": site().gpus["v100"].model_copy(update={"data_sheet": None})}}
    )
    seen, skipped = observe(root, bare, states(root, *found))
    assert seen == []
    assert len(skipped) == 1
    assert skipped[0].startswith("12 cells: the site has no figures of v100 in fp16")


def test_cells_of_another_shape_than_the_model_has_now_are_left_out(root: Path) -> None:
    """A model of the same name and other layers: its factors would come out wrong without a word."""
    one = observed(cells()[0])
    write_observed(root, one)
    other = states(root, one)
    params = {"dim": 4096, "n_layers": 31, "n_heads": 32, "multiple_of": 256, "vocab_size": 32000}
    folder = root / "models" / "llama-7b"
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (folder / "consolidated.00.pth").write_bytes(b"weights")
    seen, skipped = observe(root, site(root), other)
    assert seen == []
    assert "1 cell: the shape of llama-7b is not the one that its cells ran with" in skipped


def test_factors_go_by_gpu_type_and_engine() -> None:
    slow = replace(TRUE, bandwidth=TRUE.bandwidth / 2)
    found = calibrated(
        *map(observed, cells("v100")[:7]),
        *(observed(cell, slow) for cell in cells("a100")[:7]),
        *(observed(cell, replace(TRUE, bandwidth=0.9)) for cell in cells("v100", engine="fast")[:7]),
    )
    by_key = {one.key: one for one in found}
    assert list(by_key) == ["v100/reference", "a100/reference", "v100/fast"]
    assert by_key["v100/reference"].fit.factors.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.01)
    assert by_key["a100/reference"].fit.factors.bandwidth == pytest.approx(slow.bandwidth, rel=0.01)
    assert by_key["v100/fast"].fit.factors.bandwidth == pytest.approx(0.9, rel=0.01)
    assert [one.cell.cell.gpu for one in by_key["a100/reference"].from_other_gpus] == ["a100"] * 7
    assert by_key["v100/fast"].from_other_gpus == [], "no other type ran this engine"


def test_an_older_calibration_of_the_site_plays_no_part() -> None:
    odd = stored().model_copy(update={"network": 0.01, "compute": 0.01})
    there = site().model_copy(update={"calibration": {"v100/reference": odd}})
    alone = [observed(cell) for cell in cells() if cell.shards == 1] + [
        observed(replace(cells()[0], batch=batch)) for batch in (2, 8)
    ]
    (found,) = calibrated(*alone, there=there)
    assert found.assumed == DEFAULT_FACTORS["cuda"]
    assert found.fit.factors.network == DEFAULT_FACTORS["cuda"].network


def test_too_few_cells_are_refused_with_their_number() -> None:
    """Repeats do not count: they are the same cell."""
    few = [observed(cell) for cell in cells()[: FEWEST - 1]]
    again = [replace(one, cell=replace(one.cell, repeat=2)) for one in few]
    with pytest.raises(ShardwattError, match=r"v100/reference: 3 of 4 cells; a calibration needs 4 cells"):
        calibrated(*few, *again)
    with pytest.raises(ShardwattError, match="no cell has run to its end"):
        calibrated()
    assert too_few(few) == ["v100/reference: 3 of 4 cells"]


def test_twins_do_not_make_up_the_number() -> None:
    """The same three cells of another study, and one of them under caps that hold nothing back."""
    few = [observed(cell) for cell in (cells()[0], cells()[1], cells()[5])]
    twins = [replace(one, study="another") for one in few]
    capped = [observed(replace(few[2].cell, cap=cap)) for cap in ("200", "250")]
    with pytest.raises(ShardwattError, match=r"v100/reference: 3 of 4 cells; .*their study or a cap"):
        calibrated(*few, *twins, *capped)


def test_one_gpu_type_with_few_cells_does_not_hold_up_another() -> None:
    found = calibrated(*map(observed, cells("v100")[:6]), *map(observed, cells("a100")[:2]))
    assert [one.key for one in found] == ["v100/reference"]
    assert found[0].from_other_gpus == []


def test_what_is_stored_comes_back_as_the_plans_factors(tmp_path: Path) -> None:
    file = write_yaml(tmp_path / "site.yaml", site_content(tmp_path, gpus=GPUS))
    made = stored()
    store({"v100/reference": made}, calibration_file(file))
    factors = factors_of(load_site([file]), "v100", "reference")
    assert factors.compute == pytest.approx(TRUE.compute, rel=0.01)
    assert factors.spread == made.spread
    assert "2026-01-02" in factors.source
    assert factors_of(load_site([file]), "a100", "reference") == DEFAULT_FACTORS["cuda"]
    assert made.fitted == ["compute", "bandwidth", "network", "launch", "power"]
    assert made.cells == 12
    assert made.measured == Measured(
        models=["llama-13b", "llama-7b"], precisions=["fp16"], datasets=["alpaca"], caps=["none"],
        shards=(1, 8), batch=(4, 128), length=(32, 256),
    )  # fmt: skip


def test_of_two_who_store_at_once_neither_loses_the_others_entries(tmp_path: Path) -> None:
    """A second one waits for a first that has read the file and not written it yet."""
    path, made = tmp_path / "site.calibration.yaml", stored()
    with ThreadPoolExecutor() as pool:
        with alone(path.with_name(f".{path.name}.lock")):
            second = pool.submit(store, {"a100/reference": made}, path)
            with pytest.raises(TimeoutError):
                second.result(timeout=0.5)
        store({"v100/reference": made}, path)
        second.result()
    known = parse_model(CalibrationFile, read_mapping(path, SiteError), path, SiteError).calibration
    assert set(known) == {"v100/reference", "a100/reference"}


def test_a_forecast_of_what_was_not_measured_says_so(root: Path) -> None:
    there = site(root).model_copy(update={"calibration": {"v100/reference": stored()}})
    forecaster = Forecaster(root, STUDY, study(), there)
    cell = cells()[1]
    (alone,) = forecaster.cell(cell).notes
    assert alone.startswith("of the job around the window"), "which no calibration knows"
    changes: list[dict[str, Any]] = [{"cap": "150"}, {"precision": "fp32"}, {"dataset": "gsm8k"}]
    for change in changes:
        notes = forecaster.cell(replace(cell, **change)).notes
        assert any(note.startswith("outside of what the calibration measured") for note in notes), change


def test_a_cap_that_holds_nothing_back_measures_cells_without_one(root: Path) -> None:
    made = calibrated(*(observed(replace(cell, cap="250")) for cell in cells()[:4]))
    measured = entry(made[0], "a study", TODAY).measured
    assert measured is not None
    assert measured.caps == ["250", "none"]


def test_factors_are_used_with_the_figures_alone_that_they_are_relative_to(root: Path) -> None:
    """Another data sheet under old factors is wrong by the ratio of the two, with the same interval."""
    made, cell = stored(), cells()[1]
    assert made.figures["memory_bandwidth_b_s"] == 900e9
    assert made.figures["fp16_flop_per_s"] == 112e12
    assert "fp32_flop_per_s" not in made.figures, "nothing was measured in it"
    there = site(root).model_copy(update={"calibration": {"v100/reference": made}})
    assert Forecaster(root, STUDY, study(), there).cell(cell).duration_range_s is not None
    v100 = there.gpus["v100"].model_copy(update={"data_sheet": "v100s-pcie-32gb"})
    faster = there.model_copy(update={"gpus": {"v100": v100}})
    forecast = Forecaster(root, STUDY, study(), faster).cell(cell)
    plain = Forecaster(root, STUDY, study(), faster.model_copy(update={"calibration": {}})).cell(cell)
    assert forecast.duration_s == plain.duration_s
    assert forecast.duration_range_s is None
    assert (
        "not calibrated: calibrated against other figures of v100 (fp16_flop_per_s, memory_bandwidth_b_s); "
        "run `shardwatt calibrate` again"
    ) in forecast.notes
    unknown = made.model_copy(update={"figures": {}})
    assert factors_of(
        faster.model_copy(update={"calibration": {"v100/reference": unknown}}), "v100", "reference"
    )


def test_cells_of_another_site_are_left_out_and_counted(root: Path) -> None:
    """Their times are those of other machines, which the site's figures say nothing of."""
    found = [observed(cell) for cell in cells()[:3]]
    for one in found:
        write_observed(root, one)
    elsewhere = site(root).model_copy(update={"name": "my-cluster"})
    seen, skipped = observe(root, elsewhere, states(root, *found))
    assert seen == []
    assert skipped == ["3 cells: they ran at site 'testbed', not at 'my-cluster'"]


def test_lengths_that_no_response_can_reach_make_twins() -> None:
    """A cache of 512 positions: 511, 512 and 2048 new tokens are one run, and 256 is another."""
    constants = CONSTANTS.model_copy(update={"cache_tokens": 512})
    ends = [
        replace(one, constants=constants, cell=replace(one.cell, length=length))
        for one in [observed(cells()[0])]
        for length in (256, 511, 512, 2048)
    ]
    first, *others = [one.configuration for one in ends]
    assert len(set(others)) == 1
    assert first not in others
    long, longer = (
        replace(ends[0], constants=CONSTANTS, cell=replace(cells()[0], length=n)) for n in (512, 513)
    )
    assert long.configuration != longer.configuration


def test_entries_of_others_stay_and_an_own_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "site.calibration.yaml"
    old = stored("before")
    store({"a100/fast": old, "v100/reference": old}, path)
    new = old.model_copy(update={"compute": 0.5, "source": "after"})
    store({"v100/reference": new}, path)
    content = yaml.safe_load(path.read_text())["calibration"]
    assert list(content) == ["a100/fast", "v100/reference"]
    assert content["a100/fast"]["source"] == "study of before"
    assert content["v100/reference"]["source"] == "after"
    assert path.read_text().startswith("# Written by `shardwatt calibrate`")
    left = {entry.name for entry in tmp_path.iterdir()} - {".site.calibration.yaml.lock"}
    assert left == {path.name}, "nothing temporary stays"


def test_a_torn_calibration_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "site.calibration.yaml"
    path.write_text("calibration: {v100/reference: {compute: 0.5")
    with pytest.raises(SiteError, match="no valid YAML"):
        store({"v100/reference": stored()}, path)
    assert path.read_text() == "calibration: {v100/reference: {compute: 0.5"


def test_intervals_are_those_of_the_whole_forecast(root: Path) -> None:
    """A wrong assumption about lengths is part of what a forecast is off by, and so of its interval."""
    made = [observed(cell, scatter=0.02) for cell in cells(engine="fast")]
    wrong = {**TOKENS, "output_mean": 30.0}
    datasets = {name: {**dataset, "tokens": wrong} for name, dataset in DATASETS.items()}
    write_yaml(root / "config" / "datasets.yaml", {"datasets": datasets})
    forecast = forecast_by_plan(root, site(), {STUDY: study()})
    (found,) = calibrate(made, site(), forecast)
    work, whole = (error(found.left_out, approach, "duration_s") for approach in ("work", "forecast"))
    assert work is not None
    assert whole is not None
    assert found.fit.factors.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.05), (
        "lengths are not in factors"
    )
    assert whole.median_percent > 4 * work.median_percent
    assert math.log(found.spread()["duration_s"][1]) > whole.median_percent / 100


def test_words_name_factors_errors_baselines_and_intervals() -> None:
    text = "\n".join(told(of_time_alone()))
    assert "v100/reference: 12 cells, 12 of them different" in text
    assert "cells left out in 12 folds, each with its twins" in text
    assert "power" in text
    assert "as assumed: nothing that was measured depends on it" in text
    assert "regression on output tokens alone" in text
    assert "time: better than both baselines" in text
    assert "energy: not calibrated" in text
    assert "90 % interval of a forecast's time" in text


def test_words_name_factors_at_the_bound_and_intervals_that_there_are_not() -> None:
    (made,) = calibrated(*(observed(cell, scatter=0.02) for cell in cells()[:8]))
    errors: dict[Any, float] = {name: 0.1 for name in made.fit.standard_errors if name != "network"}
    bound = replace(made, fit=replace(made.fit, standard_errors=errors, at_bound=["network"]))
    assert any(" network " in line and "not told: 10 times off" in line for line in told(bound))
    stored = entry(bound, "a study", TODAY)
    assert "network" not in stored.fitted
    assert stored.at_bound == ["network"]
    forecast = [LeftOut(one.cell, {**one.said, "forecast": one.said["work"]}) for one in made.left_out]
    several = "\n".join(told(replace(made, left_out=forecast)))
    assert "one from the errors of cells independent of it holds a cell in" in several
    alike = [one for one in forecast if one.cell.cell.batch == 4]
    text = "\n".join(told(replace(made, left_out=alike)))
    assert (
        "90 % interval of a forecast's time: none; it takes 3 combinations of model, data set and batch, and "
        "these cells are of 1"
    ) in text


def test_a_wide_interval_is_told_in_times_with_three_digits() -> None:
    """A lower end of 0.000 times would be a time of zero."""
    (made,) = calibrated(*(observed(cell, scatter=0.02) for cell in cells()[:6]))
    wide = [
        LeftOut(one.cell, {**one.said, "work": (one.cell.duration_s / 500, None)}) for one in made.left_out
    ]
    line = next(line for line in told(replace(made, left_out=wide)) if "forecast's time" in line)
    found = re.search(r"1/([\d,]+) to ([\d,]+) times it", line)
    assert found is not None, line
    assert found[1] == found[2]
    assert int(found[1].replace(",", "")) > 10_000
    assert re.search(r"forecast's time: 0\.\d{3} to 1\.\d\d times it", "\n".join(told(made)))


def test_an_entry_that_is_no_better_than_the_assumptions_says_so_when_it_is_written() -> None:
    made = of_time_alone()
    assert afterwords(made) is None
    lost = [
        LeftOut(one.cell, {**one.said, "forecast": said, "assumed": one.said["work"], "mean": (1e9, None)})
        for one in made.left_out
        for said in (one.said["mean"],)
    ]
    assert afterwords(replace(made, left_out=lost)) == (
        "v100/reference: predicts the time of cells that it has not seen no better than the assumptions do, "
        "and is written all the same; remove the entry to plan with the assumptions again"
    )
    nothing = replace(made, fit=replace(made.fit, factors=made.assumed, standard_errors={}, at_bound=[]))
    assert afterwords(nothing) == (
        "v100/reference: these cells told no factor; forecasts are those of the assumptions, as before"
    )


def test_losing_to_a_baseline_is_said() -> None:
    """Cells that all take the same time, whatever they do: the mean is best."""
    same = [
        replace(
            one,
            device=replace(one.device, tdp_w=None),
            phases_s={phase: 10.0 / len(one.loads) for phase in one.loads},
            duration_s=10.0,
            energy_j=None,
        )
        for one in map(observed, cells()[:6])
    ]
    text = "\n".join(told(calibrated(*same)[0]))
    assert "time: no better than: regression on output tokens alone, mean" in text


def test_lengths_are_told_and_not_stored(root: Path) -> None:
    """Responses cut at 32 to 256 tokens: the mean that nothing cuts is found all the same."""
    short = [replace(one, output_tokens=_drawn(one, 40.0)) for one in map(observed, cells())]
    assert mean_output_tokens(short) == pytest.approx(40.0, rel=0.01)
    cut = [replace(one, output_tokens=one.prompts * one.cell.length) for one in short]
    assert mean_output_tokens(cut) is None
    (line, other) = lengths_told(root, short)
    assert line == (
        "llama-7b on alpaca: tokens of a prompt 111.5, assumed 111.5; of a response that nothing cuts 40.0, "
        "assumed 90.0"
    )
    assert other.startswith("llama-13b on alpaca")
    assert "nothing cuts hardly any has ended by itself" in lengths_told(root, cut)[0]


def _drawn(one: Observation, mean: float) -> int:
    return round(one.prompts * mean * -math.expm1(-one.cell.length / mean))


def test_a_wide_interval_moves_no_mark_of_the_figure_and_is_told() -> None:
    """An interval of 14 decades is cut at the axis, which is as long as the marks need it; an ordinary one
    is whole."""
    made = of_noisy_cells()
    wide: dict[Quantity, tuple[float, float]] = {
        "duration_s": (1 / 206, 206.0),
        "energy_j": (3.25e-7, 3.08e6),
    }
    drawn = compose([Group(made.key, 0, made.left_out, wide)], STUDY)
    bare = compose([Group(made.key, 0, made.left_out, {})], STUDY)
    for axes, same in zip(drawn.axes, bare.axes, strict=True):
        assert axes.get_ylim() == same.get_ylim()
    usual = {name: (1 / (1.2 * high), 1.2 * high) for name, (_, high) in made.spread().items()}
    plain = compose([Group(made.key, 0, made.left_out, usual)], STUDY)
    for axes, same, (low, high) in zip(plain.axes, bare.axes, usual.values(), strict=True):
        bottom, top = axes.get_ylim()
        assert bottom < low < high < top
        assert top > same.get_ylim()[1]
    words = " ".join(" ".join(text.get_text() for text in drawn.texts).split())
    assert (
        "v100/reference, 90 % intervals beyond the axis: time 1/206 to 206 times the forecast, "
        "energy 1/3,080,000 to 3,080,000 times the forecast."
    ) in words
    assert "beyond the axis" not in " ".join(text.get_text() for text in plain.texts)


@pytest.mark.parametrize("off", [1.0, 1.25, 1.9, 4.0, 9.0, 60.0, 1e5])
def test_labels_of_measured_over_predicted_stand_apart_whatever_the_reach(off: float) -> None:
    made = of_time_alone()
    marks = [
        LeftOut(one.cell, {**one.said, "work": (one.cell.duration_s / factor, None)})
        for one, factor in zip(made.left_out, (off, 1 / off), strict=False)
    ]
    drawn = compose([Group(made.key, 0, marks, {})], STUDY)
    drawn.draw_without_rendering()
    (axes,) = drawn.axes
    labels = [label for label in axes.get_yticklabels() if label.get_text()]
    bottom, top = axes.get_ylim()
    boxes = [
        label.get_window_extent()
        for place, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
        if bottom <= place <= top and label.get_text()
    ]
    assert len(boxes) >= 3, [label.get_text() for label in labels]
    boxes.sort(key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))


def test_the_figure_shows_time_and_energy_and_is_the_same_again(tmp_path: Path) -> None:
    made = of_noisy_cells()
    groups = [Group(made.key, 0, made.left_out, made.spread())]
    paths = draw_residuals(groups, tmp_path / "a", STUDY)
    assert [path.name for path in paths] == [f"calibration.{extension}" for extension in FORMATS]
    again = draw_residuals(groups, tmp_path / "b", STUDY)
    for one, other in zip(paths, again, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_every_mark_of_the_figure_lies_in_its_panel() -> None:
    made = of_noisy_cells()
    groups = [Group(made.key, 0, made.left_out, made.spread())]
    panels: list[Any] = compose(groups, STUDY).axes
    assert len(panels) == 2
    for axes in panels:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        marks = [line.get_xydata()[0] for line in axes.lines[1:]]
        assert len(marks) == len(made.cells) == 8
        assert all(left < x < right and bottom < y < top for x, y in marks)
        assert any(left < tick < right for tick in axes.get_xticks())


def test_a_study_without_metered_energy_has_a_panel_of_time_alone() -> None:
    made = of_time_alone()
    drawn = compose([Group(made.key, 0, made.left_out, made.spread())], STUDY)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == ["Time of the inference window"]
    assert any("only time is shown" in text.get_text() for text in drawn.texts)
