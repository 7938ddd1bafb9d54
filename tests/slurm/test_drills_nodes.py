"""Nodes that go away under a running cell: lost with all that runs on them, or cut off and back too late."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from slurm_project import TALKATIVE, TALKATIVE_LENGTH, SlurmProject, await_true, crawl, gpu_type, run_freely

pytestmark = pytest.mark.slurm

#: Slurm notices a lost node, after some 30 s here, before the ranks give up.
PATIENT_S = 300


def write_pairs(project: SlurmProject, gpus: list[str]) -> None:
    project.write_site(dict.fromkeys(gpus, gpu_type("v100")), collective_timeout_s=PATIENT_S)
    block = project.block(gpu=gpus, shards=2, batch=1, length=TALKATIVE_LENGTH)
    project.write_study(**TALKATIVE, matrix=block)


def test_slurm_starts_jobs_again_that_lost_a_node(make_slurm_project: Callable[[int], SlurmProject]) -> None:
    project = make_slurm_project(6)
    cluster = project.cluster
    nodes = cluster.layout.node_names()
    # A node of a rank, a node of a supervisor.
    write_pairs(project, ["far", "near"])
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    crawl(cluster, nodes)
    run = project.start("--retries", "0", *(paths.target for paths in cells.values()))
    for paths in cells.values():
        project.await_run(paths)
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
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(5)
    cluster = project.cluster
    nodes = cluster.layout.node_names()
    profile = project.root / "profiles" / "slurm" / "profile.v9+.yaml"
    words = yaml.safe_load(profile.read_text())
    profile.write_text(yaml.safe_dump(words | {"slurm-requeue": False, "slurm-no-requeue": True}))
    write_pairs(project, ["lost", "cut-off"])
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    targets = [paths.target for paths in cells.values()]
    crawl(cluster, nodes)
    run = project.start("--retries", "0", *targets)
    for paths in cells.values():
        project.await_run(paths)
    lost, cut_off = (project.rank(paths, 0).node for paths in cells.values())
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
    # Nodes that are left are enough: none was locked out.
    assert project.planned(*targets) == {"cell": 2}
    again = project.start(*targets)
    assert again.ended() == 0, again.output
    assert set(project.told().values()) == {("ok", None)}
