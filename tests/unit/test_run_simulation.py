"""Guards what a simulated cell is to hold: the plan's watts for its window, and a word where none are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardwatt.cell import Cell
from shardwatt.errors import CellFailure, Reason
from shardwatt.jobshape import job_shape
from shardwatt.matrix import expand
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.forecast import Forecaster
from shardwatt.run.exchange import RunReport
from shardwatt.run.job import Job, plan_job
from shardwatt.run.simulation import Simulation, simulate
from shardwatt.site import Site
from shardwatt.study import Study
from small_project import BLOCK, make_root, make_site, study_content

GPUS: dict[str, dict[str, Any]] = {
    "a100": {"kind": "cuda", "per_node": 8, "memory_gib": 80, "data_sheet": "a100-sxm-80gb"},
    "own": {
        "kind": "cuda",
        "per_node": 8,
        "memory_gib": 80,
        "peak": {"memory_bandwidth_gb_s": 1000, "tflops": {"fp16": 100}, "source": "a test"},
    },
    "bare": {"kind": "cuda", "per_node": 8, "memory_gib": 80},
    "cpu": {
        "kind": "cpu",
        "per_node": 4,
        "memory_gib": 2,
        "tdp_w": 120,
        "peak": {"memory_bandwidth_gb_s": 20, "tflops": {"fp32": 0.1}, "source": "a test"},
    },
}


@pytest.fixture(autouse=True)
def no_simulated_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIMULATED_NVML_DRAW", raising=False)


def asked(tmp_path: Path, **axes: Any) -> tuple[Path, Study, Site, Cell]:
    """A project, with a study of one simulated cell, on a machine of several GPU types."""
    keys = {key: axes.pop(key) for key in ("unfit", "simulated_window_s", "energy") if key in axes}
    block = {**BLOCK, "engine": "simulated", "gpu": "a100", "shards": 4, **axes}
    study = Study(**study_content(prompts=256, matrix=[block], **keys))
    root = tmp_path / "project"
    if not root.exists():
        root.mkdir()
        make_root(root)
    site = make_site(root, gpus=GPUS)
    (cell,) = expand(root, "test", study, site)
    return root, study, site, cell


def simulated(tmp_path: Path, **axes: Any) -> tuple[Simulation, CellForecast]:
    root, study, site, cell = asked(tmp_path, **axes)
    forecast = Forecaster(root, "test", study, site).cell(cell)
    return simulate(root, "test", study, site, cell, job_shape(site, cell.gpu, cell.shards)), forecast


def held_j(simulation: Simulation) -> float:
    """What a rank's device draws in the window, in J of real time."""
    acting = simulation.acting()
    ends_s = [*(start_s for start_s, _ in acting.steps[1:]), acting.window_s]
    return sum(
        power_w * (end_s - start_s) for (start_s, power_w), end_s in zip(acting.steps, ends_s, strict=True)
    )


@pytest.mark.parametrize("batch", [16, 256])
@pytest.mark.parametrize("window_s", [2.0, 0.5])
def test_ranks_hold_the_planned_energy_in_a_scaled_down_time(
    tmp_path: Path, window_s: float, batch: int
) -> None:
    """In steps by phase where a meter can see them, otherwise at their mean: the same joules."""
    simulation, forecast = simulated(tmp_path, batch=batch, simulated_window_s=window_s)
    assert forecast.duration_s is not None
    assert forecast.energy_j is not None
    assert simulation.acting().window_s == window_s
    assert simulation.lapse == pytest.approx(forecast.duration_s / window_s)
    assert 4 * held_j(simulation) * simulation.lapse == pytest.approx(forecast.energy_j, rel=1e-6)
    powers_w = {power_w for _, power_w in simulation.acting().steps}
    assert (len(powers_w) > 1) == (batch == 256)


def test_batches_are_reported_in_the_real_time_of_their_window(tmp_path: Path) -> None:
    simulation, forecast = simulated(tmp_path, batch=64)
    report = RunReport(
        window_start_s=1000.0,
        window_stop_s=1002.0,
        rendezvous_s=0.0,
        load_s=0.0,
        warmup_s=0.0,
        idle_loaded=None,
        batches=[],
        versions={},
        engine_notes={},
    )
    batches = simulation.report(report).batches
    assert len(batches) == forecast.batches == 4
    assert [batches[0].start_s, batches[-1].stop_s] == pytest.approx([1000.0, 1002.0])
    assert sum(len(tokens) for run in batches for tokens in run.tokens) == forecast.output_tokens
    assert simulation.acting().generated_tokens == forecast.generated_tokens


