"""Nodes that go away under a running cell: lost with all that runs on them, or cut off and back too late."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from shardwatt.layout import CellPaths
from slurm_cluster import KILLS_SOON, LOSES_NODES_SOON
from slurm_project import TALKATIVE, TALKATIVE_LENGTH, SlurmProject, await_true, crawl, gpu_type, run_freely

pytestmark = pytest.mark.slurm

#: Slurm notices a lost node, after some 30 s here, before the ranks give up.
PATIENT_S = 300


def write_pairs(project: SlurmProject, real: str, simulated: str) -> None:
    """A cell of two ranks that talk, and one whose job, supervisor and ranks are all that counts."""
    gpus = [real, simulated]
    project.write_site(dict.fromkeys(gpus, gpu_type("v100")), collective_timeout_s=PATIENT_S)
    talkative = project.block(gpu=real, shards=2, batch=1, length=TALKATIVE_LENGTH)
    silent = project.block(engine="simulated", gpu=simulated, shards=2)
    project.write_study(**TALKATIVE, simulated_window_s=20.0, matrix=[*talkative, *silent])


def await_runs(project: SlurmProject, real: CellPaths, simulated: CellPaths) -> None:
    """Wait until both cells run; that without a network to crawl on is held."""
    project.strike({simulated: project.hold, real: lambda _: None})


def test_slurm_starts_jobs_again_that_lost_a_node(make_slurm_project: Callable[..., SlurmProject]) -> None:
    project = make_slurm_project(6, *LOSES_NODES_SOON, *KILLS_SOON)
    cluster = project.cluster
    nodes = cluster.layout.node_names()
    # A node of a rank, a node of a supervisor.
    write_pairs(project, "far", "near")
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    crawl(cluster, nodes)
    run = project.start("--retries", "0", *(paths.target for paths in cells.values()))
    await_runs(project, cells["far"], cells["near"])
    jobs = {name: project.job(paths) for name, paths in cells.items()}
    lost = [project.rank(cells["far"], 1).node, project.rank(cells["near"], 0).node]
    for node in lost:
        cluster.node(node).switch_off()
    run_freely(cluster, set(nodes) - set(lost))
    assert run.ended() == 0, run.output
    assert project.told() == {"far": ("ok", None), "near": ("ok", None)}
    for name, paths in cells.items():
        assert project.jobs(paths) == [jobs[name]]
        assert "Restarts=1" in cluster.run("scontrol", "show", "job", jobs[name])
        (attempt,) = project.attempts(paths)
        assert attempt.outcome == "ok"
        assert attempt.node not in lost
        assert not paths.failure.exists()
    project.assert_nothing_left(but=lost)


def test_a_job_that_is_not_started_again_failed_for_its_node_and_a_late_supervisor_leaves_nothing(
    make_slurm_project: Callable[..., SlurmProject],
) -> None:
    project = make_slurm_project(5, *LOSES_NODES_SOON, *KILLS_SOON)
    cluster = project.cluster
    nodes = cluster.layout.node_names()
    profile = project.root / "profiles" / "slurm" / "profile.v9+.yaml"
    words = yaml.safe_load(profile.read_text())
    profile.write_text(yaml.safe_dump(words | {"slurm-requeue": False, "slurm-no-requeue": True}))
    write_pairs(project, "cut-off", "lost")
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    targets = [paths.target for paths in cells.values()]
    crawl(cluster, nodes)
    run = project.start("--retries", "0", *targets)
    await_runs(project, cells["cut-off"], cells["lost"])
    lost, cut_off = (project.rank(cells[name], 0).node for name in ("lost", "cut-off"))
    cluster.node(lost).switch_off()
    cluster.node(cut_off).cut_off()
    jobs = {name: project.job(paths) for name, paths in cells.items()}
    await_true(
        lambda: {project.job_state(job) for job in jobs.values()} == {"NODE_FAIL"}, "Slurm misses the nodes"
    )
    assert project.told() == {"lost": ("failed", "node_fail"), "cut-off": ("failed", "node_fail")}
    # Supervisor and rank 0 of the cut-off cell live, and meet rank 1 again, if that lives.
    run_freely(cluster, set(nodes) - {lost})
    cluster.node(cut_off).reconnect()
    await_true(lambda: cluster.state(cut_off) == "idle", f"{cut_off} is back")
    assert run.ended() == 1, run.output
    project.assert_nothing_left(but=[lost])
    assert project.told() == {"lost": ("failed", "node_fail"), "cut-off": ("failed", "node_fail")}
    assert project.failure(cells["lost"]).node == lost
    for name, paths in cells.items():
        (attempt,) = project.attempts(paths)
        assert (attempt.job_id, attempt.reason) == (jobs[name], "node_fail")
    assert project.planned(*targets) == {"cell": 2}
    # The one that was cut off is not locked out: there is no other for the second rank.
    _, *others = sorted(set(nodes) - {lost, cut_off})
    cluster.run("scontrol", "update", f"nodename={','.join(others)}", "state=drain", "reason=drill")
    again = project.start(cells["lost"].target)
    assert again.ended() == 0, again.output
    assert project.told()["lost"] == ("ok", None)
