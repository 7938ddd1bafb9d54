"""Guards the rehearsal of the paper's study on a real Slurm: a slice of it, on as many nodes as the whole.

Simulated GPUs draw what the plan says, Slurm runs the jobs over up to 16 nodes, and no rank loads a model.
"""

from __future__ import annotations

import contextlib
import csv
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from shardwatt.layout import CellPaths
from shardwatt.matrix import expand
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.forecast import Forecaster
from shardwatt.readings import Energy, Method, Status
from shardwatt.recordfiles import read
from shardwatt.records import Outcome, Record
from shardwatt.site import load_site
from shardwatt.study import load_study
from slurm_cluster import Cluster, ClusterError
from slurm_cluster.layout import state_file
from slurm_cluster.network import bridges
from slurm_cluster.rehearsal import SITE, first_job_line, groups, prepare
from slurm_project import PATIENCE_S, SlurmProject, await_true
from workflow_project import ROOT, Project, copy_project, planned_jobs

pytestmark = pytest.mark.slurm

STUDY = "slice"

#: Five cells of the paper: Table III at its shortest length, and figure 4 at the fewest shards and the most;
#: at the largest batch, eight V100s are too few by the plan.
MATRIX = [
    {
        "model": "llama-65b",
        "gpu": "a100",
        "shards": 4,
        "batch": 64,
        "length": 256,
        "dataset": "gsm8k",
        "cap": [250, 175, 150],
    },
    *(
        {
            "model": "llama-65b",
            "gpu": "v100",
            "shards": shards,
            "batch": batch,
            "length": 512,
            "dataset": "alpaca",
            "cap": 250,
        }
        for shards, batch in ((8, 512), (32, 64))
    ),
]

#: Of the paper's figures one over the shards, one of Joules and one that compares GPU types.
FIGURES = (
    "throughput--cap-250",
    *(f"{kind}--llama-65b--v100--length-512--cap-250" for kind in ("power-by-shards", "energy-per-token")),
)


@dataclass
class Rehearsed:
    """The slice, run.

    Attributes:
        project: where.
        records: of its cells, by GPU type, shards and cap.
        forecasts: what the plan says of them.
    """

    project: SlurmProject
    records: dict[tuple[str, int, str], Record]
    forecasts: dict[tuple[str, int, str], CellForecast]

    @property
    def results(self) -> Path:
        return self.project.root / "results" / STUDY


def write_slice(project: Project, **changes: object) -> None:
    """A rehearsal of a part of the paper's study, everything short."""
    content = {
        "title": "A slice of the paper",
        "rehearses": "paper",
        "unfit": "run",
        "simulated_window_s": 2.0,
        "idle_settle_s": 0.2,
        "idle_read_s": 0.5,
        "matrix": MATRIX,
        **changes,
    }
    (project.root / "config" / "studies" / f"{STUDY}.yaml").write_text(yaml.safe_dump(content))


def targets() -> list[str]:
    """All cells of the slice, its tables and figures."""
    return [
        f"results/{STUDY}/tables/published.csv",
        *(f"results/{STUDY}/figures/{name}.svg" for name in FIGURES),
    ]


@pytest.fixture(scope="module")
def project(
    slurm_machine: None,
    new_project: Callable[[Path, Cluster, Path], SlurmProject],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SlurmProject]:
    base = tmp_path_factory.mktemp("slurm")
    with Cluster(base, groups=groups(), conf=[first_job_line()]) as cluster:
        root = tmp_path_factory.mktemp("rehearsal") / "a project"
        made = new_project(root, cluster, tmp_path_factory.mktemp("models"))
        made.environment |= prepare(base) | {"SHARDWATT_SITE": str(root / SITE)}
        write_slice(made)
        yield made
        made.stop()


@pytest.fixture(scope="module")
def rehearsed(project: SlurmProject) -> Rehearsed:
    run = project.start(*targets(), "--configfile", str(SITE))
    assert run.process.wait(2 * PATIENCE_S) == 0, run.output
    told = project.shardwatt("report", STUDY)
    assert told.returncode == 0, told.stderr
    study, site = load_study(project.root, STUDY), load_site([project.root / SITE])
    forecaster = Forecaster(project.root, STUDY, study, site)
    cells = expand(project.root, STUDY, study, site)
    keys = [(cell.gpu, cell.shards, cell.cap) for cell in cells]
    records = [read(Record, CellPaths(project.root, STUDY, cell).record) for cell in cells]
    forecasts = map(forecaster.cell, cells)
    return Rehearsed(project, dict(zip(keys, records, strict=True)), dict(zip(keys, forecasts, strict=True)))


def energy_of(record: Record) -> Energy:
    assert record.energy is not None
    return record.energy


def test_every_cell_ran_on_its_own_nodes_and_gpus(rehearsed: Rehearsed) -> None:
    assert len(rehearsed.records) == 5
    for (gpu, shards, _), record in rehearsed.records.items():
        assert record.outcome is Outcome.OK
        assert len(set(record.provenance.nodes)) == record.nodes == shards // 2
        assert all(node.startswith(f"{gpu}-") for node in record.provenance.nodes)
        devices = [one.device for one in energy_of(record).devices]
        assert len({device.uuid for device in devices}) == len(devices) == shards


