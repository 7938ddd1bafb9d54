"""Guards simulated cells from end to end on one machine: real ranks, real meters, no model and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import simulated_nvml
from shardwatt.cell import Cell
from shardwatt.layout import CellPaths
from shardwatt.matrix import expand
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.forecast import Forecaster
from shardwatt.readings import Method, Status
from shardwatt.recordfiles import read
from shardwatt.records import Outcome, Record
from shardwatt.run.simulated import MARGIN_S
from shardwatt.site import load_site
from shardwatt.study import load_study
from small_project import BLOCK, make_root, site_content, study_content, write_yaml

#: Of simulated GPUs, by themselves.
OWN_W = 45
WINDOW_S = 2.0

GPUS = {
    "a100": {
        "kind": "cuda",
        "per_node": 2,
        "memory_gib": 80,
        "data_sheet": "a100-sxm-80gb",
        "power_limits_w": [100, 400],
    }
}
MATRIX = {**BLOCK, "engine": "simulated", "model": "llama-13b", "gpu": "a100", "shards": 2, "length": 128}


class Rehearsal:
    """A project of simulated cells on this machine.

    Args:
        folder: for it.
        environment: under which its cells run.
        study: keys of its study, and axes of its only block.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], **study: Any) -> None:
        self.root = folder / "a project"
        self.root.mkdir()
        make_root(self.root)
        (self.root / "Snakefile").touch()
        # Cells of one machine wait for each other there; here another worker's are not to be waited for.
        self.environment = {**os.environ, **environment, "TMPDIR": str(folder)}
        self.environment.pop("SHARDWATT_ROOT", None)
        axes = {axis: study.pop(axis) for axis in list(study) if axis in {*MATRIX, "cap", "repeat"}}
        usual = {"prompts": 256, "idle_read_s": 0, "simulated_window_s": WINDOW_S}
        content = study_content(matrix=[{**MATRIX, **axes}], **{**usual, **study})
        write_yaml(self.root / "config" / "studies" / "rehearsal.yaml", content)
        limits = {"set_by": "nvml", "leases": str(folder / "leases")}
        self.site_file = self.root / "site.yaml"
        site = site_content(self.root, gpus=GPUS, power_limits=limits)
        self.site_file.write_text(yaml.safe_dump(site))

    @property
    def cells(self) -> tuple[Cell, ...]:
        study, site = load_study(self.root, "rehearsal"), load_site([self.site_file])
        return expand(self.root, "rehearsal", study, site)

    def forecast(self, cell: Cell) -> CellForecast:
        study, site = load_study(self.root, "rehearsal"), load_site([self.site_file])
        return Forecaster(self.root, "rehearsal", study, site).cell(cell)

    def paths(self, cell: Cell) -> CellPaths:
        return CellPaths(self.root, "rehearsal", cell)

    def run(self) -> list[Record]:
        """Run all cells in one job, and read their records."""
        words = ["run-cell", "rehearsal", *(cell.path for cell in self.cells)]
        done = subprocess.run(
            [sys.executable, "-m", "shardwatt", *words, "--site", str(self.site_file)],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [read(Record, self.paths(cell).record) for cell in self.cells]

    def near(self, cell: Cell, record: Record, expected_j: float | None) -> Any:
        """Joules that are a window's, as well as its samples tell.

        GPUs draw what they draw at a border for some tenths of a second around it, so that it does not matter
        when samples come; those of a busy machine come later.
        """
        assert record.timings is not None
        assert expected_j is not None
        rows = pq.read_table(self.paths(cell).results / "power.parquet").to_pydict()
        first = [t_s for t_s, uuid in zip(rows["t_s"], rows["uuid"], strict=True) if uuid == rows["uuid"][0]]
        # The window's time is stretched in what is recorded.
        stop_s = record.timings.duration_s
        real_s = [*np.interp(first, [0, stop_s], [0, WINDOW_S])]
        real_s = [real + min(t_s, 0) + max(t_s - stop_s, 0) for real, t_s in zip(real_s, first, strict=True)]
        late_s = max(float(np.max(np.diff(real_s))) - MARGIN_S, 0.0)
        return pytest.approx(expected_j, rel=0.01 + 2 * late_s / WINDOW_S)


@pytest.fixture
def simulated_gpus(library: Path, tmp_path: Path) -> dict[str, str]:
    """Two GPUs that draw what ranks tell them, within the limits that are set."""
    return simulated_nvml.settings(
        library,
        POWER=f"{OWN_W};{OWN_W}",
        LIMITS="100:400:400",
        # So fine that what a counter lags behind is nothing beside a window of two seconds.
        TICK_S=0.01,
        STATE=tmp_path / "driver",
        DRAW=tmp_path / "draw",
    )


def test_what_ranks_import_brings_neither_torch_nor_other_weights() -> None:
    """Many of them start on a small machine."""
    program = (
        "import json, sys\n"
        "import shardwatt.run.rank, shardwatt.run.simulated\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    heavy = {"torch", "numpy", "pandas", "pyarrow", "transformers", "sentencepiece", "submitit", "pynvml"}
    assert "shardwatt" in loaded
    assert loaded & heavy == set()


def test_a_simulated_cell_is_metered_and_recorded_at_the_plans_level(
    simulated_gpus: dict[str, str], tmp_path: Path
) -> None:
    rehearsal = Rehearsal(tmp_path, simulated_gpus)
    (cell,) = rehearsal.cells
    forecast = rehearsal.forecast(cell)
    assert forecast.duration_s is not None
    assert forecast.energy_j is not None
    (record,) = rehearsal.run()
    assert record.simulated is not None
    assert record.simulated.engine == "reference"
    assert record.simulated.time_lapse == pytest.approx(forecast.duration_s / WINDOW_S)
    assert record.timings is not None
    assert record.timings.duration_s == pytest.approx(forecast.duration_s)
    for name, phase in forecast.phases.items():
        assert getattr(record.timings, f"{name}_s") == pytest.approx(phase.duration_s)
    assert record.timings.between_s == pytest.approx(0, abs=1e-3 * forecast.duration_s)
    # Start and end are real time.
    assert 0 < record.timings.job_duration_s - record.timings.duration_s < 600
    counts = record.counts
    assert counts is not None
    assert (counts.prompts, counts.batches) == (256, forecast.batches)
    assert counts.output_tokens == counts.output_tokens_reencoded == forecast.output_tokens
    assert counts.generated_tokens == forecast.generated_tokens
    assert 0 < counts.words < counts.output_tokens
    energy = record.energy
    assert energy is not None
    assert (energy.window.status, energy.window.method) == (Status.MEASURED, Method.NVML_COUNTER)
    assert energy.window.joules == rehearsal.near(cell, record, forecast.energy_j)
    assert [device.device.index for device in energy.devices] == [0, 1]
    assert (energy.cpu.joules, energy.slurm_node.joules) == (None, None)
    assert energy.slurm_node.detail == "not asked: the cell is simulated"
    assert "short_window" not in {found.code for found in energy.violations}
    assert record.utilisation is not None
    # The plan's, and not what a simulated GPU shows.
    for shown in (record.utilisation.sm_utilisation, record.utilisation.memory_activity):
        assert shown.mean is not None
        assert 0.1 < shown.mean <= 1
        assert shown.mean not in (0.75, 0.4)
    assert record.utilisation.clock_sm_mhz.mean is None
    assert record.efficiency is not None
    assert record.efficiency.decode.tokens_per_s == pytest.approx(
        record.efficiency.decode.tokens / forecast.phases["decode"].duration_s
    )
    responses = pq.read_table(rehearsal.paths(cell).results / "responses.parquet").to_pydict()
    assert set(responses["text"]) == {""}
    assert sum(responses["output_tokens"]) == forecast.output_tokens
    batches = pq.read_table(rehearsal.paths(cell).results / "batches.parquet").to_pydict()
    assert batches["stop_s"][-1] == pytest.approx(forecast.duration_s)
    samples = pq.read_table(rehearsal.paths(cell).results / "power.parquet").to_pydict()
    assert max(samples["t_s"]) > forecast.duration_s
    # At rest before and after.
    assert min(samples["power_w"]) == OWN_W


def test_without_simulated_gpus_the_plans_watts_are_an_estimate(tmp_path: Path) -> None:
    """Whatever GPUs there are: theirs are not the cell's."""
    rehearsal = Rehearsal(tmp_path, {"SIMULATED_NVML_DRAW": ""})
    (cell,) = rehearsal.cells
    forecast = rehearsal.forecast(cell)
    assert forecast.energy_j is not None
    (record,) = rehearsal.run()
    assert record.energy is not None
    window = record.energy.window
    assert (window.status, window.method) == (Status.ESTIMATED, Method.ESTIMATE)
    assert window.detail == "simulated: the plan's watts, no measurement"
    assert window.joules == rehearsal.near(cell, record, forecast.energy_j)
    assert record.provenance.device_names == ["a100 (simulated)"]
    assert record.energy.job.status is Status.ESTIMATED


def test_caps_are_set_on_the_gpus_of_simulated_cells_which_run_one_after_the_other_in_one_job(
    simulated_gpus: dict[str, str], tmp_path: Path
) -> None:
    rehearsal = Rehearsal(tmp_path, simulated_gpus, cap=["none", 200])
    free, capped = rehearsal.run()
    assert [record.provenance.was_loaded for record in (free, capped)] == [False, True]
    assert free.power_cap is None
    assert capped.power_cap is not None
    assert [one.enforced_w for one in capped.power_cap.devices] == [200, 200]
    assert [one.restored_w for one in capped.power_cap.devices] == [400, 400]
    mean_w = []
    for cell, record in zip(rehearsal.cells, (free, capped), strict=True):
        forecast = rehearsal.forecast(cell)
        assert record.energy is not None
        assert record.energy.window.joules == rehearsal.near(cell, record, forecast.energy_j)
        assert record.timings is not None
        assert record.energy.window.joules is not None
        mean_w.append(record.energy.window.joules / record.timings.duration_s / 2)
    # The plan is just at the cap.
    assert mean_w[1] == rehearsal.near(rehearsal.cells[1], capped, 200)
    assert mean_w[0] > 1.05 * mean_w[1]


def test_idle_watts_are_read_as_of_any_cell(simulated_gpus: dict[str, str], tmp_path: Path) -> None:
    rehearsal = Rehearsal(tmp_path, simulated_gpus, idle_settle_s=0.2, idle_read_s=1.5)
    (record,) = rehearsal.run()
    assert record.energy is not None
    for idle in (record.energy.idle_unloaded, record.energy.idle_loaded):
        assert idle.power_w == pytest.approx(2 * OWN_W, rel=0.02)
        assert idle.read_s == pytest.approx(1.5)


def test_what_does_not_fit_ends_so_and_runs_where_the_study_says_so(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    refused = Rehearsal(tmp_path / "one", {"SIMULATED_NVML_DRAW": ""}, model="llama-65b", shards=1)
    (record,) = refused.run()
    assert (record.outcome, record.energy) == (Outcome.DOES_NOT_FIT, None)
    assert record.reason is not None
    assert "which has 80 GiB" in record.reason
    assert record.simulated is not None
    assert record.simulated.fits is False
    (tmp_path / "two").mkdir()
    held = Rehearsal(tmp_path / "two", {"SIMULATED_NVML_DRAW": ""}, model="llama-65b", shards=1, unfit="run")
    (record,) = held.run()
    assert record.outcome is Outcome.OK
    assert record.simulated is not None
    assert record.simulated.fits is False
    assert record.memory.planned_memory_gib is not None
    assert record.memory.planned_memory_gib > 80