def test_its_record_says_what_it_stands_for(tmp_path: Path) -> None:
    simulation, forecast = simulated(tmp_path, engine="simulated-fast")
    record = simulation.record()
    assert (record.engine, record.fits, record.window_s) == ("fast", True, 2.0)
    assert record.time_lapse == pytest.approx(simulation.lapse)
    assert record.notes == list(forecast.notes)
    assert record.watts == "the plan's, replayed"


def test_watts_are_drawn_by_simulated_gpus_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation, _ = simulated(tmp_path)
    replay = simulation.replay("a100")
    assert replay is not None
    assert (replay.device, replay.has_power, replay.idle_w) == ("a100 (simulated)", True, simulation.idle_w)
    assert simulation.acting().draw_file is None
    monkeypatch.setenv("SIMULATED_NVML_DRAW", str(tmp_path / "draw"))
    simulation, _ = simulated(tmp_path)
    assert simulation.acting().draw_file == tmp_path / "draw"
    assert simulation.replay("a100") is None
    assert "simulated GPUs" in simulation.watts


def test_a_gpu_without_watts_holds_none_and_its_energy_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where GPUs are simulated: their own watts would pass for the plan's."""
    monkeypatch.setenv("SIMULATED_NVML_DRAW", str(tmp_path / "draw"))
    simulation, forecast = simulated(tmp_path, gpu="own")
    assert forecast.power_w is None
    assert (simulation.acting().steps, simulation.draw_file) == ([], None)
    replay = simulation.replay("own")
    assert replay is not None
    assert not replay.has_power
    assert "predicts no watts" in replay.detail
    assert "unknown" in simulation.watts


def test_a_gpu_of_which_nothing_is_known_cannot_be_simulated(tmp_path: Path) -> None:
    root, study, site, cell = asked(tmp_path, gpu="bare")
    with pytest.raises(CellFailure, match="needs a plan of the cell's time") as caught:
        plan_job(root, "test", study, site, cell)
    assert caught.value.reason is Reason.CONFIGURATION
    assert "nor `peak` says what" in str(caught.value)


def test_what_does_not_fit_is_refused_unless_the_study_runs_it(tmp_path: Path) -> None:
    too_few = {"shards": 1}
    simulation, forecast = simulated(tmp_path, **too_few)
    assert forecast.fits is False
    refusal = simulation.acting().does_not_fit
    assert refusal is not None
    assert "GiB of each a100, which has 80 GiB" in refusal
    assert "unfit: run" in refusal
    assert refusal.startswith("predicted: "), "nothing was tried"
    record = simulation.record()
    assert (record.fits, record.time_lapse, record.window_s) == (False, None, None)
    simulation, _ = simulated(tmp_path, **too_few, unfit="run")
    assert simulation.acting().does_not_fit is None
    assert (simulation.record().fits, simulation.record().window_s) == (False, 2.0)


def test_a_record_of_another_forecast_is_not_the_cells(tmp_path: Path) -> None:
    """Its fingerprint stands where a model's would: what the ranks held is what the record is worth."""
    first, again, longer = (simulated(tmp_path, **axes)[0] for axes in ({}, {}, {"length": 128}))
    assert first.inputs.model_fingerprint.startswith("simulated-")
    assert first.inputs == again.inputs
    assert first.inputs.model_fingerprint != longer.inputs.model_fingerprint


def planned(tmp_path: Path, **axes: Any) -> Job:
    root, study, site, cell = asked(tmp_path, **axes)
    return plan_job(root, "test", study, site, cell)


def test_a_job_without_a_model_is_whole_and_its_ranks_are_told_no_prompts(tmp_path: Path) -> None:
    job = planned(tmp_path, energy="measured")
    assert (job.checkpoint, job.tokenizer, job.prompts) == (None, None, 256)
    # A rehearsal of a study that refuses estimates is one all the same.
    assert not job.measured_only
    assert planned(tmp_path).inputs == job.inputs
    spec = job.spec(job_id="7", log_folder=tmp_path, launched_at_s=0.0)
    assert (spec.batches, spec.checkpoint, spec.vocab_size) == ([], None, 32_000)
    assert spec.acting is not None
    assert (spec.acting.prompts, spec.acting.window_s) == (256, 2.0)


def test_processors_are_simulated_too(tmp_path: Path) -> None:
    simulation, forecast = simulated(
        tmp_path, gpu="cpu", shards=2, precision="fp32", model="llama-7b", batch=8
    )
    assert forecast.fits is None
    assert simulation.acting().does_not_fit is None
    assert simulation.duration_s == forecast.duration_s
