"""Guards a cell's forecast: put together from the plan's models, and never more than is known."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from shardwatt.cell import Cell
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.errors import StudyError
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.warned import Warned
from shardwatt.study import Study
from shardwatt.yamlfile import parse_model
from small_project import GPUS, make_root, make_site, study_content, write_yaml

CELL = Cell(
    engine="reference",
    model="llama-65b",
    precision="fp16",
    gpu="v100",
    shards=8,
    batch=64,
    length=256,
    dataset="gsm8k",
    cap="none",
    repeat=1,
)
V100 = {**GPUS["v100"], "data_sheet": "v100-pcie-32gb"}
PROCESSORS = {
    **GPUS["cpu"],
    "per_node": 8,
    "cores_per_node": 64,
    "peak": {"memory_bandwidth_gb_s": 400, "tflops": {"fp16": 4}, "source": "a test"},
}
LINKS = {way: {"gb_s": 10, "latency_us": 5, "source": "a test"} for way in ("inside", "between")}


def forecaster(folder: Path, gpu: dict[str, Any] | None = None, **site: Any) -> Forecaster:
    """Of a study of 4,096 prompts on one machine of eight V100s; keys of type and site replaced."""
    return with_study(folder, {}, {**V100, **(gpu or {})}, **site)


def with_study(folder: Path, study: dict[str, Any], gpu: dict[str, Any], **site: Any) -> Forecaster:
    root = make_root(folder) if not (folder / "config").exists() else folder
    gpus = {"v100": gpu, "cpu": GPUS["cpu"]}
    content = parse_model(Study, study_content(**{"prompts": 4096, **study}), "study.yaml", StudyError)
    return Forecaster(root, "paper", content, make_site(folder, gpus=gpus, **site))


def test_a_forecast_adds_up(tmp_path: Path) -> None:
    found = forecaster(tmp_path, links=LINKS).cell(CELL)
    phases = found.phases.values()
    assert set(found.phases) == {"prefill", "walk", "decode"}
    assert found.duration_s == pytest.approx(sum(phase.duration_s for phase in phases))
    assert found.energy_j == pytest.approx(sum(phase.duration_s * (phase.power_w or 0) for phase in phases))
    assert found.energy_j is not None
    assert found.duration_s is not None
    assert found.allocation_duration_s is not None
    assert found.power_w == pytest.approx(found.energy_j / found.duration_s)
    assert found.power_w is not None
    assert 8 * 20 < found.power_w < 8 * 250, "of all devices, between rest and TDP"
    assert found.allocation_duration_s > found.duration_s
    assert (found.nodes, found.gpus, found.gpus_held, found.batches) == (1, 8, 8, 64)
    assert found.gpu_hours == pytest.approx(8 * found.allocation_duration_s / 3600)
    assert found.node_hours == pytest.approx(found.allocation_duration_s / 3600)
    assert found.fits is True
    assert found.need is not None
    assert found.need.weights_gib == pytest.approx(121.6 / 8, rel=0.01)


def test_gpus_that_a_job_holds_and_does_not_use_count_as_hours(tmp_path: Path) -> None:
    found = forecaster(tmp_path).cell(replace(CELL, model="llama-7b", shards=1))
    assert (found.gpus, found.gpus_held) == (1, 8)
    assert found.allocation_duration_s is not None
    assert found.gpu_hours == pytest.approx(8 * found.allocation_duration_s / 3600)


def test_a_cell_that_does_not_fit_says_so_and_is_forecast_all_the_same(tmp_path: Path) -> None:
    plan = forecaster(tmp_path)
    cell = replace(CELL, shards=1)
    found = plan.cell(cell)
    assert (found.fits, plan.fits(cell), plan.fits(CELL)) == (False, False, True)
    assert found.need is not None
    assert found.need == plan.need(cell)
    assert found.need.total_gib > found.memory_gib == 32
    assert found.duration_s is not None, "a study with `unfit: run` runs it, simulated"


def test_of_processors_no_memory_of_devices_is_said(tmp_path: Path) -> None:
    plan = forecaster(tmp_path)
    cell = replace(CELL, gpu="cpu", model="llama-7b", precision="fp32", shards=1)
    found = plan.cell(cell)
    assert (found.need, found.fits, plan.fits(cell)) == (None, None, None)
    assert (found.gpus, found.gpus_held, found.gpu_hours) == (0, 0, 0)
    assert found.duration_s is not None
    assert (found.power_w, found.energy_j) == (None, None), "no TDP, no watts"
    assert found.host_memory_gib is not None
    assert found.host_memory_gib > 25, "the weights lie in the host's memory"


def test_without_a_data_sheet_time_is_not_known_and_memory_is(tmp_path: Path) -> None:
    found = with_study(tmp_path, {}, GPUS["v100"]).cell(CELL)
    assert found.fits is True
    assert found.output_tokens is not None
    assert (found.duration_s, found.allocation_duration_s, found.energy_j, found.gpu_hours) == (None,) * 4
    assert found.phases == {}
    assert any("v100: neither a data sheet nor `peak`" in note for note in found.notes)


def test_without_a_tdp_joules_are_not_known_and_time_is(tmp_path: Path) -> None:
    peak = {"memory_bandwidth_gb_s": 900, "tflops": {"fp16": 112}, "source": "a test"}
    found = with_study(tmp_path, {}, {**GPUS["v100"], "peak": peak}).cell(CELL)
    assert found.duration_s is not None
    assert (found.power_w, found.energy_j, found.energy_range_j, found.carbon_kg) == (None,) * 4
    assert any("TDP is not known" in note for note in found.notes)


def test_of_a_model_that_nobody_knows_nothing_is_said_but_where_it_runs(tmp_path: Path) -> None:
    plan = forecaster(tmp_path)
    found = plan.cell(replace(CELL, model="nobodys"))
    assert (found.fits, found.need, found.duration_s, found.output_tokens, found.batches) == (None,) * 5
    assert (found.nodes, found.gpus) == (1, 8)
    assert len(found.notes) == 1
    assert "model 'nobodys'" in found.notes[0]
    near = plan.cell(replace(CELL, model="llama-65"))
    assert "did you mean" in near.notes[0]
    assert "llama-65b" in near.notes[0]
    assert isinstance(near.notes[0], Warned), "beside known models it would be a note among many"


def test_a_simulated_cell_is_forecast_as_the_one_that_it_stands_for(tmp_path: Path) -> None:
    plan = forecaster(tmp_path)
    for engine, simulated in (("reference", "simulated"), ("fast", "simulated-fast")):
        real, played = (replace(CELL, engine=name) for name in (engine, simulated))
        assert plan.cell(played) == replace(plan.cell(real), cell=played)
        assert plan.need(played) == plan.need(real)


def test_repeats_are_worked_out_once(tmp_path: Path) -> None:
    plan = forecaster(tmp_path)
    first, second = (plan.cell(replace(CELL, repeat=number)) for number in (1, 2))
    assert first.phases is second.phases
    assert second.cell.repeat == 2


def test_a_cap_takes_longer_and_draws_less(tmp_path: Path) -> None:
    plan = forecaster(tmp_path, links=LINKS)
    cell = replace(CELL, model="llama-7b", shards=1)
    free, capped = plan.cell(cell), plan.cell(replace(cell, cap="120"))
    assert free.power_w is not None
    assert capped.power_w is not None
    assert capped.power_w <= 120 * 1.001 < free.power_w
    assert free.duration_s is not None
    assert capped.duration_s is not None
    assert capped.duration_s > free.duration_s
    assert capped.phases["decode"].clock < free.phases["decode"].clock
    below_rest = plan.cell(replace(cell, cap="5"))
    assert any("cap 5" in note for note in below_rest.notes)


def test_a_job_takes_its_baselines_and_its_warm_up_beside_the_window(tmp_path: Path) -> None:
    def plan(**constants: Any) -> Forecaster:
        return with_study(tmp_path, constants, V100)

    def beside_s(**constants: Any) -> float:
        found = plan(**constants).cell(CELL)
        assert found.allocation_duration_s is not None
        assert found.duration_s is not None
        return found.allocation_duration_s - found.duration_s

    usual_s = beside_s(idle_settle_s=30.0, idle_read_s=10.0)
    assert beside_s(idle_settle_s=60.0, idle_read_s=20.0) == pytest.approx(usual_s + 2 * 40)
    assert beside_s(idle_settle_s=60.0, idle_read_s=0.0) == pytest.approx(usual_s - 2 * 40)
    assert beside_s(warmup_tokens=0) < beside_s(warmup_tokens=16) < beside_s(warmup_tokens=64)


def test_where_energy_is_estimated_a_job_has_no_baselines(tmp_path: Path) -> None:
    cell = replace(CELL, gpu="cpu", model="llama-7b", shards=1)
    short, long = (
        with_study(tmp_path, {"idle_read_s": seconds}, V100).cell(cell).allocation_duration_s
        for seconds in (1.0, 99.0)
    )
    assert short == long


def calibration(**changes: Any) -> dict[str, Any]:
    content = {
        **dict.fromkeys(("compute", "bandwidth", "network", "launch", "power"), 1.0),
        "fitted": [],
        "cells": 9,
        "source": "a test",
        "fitted_on": date(2026, 1, 1),
        **changes,
    }
    return {"calibration": {"v100/reference": content}}


def test_a_calibration_changes_its_own_engine_and_gives_intervals(tmp_path: Path) -> None:
    plain = forecaster(tmp_path)
    fitted_to = ["compute", "bandwidth"]
    slow = calibration(bandwidth=0.1, compute=0.1, fitted=fitted_to, spread={"duration_s": [0.8, 1.5]})
    fitted = forecaster(tmp_path, **slow)
    before, after = plain.cell(CELL), fitted.cell(CELL)
    assert before.duration_s is not None
    assert after.duration_s is not None
    assert after.duration_s > 2 * before.duration_s
    assert before.duration_range_s is None
    assert after.duration_range_s == pytest.approx((0.8 * after.duration_s, 1.5 * after.duration_s))
    assert after.energy_range_j is None, "the calibration says nothing of it"
    other = replace(CELL, engine="fast")
    assert fitted.cell(other) == plain.cell(other)
    assert any(note.startswith("not calibrated") for note in before.notes)
    assert any(note.startswith("watts and joules not calibrated") for note in after.notes)
    assert not any("time" in note and "not calibrated" in note for note in after.notes)
    spread = {"duration_s": [0.8, 1.5], "energy_j": [0.7, 1.4]}
    both = forecaster(tmp_path, **calibration(fitted=fitted_to, spread=spread)).cell(CELL)
    assert not any("not calibrated" in note for note in both.notes)


def test_a_calibration_that_told_no_factor_is_none_and_one_that_told_some_names_the_others(
    tmp_path: Path,
) -> None:
    """An entry has an interval, whatever its cells told."""
    spread = {"duration_s": [0.8, 1.5], "energy_j": [0.7, 1.4]}

    def made(**changes: Any) -> CellForecast:
        return forecaster(tmp_path, **calibration(spread=spread, **changes)).cell(CELL)

    assert not forecaster(tmp_path).cell(CELL).is_calibrated
    nothing, some = made(), made(fitted=["compute", "power"], at_bound=["launch"])
    assert nothing.duration_range_s is not None
    assert not nothing.is_calibrated
    assert some.is_calibrated
    assert made(at_bound=["launch"]).is_calibrated, "forecasts use it"
    assert (
        "not calibrated: the 9 cells of the calibration told no factor, so that all are as assumed, and the "
        "intervals alone come from cells"
    ) in nothing.notes
    assert not any("without an interval" in note for note in nothing.notes)
    assert "the calibration could not tell `bandwidth`, `network`: as assumed" in some.notes
    every = made(fitted=["compute", "bandwidth", "network", "launch", "power"])
    assert not any("as assumed" in note for note in every.notes)


def test_nobody_is_told_to_calibrate_what_a_calibration_could_not_tell(tmp_path: Path) -> None:
    processors = replace(CELL, gpu="cpu", precision="fp32", shards=2)

    def told(**changes: Any) -> list[str]:
        calibrated = {
            "calibration": {"cpu/reference": calibration()["calibration"]["v100/reference"] | changes}
        }
        plan = forecaster(tmp_path, **(calibrated if changes else {}))
        return [note for note in plan.cell(processors).notes if "; give " in note]

    links = "cpu: 1 GB/s between ranks of a machine and 200 us a message are assumed; give links.inside"
    cores, warned = told()
    assert cores.endswith("; give gpus.cpu.peak, or calibrate")
    assert warned == Warned(f"{links}, or calibrate")
    cores, warned = told(fitted=["launch"])
    assert cores.endswith("; give gpus.cpu.peak")
    assert isinstance(warned, Warned)
    assert warned == f"{links}; the calibration could not tell it"
    cores, noted = told(fitted=["network"])
    assert not isinstance(noted, Warned)
    assert noted == links


def test_what_is_assumed_around_the_window_is_said_after_a_calibration_too(tmp_path: Path) -> None:
    spread = {"duration_s": [0.8, 1.5], "energy_j": [0.7, 1.4]}
    for plan in (forecaster(tmp_path), forecaster(tmp_path, **calibration(spread=spread))):
        (said,) = (note for note in plan.cell(CELL).notes if "around the window" in note)
        assert said == (
            "of the job around the window, 90 s of start and end, loading at 1 GB/s a node and the host's "
            "memory are assumed: no calibration corrects them, and no interval holds them"
        )
    processors = forecaster(tmp_path).cell(replace(CELL, gpu="cpu", precision="fp32", shards=1))
    assert any("20 s of start and end" in note for note in processors.notes)


def test_links_that_nobody_says_are_a_warning_until_a_calibration_tells_them(tmp_path: Path) -> None:
    """What collectives reach was then fitted to the very figure that is assumed."""
    nodes = {"per_node": 2, "slurm": {}}

    def warned(**calibrated: Any) -> list[bool]:
        plan = forecaster(tmp_path, nodes, launcher="slurm", **calibrated)
        return [isinstance(note, Warned) for note in plan.cell(CELL).notes if "links.between" in note]

    assert warned() == [True]
    assert warned(**calibration(fitted=["compute"])) == [True]
    assert warned(**calibration(fitted=["compute", "network"])) == [False], "a note, still"


@pytest.mark.parametrize(
    ("words", "launcher", "is_warned"),
    [
        ({}, "slurm", False),
        ({"memory_per_node_gib": 16.0}, "slurm", True),
        ({"memory_per_node_gib": 16.0, "memory_per_node_max_gib": 200.0}, "slurm", False),
        ({"memory_per_node_gib": 16.0}, "local", False),
    ],
    ids=["not asked for", "too little", "as much as there is", "no jobs"],
)
def test_memory_that_jobs_may_not_ask_for_is_a_warning(
    tmp_path: Path, words: dict[str, Any], launcher: str, is_warned: bool
) -> None:
    """Such a cell would be submitted, and killed for its memory."""
    plan = forecaster(tmp_path, {"slurm": words}, launcher=launcher)
    found = plan.cell(CELL)
    assert found.host_memory_gib is not None
    assert 100 < found.host_memory_gib < 200
    told = [note for note in found.notes if "memory_per_node_max_gib" in note]
    assert (
        told
        == [
            "v100: jobs ask for 16 GiB of a node's memory at most, and some cells need more by the plan "
            "(host_memory_gib); raise memory_per_node_max_gib, or use other nodes"
        ]
        * is_warned
    )
    assert all(isinstance(note, Warned) for note in told)


def test_a_cap_on_a_gpu_whose_lowest_limit_nobody_knows_says_so(tmp_path: Path) -> None:
    limits = {"set_by": "nvml"}

    def said(cap: str = "200", **gpu: Any) -> bool:
        plan = forecaster(tmp_path, gpu, power_limits=limits)
        return any("the lowest limit" in note for note in plan.cell(replace(CELL, cap=cap)).notes)

    assert not said(), "the data sheet's board takes 100 W"
    assert said(data_sheet="v100-sxm2-32gb")
    assert not said(cap="none", data_sheet="v100-sxm2-32gb")
    assert not said(data_sheet="v100-sxm2-32gb", power_limits_w=[150.0, 300.0])
    own = {"memory_bandwidth_gb_s": 900, "tflops": {"fp16": 112}, "source": "a test"}
    assert said(data_sheet=None, peak=own)
    assert not said(data_sheet=None, peak={**own, "power_min_w": 100.0})


def test_a_cell_outside_of_what_was_measured_says_so(tmp_path: Path) -> None:
    measured = {"models": ["llama-65b"], "shards": [2, 8], "batch": [1, 64], "length": [32, 256]}
    plan = forecaster(tmp_path, **calibration(measured=measured))
    assert not any("outside" in note for note in plan.cell(CELL).notes)
    notes = plan.cell(replace(CELL, length=512, model="llama-7b")).notes
    assert any(
        note == "outside of what the calibration measured: model llama-7b (llama-65b), length 512 (32 to 256)"
        for note in notes
    )


def test_a_factor_at_the_bound_of_the_fit_is_not_called_assumed(tmp_path: Path) -> None:
    plan = forecaster(tmp_path, **calibration(power=10.0, at_bound=["power"]))
    notes = plan.cell(CELL).notes
    assert any(
        "factor `power` of the calibration is at the bound of its search, 10" in note for note in notes
    )
    assert not any("`power` is assumed" in note for note in notes)
    without = forecaster(tmp_path, **calibration(power=10.0)).cell(CELL).notes
    assert not any("bound" in note for note in without)


def with_tokens(root: Path, **tokens: Any) -> None:
    """Give the project's data set gsm8k lengths of its own."""
    path = root / "config" / "datasets.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["datasets"]["gsm8k"]["tokens"] = {
        "prompt_deciles": [20, 46, 52, 57, 62, 67, 73, 80, 89, 105, 316],
        "output_mean": 66,
        "source": "a test",
        **tokens,
    }
    write_yaml(path, content)