def test_it_took_the_time_and_drew_the_watts_of_the_plan(rehearsed: Rehearsed) -> None:
    for key, record in rehearsed.records.items():
        forecast, energy = rehearsed.forecasts[key], energy_of(record)
        assert record.timings is not None
        assert forecast.duration_s is not None
        assert forecast.energy_j is not None
        assert record.timings.duration_s == pytest.approx(forecast.duration_s, rel=0.02)
        assert (energy.window.method, energy.window.status) == (Method.NVML_COUNTER, Status.MEASURED)
        # A window of two seconds on a machine that starts dozens of processes beside it.
        assert energy.window.joules == pytest.approx(forecast.energy_j, rel=0.1)


def test_no_record_passes_for_a_measurement(rehearsed: Rehearsed) -> None:
    for record in rehearsed.records.values():
        assert record.cell.engine == "simulated"
        assert record.simulated is not None


def test_caps_were_enforced_on_every_gpu(rehearsed: Rehearsed) -> None:
    for (_, shards, cap), record in rehearsed.records.items():
        assert record.power_cap is not None
        assert [one.enforced_w for one in record.power_cap.devices] == [float(cap)] * shards
    assert {cap for _, _, cap in rehearsed.records} == {"250", "175", "150"}


def test_a_published_cell_is_rehearsed_although_it_does_not_fit_by_the_plan(rehearsed: Rehearsed) -> None:
    assert rehearsed.forecasts["v100", 8, "250"].fits is False
    assert rehearsed.records["v100", 8, "250"].outcome is Outcome.OK


def test_figures_tables_and_report_say_that_they_are_simulated(rehearsed: Rehearsed) -> None:
    for name in FIGURES:
        picture = (rehearsed.results / "figures" / f"{name}.svg").read_text()
        assert re.search(r"<!-- .*\(simulated\) -->", picture), name
    for table in (rehearsed.results / "tables").glob("*.md"):
        text = table.read_text()
        assert "simulated" in text or "|" not in text, table.name
    assert "no model ran" in (rehearsed.results / "report.html").read_text()


def test_published_values_stand_beside_those_of_the_slice(rehearsed: Rehearsed) -> None:
    with (rehearsed.results / "tables" / "published.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    caps = [row for row in rows if row["where"] == "Table III"]
    assert {(row["cap"], row["quantity"].split(",")[0]) for row in caps} == {
        (cap, quantity) for cap in ("175", "150") for quantity in ("time", "energy", "token rate")
    }
    assert all(row["here"] and row["difference"] for row in caps)
    watts = {row["shards"]: row for row in rows if row["unit"] == "W"}
    assert float(watts["32"]["here"]) > 0
    assert {row["simulated"] for row in rows} == {"yes"}


def test_started_again_it_runs_nothing_twice(rehearsed: Rehearsed) -> None:
    done = rehearsed.project.snakemake("-n", *targets(), "--configfile", str(SITE))
    assert done.returncode == 0, done.stdout
    assert "cell" not in planned_jobs(done.stdout)
    rehearsed.project.assert_nothing_left()


def test_after_ctrl_c_neither_jobs_nor_cluster_are_left_and_the_next_rehearsal_goes_on(
    new_base: Callable[[], Path], compiled: Callable[[Path], None], tmp_path: Path
) -> None:
    base, project = new_base(), copy_project(tmp_path / "a project")
    compiled(project.root)
    matrix = [{**MATRIX[0], "model": "llama-7b", "shards": shards, "cap": 250} for shards in (1, 2)]
    write_slice(project, matrix=matrix, simulated_window_s=30.0)
    words = [sys.executable, "-m", "slurm_cluster.rehearsal", "--folder", str(base), "--study", STUDY]
    environment = project.environment | {"PYTHONPATH": str(ROOT / "tests")}
    log = tmp_path / "log"
    with log.open("w") as stream:
        first = subprocess.Popen(words, cwd=project.root, env=environment, stdout=stream, stderr=stream)
        try:
            await_true(lambda: has_running_job(base), "a running job", said=log.read_text)
            first.send_signal(signal.SIGINT)
            assert first.wait(PATIENCE_S) == 130, log.read_text()
        finally:
            first.kill()
            first.wait()
    assert "make rehearse-paper` goes on" in log.read_text()
    assert not state_file(base).exists()
    assert bridges(base) == []
    assert not list(project.root.glob("results/*/.work/*"))
    write_slice(project, matrix=matrix)
    # The first one was to make all of the report; tables are enough here.
    words.append(f"results/{STUDY}/tables/published.md")
    second = subprocess.run(
        words, cwd=project.root, env=environment, capture_output=True, text=True, timeout=2 * PATIENCE_S
    )
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"results/{STUDY}/tables/published.md" in second.stdout
    assert len(list(project.root.glob(f"results/{STUDY}/cells/**/result.json"))) == 2
    assert not state_file(base).exists()


def has_running_job(base: Path) -> bool:
    with contextlib.suppress(ClusterError):
        return "RUNNING" in Cluster.running(base).run("squeue", "--noheader", "--format=%T")
    return False


def test_make_names_the_rehearsal() -> None:
    said = subprocess.run(["make", "-n", "rehearse-paper"], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "-m slurm_cluster.rehearsal" in said.stdout
    helped = subprocess.run(
        [sys.executable, "-m", "slurm_cluster.rehearsal", "--help"],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
    )
    assert "paper-rehearsal" in helped.stdout
