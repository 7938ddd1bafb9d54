"""Guards a measured cell on one machine: ranks on processors, meters on simulated GPUs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

import simulated_dcgm
import simulated_nvml
from shardwatt.layout import CellPaths
from shardwatt.readings import Status
from shardwatt.recordfiles import read
from shardwatt.records import Record
from workflow_project import Project

# One worker: what these share is run once.
pytestmark = pytest.mark.workflow

#: W of each GPU of the machine at work; the job has the second and the third.
POWER_W = (50, 250, 350, 999)
WORK_W = 600
#: A limit holds each down to 100 W until its ranks are about to open the window.
LIMIT_W, IDLE_W = 100, 200


def let_go(limits: Path) -> None:
    """Lift the limits of the job's GPUs, at once: with a line each, as tests/nvml/limits.c remembers them."""
    with limits.open("a", encoding="ascii") as remembered:
        for gpu in (1, 2):
            remembered.write(f"{socket.gethostname()} {gpu} {time.monotonic():.6f} 1000000 1\n")


def waits_for_cool_devices(paths: CellPaths) -> bool:
    log = paths.supervisor_log
    return log.exists() and "waiting until every device is at 45 C" in log.read_text()


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, new_project: Callable[[Path], Project]
) -> tuple[Project, CellPaths]:
    folder = tmp_path_factory.mktemp("energy")
    project = new_project(folder / "a project")
    library = simulated_nvml.build(folder / "library")
    origin = folder / "origin"
    project.environment |= simulated_nvml.settings(
        # Warm until the origin, then soon cool.
        library, POWER=";".join(map(str, POWER_W)), ORIGIN=origin, TEMPERATURE="80:40:1",
        LIMITS=f"50:1000:{LIMIT_W}", STATE=folder / "limits",
    ) | {"CUDA_VISIBLE_DEVICES": "1,2"}  # fmt: skip
    site_file = project.root / "profiles" / "local" / "site.yaml"
    site = yaml.safe_load(site_file.read_text())
    site["gpus"]["sim"] = {"kind": "cpu", "meter": "nvml", "per_node": 2, "memory_gib": 1}
    # A host engine that hangs when a job is started; of the ranks' limit a call of it gets a quarter.
    state = folder / "dcgm"
    project.environment |= simulated_dcgm.settings(state)
    simulated_dcgm.set_faults(state, "hang:-s")
    site |= {"dcgm": {"command": str(simulated_dcgm.install(folder / "bin"))}, "collective_timeout_s": 60.0}
    site_file.write_text(yaml.safe_dump(site))
    project.write_study(
        energy="measured", idle_settle_s=0.2, idle_read_s=2, cool_down_c=45.0,
        matrix=project.block(gpu="sim", shards=2, length=150),
    )  # fmt: skip
    (paths,) = project.cells()
    with ThreadPoolExecutor() as beside:
        run = beside.submit(project.snakemake, paths.target, timeout_s=600)
        while not run.done() and not waits_for_cool_devices(paths):
            time.sleep(0.1)
        simulated_nvml.begin(origin)
        # Rank 0 waits for DCGM, which hangs for some seconds: nothing but the window lies behind it.
        while not run.done() and not list(project.root.glob("results/tiny/.work/*/gate-open.asked")):
            time.sleep(0.05)
        let_go(folder / "limits")
        done = run.result()
    assert done.returncode == 0, done.stdout
    return project, paths


def open_j(record: Record) -> float:
    """What the window's borders leave open, in J: a tick each, or a busy machine's time between samples."""
    assert record.energy is not None
    longest_s = record.energy.window.coverage.max_gap_s
    assert longest_s is not None
    return 2 * WORK_W * max(0.1, longest_s)


def test_the_jobs_own_gpus_are_read_and_no_others(measured: tuple[Project, CellPaths]) -> None:
    record = read(Record, measured[1].record)
    energy, timings = record.energy, record.timings
    assert energy is not None
    assert timings is not None
    assert [device.device.index for device in energy.devices] == [1, 2]
    assert energy.window.status is Status.MEASURED
    assert energy.window.joules == pytest.approx(WORK_W * timings.duration_s, abs=open_j(record))


def test_baselines_are_of_the_time_before_the_work_and_net_is_what_the_work_adds(
    measured: tuple[Project, CellPaths],
) -> None:
    record = read(Record, measured[1].record)
    assert record.energy is not None
    assert record.timings is not None
    added_j = (WORK_W - IDLE_W) * record.timings.duration_s
    for idle in (record.energy.idle_unloaded, record.energy.idle_loaded):
        assert idle.power_w == pytest.approx(IDLE_W, rel=0.11)
        assert idle.net_j == pytest.approx(
            added_j, abs=open_j(record) + 0.11 * IDLE_W * record.timings.duration_s
        )


def test_the_jobs_energy_and_its_time_are_of_the_same_stretch(measured: tuple[Project, CellPaths]) -> None:
    record = read(Record, measured[1].record)
    assert record.energy is not None
    assert record.timings is not None
    assert record.timings.job_duration_s > record.timings.duration_s + record.timings.load_s
    assert record.energy.job.joules is not None
    power_w = record.energy.job.joules / record.timings.job_duration_s
    assert 0.9 * IDLE_W < power_w < WORK_W


def test_a_cell_waits_until_its_devices_are_cool(measured: tuple[Project, CellPaths]) -> None:
    record = read(Record, measured[1].record)
    assert record.timings is not None
    assert record.timings.cool_down_s is not None
    assert record.timings.cool_down_s > 0.2
    assert record.energy is not None
    assert "not_cooled" not in {violation.code for violation in record.energy.violations}


def test_a_window_that_is_too_short_is_marked(measured: tuple[Project, CellPaths]) -> None:
    record = read(Record, measured[1].record)
    assert record.energy is not None
    assert record.timings is not None
    is_marked = "short_window" in {violation.code for violation in record.energy.violations}
    assert is_marked == (record.timings.duration_s < 5)


def test_ranks_see_the_gpus_that_the_supervisor_has(measured: tuple[Project, CellPaths]) -> None:
    """Submitit hides all GPUs from its tasks, unless it is told by their numbers."""
    logs = [measured[1].rank_log(rank).read_text() for rank in range(2)]
    assert "rank 0 on" in logs[0]
    assert ": GPU 1, " in logs[0]
    assert ": GPU 2, " in logs[1]


def test_a_dcgm_that_hangs_takes_no_cell_with_it_and_no_joules_of_the_job(
    measured: tuple[Project, CellPaths],
) -> None:
    record = read(Record, measured[1].record)
    assert record.energy is not None
    assert record.timings is not None
    told = record.energy.window_dcgm
    assert (told.joules, told.status) == (None, Status.UNAVAILABLE)
    assert "no answer within 15 s" in str(told.detail)
    assert record.energy.window.status is Status.MEASURED