def test_the_cache_is_as_long_as_the_longest_prompt_that_is_known(tmp_path: Path) -> None:
    make_root(tmp_path)
    assumed = forecaster(tmp_path).need(CELL)
    with_tokens(tmp_path)
    known = forecaster(tmp_path).need(CELL)
    fixed = with_study(tmp_path, {"cache_tokens": 512}, V100).need(CELL)
    assert assumed is not None
    assert known is not None
    assert fixed is not None
    assert known.kv_cache_gib == pytest.approx(assumed.kv_cache_gib * (316 + 256) / (256 + 256))
    assert fixed.kv_cache_gib == assumed.kv_cache_gib
    other = forecaster(tmp_path).need(replace(CELL, dataset="alpaca"))
    assert other == assumed, "nobody says how long its prompts are"


def test_prompts_that_leave_no_room_for_a_token_are_a_warning(tmp_path: Path) -> None:
    make_root(tmp_path)

    def said(cell: Cell = CELL, **study: Any) -> list[str]:
        notes = with_study(tmp_path, study, V100).cell(cell).notes
        return [note for note in notes if isinstance(note, Warned) and "prompt_too_long" in note]

    assert not said(cache_tokens=20), "nobody says how long the prompts are"
    with_tokens(tmp_path)
    assert said(cache_tokens=316) == [
        "gsm8k: prompts have up to 316 tokens, and prompt and response together 316 positions, the study's "
        "cache_tokens: cells that draw a prompt which leaves no room for a token are planned with it cut, "
        "and fail when they are run (prompt_too_long); raise cache_tokens"
    ]
    assert said(cache_tokens=20, prompts=1)
    assert not said(cache_tokens=317)
    assert not said()
    shape = {"dim": 4096, "n_layers": 2, "n_heads": 32, "hidden_dim": 64, "vocab_size": 64, "context": 256}
    write_yaml(tmp_path / "config" / "architectures.yaml", {"architectures": {"short": shape}})
    for study in ({}, {"cache_tokens": 512}):
        (note,) = said(replace(CELL, model="short"), **study)
        assert "256 positions, the context of short: " in note


