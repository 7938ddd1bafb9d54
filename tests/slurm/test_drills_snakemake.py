"""Snakemake killed in mid-run and started again: its jobs are waited for or cancelled, never doubled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardwatt.layout import CellPaths
from slurm_project import SlurmProject, await_true, gpu_type

pytestmark = pytest.mark.slurm


def start_and_kill(project: SlurmProject, gpus: list[str]) -> dict[str, CellPaths]:
    """Cells of two ranks whose jobs go on though the Snakemake that started them was killed.

    No model runs: what becomes of the jobs is the same. Each is held, so that none ends yet.
    """
    block = project.block(engine="simulated", gpu=gpus, shards=2)
    project.write_study(simulated_window_s=20.0, matrix=block)
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    run = project.start("--retries", "0", *(paths.target for paths in cells.values()))
    project.strike(dict.fromkeys(cells.values(), project.hold))
    run.stop()
    return cells


def test_jobs_of_a_killed_run_are_waited_for_and_what_they_leave_is_taken(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(4)
    gpus = ["goes-on", "fails"]
    project.write_site(dict.fromkeys(gpus, gpu_type("v100")))
    cells = start_and_kill(project, gpus)
    targets = [paths.target for paths in cells.values()]
    refused = project.snakemake(*targets)
    assert refused.returncode == 1
    assert "locked" in refused.stdout.lower()
    assert project.snakemake("--unlock").returncode == 0
    jobs = {name: project.job(paths) for name, paths in cells.items()}
    assert project.planned(*targets) == {"wait_for_cell": 2}
    run = project.start("--retries", "1", *targets)
    await_true(lambda: run.output.count("waits for Slurm job") == 2, "both jobs are waited for")
    project.signal_rank(cells["fails"], 1, "KILL")
    project.signal_rank(cells["goes-on"], 1, "CONT")
    assert run.ended() == 1, run.output
    assert "rank_died" in run.output
    assert project.told() == {"goes-on": ("ok", None), "fails": ("failed", "rank_died")}
    assert {name: project.jobs(paths) for name, paths in cells.items()} == {
        name: [number] for name, number in jobs.items()
    }
    project.assert_nothing_left()
    assert project.planned(*targets) == {"cell": 1}
    again = project.start(*targets)
    assert again.ended() == 0, again.output
    assert set(project.told().values()) == {("ok", None)}
    assert [attempt.job_id for attempt in project.attempts(cells["goes-on"])] == [jobs["goes-on"]]
    assert len(project.jobs(cells["fails"])) == 2
    project.assert_nothing_left()


def test_jobs_of_a_killed_run_are_cancelled_first_where_the_site_says_so(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(2)
    gpus = {"again": gpu_type("v100")}
    project.write_site(gpus, leftover_jobs="cancel")
    (paths,) = start_and_kill(project, list(gpus)).values()
    old = project.job(paths)
    assert project.planned(paths.target) == {"cell": 1}
    # The killed run has left its lock.
    run = project.start("--nolock", paths.target)
    await_true(lambda: project.job(paths) != old, "a new job")
    assert project.job_state(old) == "CANCELLED"
    assert run.ended() == 0, run.output
    assert project.told() == {"again": ("ok", None)}
    assert [(attempt.job_id, attempt.reason) for attempt in project.attempts(paths)] == [
        (old, "cancelled"),
        (project.job(paths), None),
    ]
    project.assert_nothing_left()
