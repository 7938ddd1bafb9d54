"""What Slurm itself does to jobs: makes room for others, and goes away for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

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
    project.await_run(cells["requeued"])
    # Without a network to crawl on, a rank that is stopped holds it.
    project.signal_rank(cells["requeued"], 1, "STOP")
    project.await_run(cells["lost"])
    jobs = {name: project.job(paths) for name, paths in cells.items()}
    words = ("sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null")
    intruder = cluster.run(*words, "--wrap=sleep infinity").strip()
    await_true(lambda: project.job_state(intruder) == "RUNNING", "all nodes are taken")
    assert project.job_state(jobs["requeued"]) == "PENDING"
    assert project.job_state(jobs["lost"]) == "PREEMPTED"
    told = project.told()
    assert told["lost"] == ("failed", "preempted")
    # Slurm lets a job that it has put back wait two minutes before it looks for nodes again.
    assert told["requeued"] in (("pending", "BeginTime"), ("pending", "Resources"))
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


def test_cells_end_well_though_the_controller_was_restarted(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(2)
    cluster = project.cluster
    project.write_site({"steady": gpu_type("v100")})
    # No model runs: jobs and supervisor are the same. Rank 1 is stopped, so that the cell goes on.
    block = project.block(engine="simulated", gpu="steady", shards=2)
    project.write_study(simulated_window_s=20.0, matrix=block)
    (paths,) = project.cells()
    run = project.start("--retries", "0", paths.target)
    project.await_run(paths)
    project.signal_rank(paths, 1, "STOP")
    cluster.controller.stop()
    cluster.controller.start()
    await_true(lambda: project.told() == {"steady": ("running", "run")}, "the controller answers")
    cluster.controller.kill()
    # The cell ends while nobody can be asked.
    project.signal_rank(paths, 1, "CONT")
    await_true(paths.record.exists, "the cell is done")
    await_true(lambda: "Slurm gave no answer" in run.output, "Snakemake asks in vain")
    cluster.controller.start()
    assert run.ended() == 0, run.output
    assert project.told() == {"steady": ("ok", None)}
    (attempt,) = project.attempts(paths)
    assert attempt.outcome == "ok"
    project.assert_nothing_left()