def test_a_batch_has_no_more_rows_than_there_are_prompts(tmp_path: Path) -> None:
    """The run makes room for no more: a batch of 512 of 8 prompts fits where one of 8 does."""
    plan = with_study(tmp_path, {"prompts": 8}, V100)
    large, small = (replace(CELL, batch=batch) for batch in (512, 8))
    assert plan.need(large) == plan.need(small)
    assert plan.fits(large) is True
    assert forecaster(tmp_path).fits(large) is False, "of 4,096 prompts it has 512"


@pytest.mark.parametrize("engine", ["reference", "reference-v2", "fast", "fast-drop", "fast-refill", "hf"])
def test_the_longest_job_is_that_of_responses_without_an_end(tmp_path: Path, engine: str) -> None:
    make_root(tmp_path)
    with_tokens(tmp_path)
    cell = replace(CELL, engine=engine, length=1024)
    found = forecaster(tmp_path).cell(cell)
    assert found.longest_job_s is not None
    assert found.allocation_duration_s is not None
    with_tokens(tmp_path, output_mean=1e7)
    endless = forecaster(tmp_path).cell(cell)
    assert endless.allocation_duration_s is not None
    assert found.longest_job_s == pytest.approx(endless.allocation_duration_s, rel=0.01)
    if engine == "reference":
        assert found.longest_job_s == found.allocation_duration_s
    else:
        assert found.longest_job_s > 1.5 * found.allocation_duration_s


