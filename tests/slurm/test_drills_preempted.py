"""Slurm makes room for other jobs."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from slurm_project import TALKATIVE, TALKATIVE_LENGTH, SlurmProject, await_true, crawl, gpu_type, run_freely

pytestmark = pytest.mark.slurm


def test_a_preempted_job_is_started_again_by_slurm_or_told_as_preempted(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(4)
    cluster = project.cluster
    nodes = cluster.layout.node_names()
    # Beside `low`, whose jobs are put back into the queue, one whose jobs are lost.
    cluster.run(
        *("scontrol", "create", "PartitionName=lost", f"Nodes={','.join(nodes)}"),
        *("PriorityTier=1", "PreemptMode=CANCEL"),
    )
    gpus = {"requeued": "low", "lost": "lost"}
    project.write_site({gpu: gpu_type(partition, gres="gpu:v100") for gpu, partition in gpus.items()})
    talkative = project.block(gpu="lost", shards=2, batch=1, length=TALKATIVE_LENGTH)
    silent = project.block(engine="simulated", gpu="requeued", shards=2)
    project.write_study(**TALKATIVE, simulated_window_s=20.0, matrix=[*silent, *talkative])
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    targets = [paths.target for paths in cells.values()]
    crawl(cluster, nodes)
    run = project.start("--retries", "0", *targets)
    # Held, since it has no network to crawl on.
    project.strike({cells["requeued"]: project.hold, cells["lost"]: lambda _: None})
    jobs = {name: project.job(paths) for name, paths in cells.items()}
    words = ("sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null")
    intruder = cluster.run(*words, "--wrap=sleep infinity").strip()
    await_true(lambda: project.job_state(intruder) == "RUNNING", "all nodes are taken")
    assert project.job_state(jobs["requeued"]) == "PENDING"
    assert project.job_state(jobs["lost"]) == "PREEMPTED"
    told = project.told()
    assert told["lost"] == ("failed", "preempted")
    # For two minutes it waits for its time, then for nodes; until Slurm has looked it has no reason.
    assert told["requeued"] in [
        ("pending", why) for why in ("BeginTime", "Resources", "Priority", "None", "-")
    ]
    (attempt,) = project.attempts(cells["lost"])
    assert (attempt.job_id, attempt.reason) == (jobs["lost"], "preempted")
    cluster.run("scancel", intruder)
    run_freely(cluster, nodes)
    await_true(cells["requeued"].record.exists, "the preempted cell is done")
    assert project.told() == {"requeued": ("ok", None), "lost": ("failed", "preempted")}
    await_true(lambda: "Finished jobid" in run.output, "Snakemake sees it")
    # The executor waits for a job that Slurm does not start again, for ever.
    run.process.send_signal(signal.SIGINT)
    assert run.ended() == 1, run.output
    assert project.jobs(cells["requeued"]) == [jobs["requeued"]]
    assert not cells["requeued"].failure.exists()
    project.assert_nothing_left()
    assert project.planned(*targets) == {"cell": 1}
    again = project.start(*targets)
    assert again.ended() == 0, again.output
    assert set(project.told().values()) == {("ok", None)}
