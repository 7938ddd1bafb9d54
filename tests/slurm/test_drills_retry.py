"""Retries: with more memory and time where another try may help, over at once where none can."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slurm_project import TALKATIVE, TALKATIVE_LENGTH, SlurmProject, crawl, gpu_type, run_freely

pytestmark = pytest.mark.slurm


def test_a_retry_gets_more_and_a_hopeless_one_ends_at_once(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(3)
    cluster = project.cluster
    grows = gpu_type(
        "v100", memory_per_node_gib=2, memory_per_node_max_gib=7, runtime_min=5, runtime_max_min=8
    )
    project.write_site({"unlucky": grows, "hopeless": grows})
    single = project.block(gpu="hopeless", shards=1, batch=1, length=4)
    pair = project.block(gpu="unlucky", shards=2, batch=1, length=TALKATIVE_LENGTH)
    project.write_study(**TALKATIVE, matrix=[*single, *pair])
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    targets = [paths.target for paths in cells.values()]
    weights = project.root / "models" / "tiny" / "shards-1" / "consolidated.00.pth"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    crawl(cluster, cluster.layout.node_names())
    run = project.start(*targets)  # the profile's two retries
    project.await_run(cells["unlucky"])
    project.signal_rank(cells["unlucky"], 1, "KILL")
    run_freely(cluster, cluster.layout.node_names())
    assert run.ended() == 1, run.output
    assert project.told() == {"unlucky": ("ok", None), "hopeless": ("failed", "bad_checkpoint")}

    first, second = project.jobs(cells["unlucky"])
    assert [attempt.outcome for attempt in project.attempts(cells["unlucky"])] == ["failed", "ok"]
    assert asked_for(project, first) == ("00:05:00", "2G")
    assert asked_for(project, second) == ("00:08:00", "3G")

    attempts = project.attempts(cells["hopeless"])
    assert [attempt.reason for attempt in attempts] == ["bad_checkpoint"] * 3
    assert [attempt.job_id for attempt in attempts] == project.jobs(cells["hopeless"])
    failure = project.failure(cells["hopeless"])
    assert "consolidated.00.pth" in failure.message
    assert "attempt 3: not tried again" in failure.message
    logs = [project.slurm_log(job).read_text() for job in project.jobs(cells["hopeless"])]
    assert ["not tried again" in log for log in logs] == [False, True, True]
    project.assert_nothing_left()

    weights.write_bytes(whole)
    assert project.planned(*targets) == {"cell": 1}
    again = project.start(*targets)
    assert again.ended() == 0, again.output
    assert set(project.told().values()) == {("ok", None)}


def asked_for(project: SlurmProject, job: str) -> tuple[str, str]:
    """Time limit and memory a node of a job."""
    words = dict(
        word.split("=", 1)
        for word in project.cluster.run("scontrol", "show", "job", job).split()
        if "=" in word
    )
    return words["TimeLimit"], words["MinMemoryNode"]