@pytest.mark.parametrize(
    ("gpu", "waited_s"),
    [(V100, 900), (PROCESSORS, 0), ({**PROCESSORS, "meter": "nvml"}, 900)],
)
def test_the_longest_job_waits_for_warm_devices(tmp_path: Path, gpu: dict[str, Any], waited_s: int) -> None:
    """A time limit has to hold the gate; how warm processors are no meter tells."""
    with_gate, without = (
        with_study(tmp_path, study, gpu).cell(CELL)
        for study in ({"cool_down_c": 40.0, "cool_down_max_s": 900.0}, {"cool_down_max_s": 900.0})
    )
    assert with_gate.longest_job_s is not None
    assert without.longest_job_s is not None
    assert with_gate.longest_job_s - without.longest_job_s == pytest.approx(waited_s)
    assert with_gate.allocation_duration_s == without.allocation_duration_s


def test_a_warm_up_of_a_queue_has_the_prompts_of_its_places_alone(tmp_path: Path) -> None:
    def beside_s(engine: str) -> float:
        found = forecaster(tmp_path).cell(replace(CELL, engine=engine, batch=8))
        assert found.allocation_duration_s is not None
        assert found.duration_s is not None
        return found.allocation_duration_s - found.duration_s

    assert beside_s("fast-refill") == pytest.approx(beside_s("fast"), rel=0.02)


