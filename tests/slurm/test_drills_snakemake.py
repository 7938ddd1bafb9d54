"""Snakemake killed in mid-run and started again: its jobs are waited for or cancelled, never doubled."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardwatt.layout import CellPaths
from slurm_project import (
    TALKATIVE,
    TALKATIVE_LENGTH,
    SlurmProject,
    await_true,
    crawl,
    gpu_type,
    run_freely,
)

pytestmark = pytest.mark.slurm


def start_and_kill(project: SlurmProject, gpus: list[str]) -> dict[str, CellPaths]:
    """Cells of two ranks that go on though the Snakemake that started them was killed."""
    project.write_study(
        **TALKATIVE, matrix=project.block(gpu=gpus, shards=2, batch=1, length=TALKATIVE_LENGTH)
    )
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    crawl(project.cluster, project.cluster.layout.node_names())
    run = project.start("--retries", "0", *(paths.target for paths in cells.values()))
    for paths in cells.values():
        project.await_run(paths)
    run.stop()
    refused = project.snakemake(*(paths.target for paths in cells.values()))
    assert refused.returncode == 1
    assert "locked" in refused.stdout.lower()
    assert project.snakemake("--unlock").returncode == 0
    return cells


def test_jobs_of_a_killed_run_are_waited_for_and_what_they_leave_is_taken(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(4)
    gpus = ["goes-on", "fails"]
    project.write_site(dict.fromkeys(gpus, gpu_type("v100")))
    cells = start_and_kill(project, gpus)
    targets = [paths.target for paths in cells.values()]
    jobs = {name: project.job(paths) for name, paths in cells.items()}
    assert project.planned(*targets) == {"wait_for_cell": 2}
    run = project.start("--retries", "1", *targets)
    await_true(lambda: run.output.count("waits for Slurm job") == 2, "both jobs are waited for")
    project.signal_rank(cells["fails"], 1, "KILL")
    run_freely(project.cluster, project.cluster.layout.node_names())
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
    run = project.start(paths.target)
    await_true(lambda: project.job(paths) != old, "a new job")
    assert project.job_state(old) == "CANCELLED"
    run_freely(project.cluster, project.cluster.layout.node_names())
    assert run.ended() == 0, run.output
    assert project.told() == {"again": ("ok", None)}
    assert [(attempt.job_id, attempt.reason) for attempt in project.attempts(paths)] == [
        (old, "cancelled"),
        (project.job(paths), None),
    ]
    project.assert_nothing_left()