def test_a_studys_constants_change_its_time(tmp_path: Path) -> None:
    def part_s(engine: str, part: str, **constants: Any) -> float:
        cell = replace(CELL, engine=engine, model="llama-7b", shards=1, batch=1)
        return with_study(tmp_path, constants, V100).cell(cell).phases["decode"].parts_s[part]

    captured_s = part_s("fast", "launch", cuda_graphs="always")
    assert part_s("fast", "launch") == captured_s < part_s("fast", "launch", cuda_graphs="never") / 100
    assert part_s("hf", "sampling", temperature=0.0) < part_s("hf", "sampling") / 40


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    per_node = {"per_node": 2, "slurm": {}}
    plan = forecaster(tmp_path, per_node, launcher="slurm")
    notes = plan.cell(CELL).notes
    assert any("data set 'gsm8k' has no `tokens`" in note for note in notes)
    assert any("links.between" in note for note in notes)
    said = forecaster(tmp_path, per_node, launcher="slurm", links=LINKS).cell(CELL).notes
    assert not any("links" in note for note in said)


def test_money_and_carbon_come_from_the_sites_own_figures(tmp_path: Path) -> None:
    prices = {"currency": "EUR", "source": "a list"}
    carbon = {"g_per_kwh": 400, "source": "a grid", "year": 2025}
    free = forecaster(tmp_path).cell(CELL)
    assert (free.cost, free.carbon_kg) == (None, None)
    hourly = forecaster(tmp_path, prices={**prices, "gpu_hour": 2.0}, pue=1.5, carbon=carbon).cell(CELL)
    assert hourly.gpu_hours is not None
    assert hourly.energy_j is not None
    assert hourly.allocation_energy_j is not None
    assert hourly.cost == pytest.approx(2 * hourly.gpu_hours)
    assert hourly.carbon_kg == pytest.approx(hourly.allocation_energy_j / 3.6e6 * 1.5 * 0.4)
    electric = forecaster(tmp_path, prices={**prices, "kwh": 0.3}, pue=1.5).cell(CELL)
    assert electric.cost == pytest.approx(hourly.allocation_energy_j / 3.6e6 * 1.5 * 0.3)


def test_processors_cost_their_electricity_where_gpu_hours_have_a_price(tmp_path: Path) -> None:
    prices = {"currency": "EUR", "gpu_hour": 2.0, "source": "a list"}
    cell = replace(CELL, gpu="cpu", model="llama-7b", precision="fp32", shards=1)
    plan = forecaster(tmp_path, prices=prices, pue=1.5)
    assert plan.cell(cell).cost is None, "0 GPU hours x a price is no price"
    own = {"cpu": {**GPUS["cpu"], "tdp_w": 200.0, "price_gpu_hour": 0.1}, "v100": V100}
    root = tmp_path / "own"
    study = parse_model(Study, study_content(prompts=4096), "study.yaml", StudyError)
    found = Forecaster(make_root(root), "paper", study, make_site(root, gpus=own, prices=prices)).cell(cell)
    assert found.allocation_duration_s is not None
    assert found.cost == pytest.approx(0.1 * GPUS["cpu"]["per_node"] * found.allocation_duration_s / 3600)


def test_joules_of_a_job_hold_rest_before_and_after_its_window_and_of_gpus_that_only_wait(
    tmp_path: Path,
) -> None:
    idle_w = DATA_SHEETS["v100-pcie-32gb"].idle_w
    for cell in (CELL, replace(CELL, model="llama-7b", shards=1)):
        found = forecaster(tmp_path, links=LINKS).cell(cell)
        assert found.energy_j is not None
        assert found.duration_s is not None
        assert found.allocation_duration_s is not None
        rest_s = 8 * found.allocation_duration_s - cell.shards * found.duration_s
        assert found.allocation_energy_j == pytest.approx(found.energy_j + idle_w * rest_s)


def test_processors_whose_rest_is_not_known_draw_over_the_job_what_they_do_at_work(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    cpu = {**GPUS["cpu"], "tdp_w": 60}
    study = parse_model(Study, study_content(prompts=64), "study.yaml", StudyError)
    plan = Forecaster(root, "paper", study, make_site(tmp_path, gpus={"v100": V100, "cpu": cpu}))
    found = plan.cell(replace(CELL, gpu="cpu", model="llama-7b", precision="fp32", shards=1))
    assert found.power_w == pytest.approx(60)
    assert found.allocation_duration_s is not None
    assert found.allocation_energy_j == pytest.approx(60 * found.allocation_duration_s)


def test_a_cap_on_cells_that_mostly_wait_for_collectives_is_said_not_to_be_believed(tmp_path: Path) -> None:
    two_a_node = {"per_node": 2, "data_sheet": "v100-pcie-32gb"}
    slow = {way: {"gb_s": 1.5, "latency_us": 30, "source": "a test"} for way in ("inside", "between")}
    plan = forecaster(tmp_path, two_a_node, launcher="slurm", links=slow)

    def is_warned(cell: Cell) -> bool:
        return any("mostly waits for collectives" in note for note in plan.cell(cell).notes)

    assert is_warned(replace(CELL, cap="150"))
    assert not is_warned(replace(CELL, cap="250")), "as much as the TDP"
    assert not is_warned(CELL)
    assert not is_warned(replace(CELL, model="llama-7b", shards=1, cap="150"))


def test_what_holds_no_limit_is_told_with_the_limit_that_it_is(tmp_path: Path) -> None:
    plan = forecaster(tmp_path, power_limits={"set_by": "nvml"}, **calibration(power=1e6))
    for cap, limit in (("none", "TDP 250 W"), ("150", "cap 150")):
        notes = plan.cell(replace(CELL, cap=cap)).notes
        assert f"{limit}: v100-pcie-32gb draws more at rest" in notes


def test_more_ranks_on_a_node_take_more_of_its_memory(tmp_path: Path) -> None:
    plan = forecaster(tmp_path)
    one, eight = (plan.cell(replace(CELL, model="llama-7b", shards=shards)) for shards in (1, 8))
    assert one.host_memory_gib is not None
    assert eight.host_memory_gib is not None
    weights_gib = 12.6
    assert one.host_memory_gib > weights_gib
    assert eight.host_memory_gib > one.host_memory_gib
