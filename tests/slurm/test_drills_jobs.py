"""Cells of one run, each ended in its own way: every one told by its reason, and only those run again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shardwatt.layout import CellPaths
from slurm_project import TALKATIVE, TALKATIVE_LENGTH, SlurmProject, crawl, gpu_type, run_freely

pytestmark = pytest.mark.slurm

#: Cells of two ranks on two nodes, by what strikes them.
STRUCK = ["killed", "stopped", "cut-off", "cancelled", "orphaned"]
#: Two that start beside ten others on a busy machine meet within this time.
COLLECTIVE_S = 60
#: Jobs that never start.
UNSTARTED = {
    "held": gpu_type("v100", extra=["--hold"]),
    "rejected": gpu_type("nowhere", gres="gpu:v100"),
}
GPUS = {name: gpu_type("v100") for name in ["good", *STRUCK]}
#: Run again: one that was told by its supervisor, and one by Slurm alone. What others left is of these kinds.
AGAIN = ["killed", "orphaned"]


def test_each_ending_has_its_reason_and_is_run_again_alone(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(2 * len(STRUCK) + 1)
    cluster = project.cluster
    nodes = cluster.layout.node_names()
    project.write_site(GPUS | UNSTARTED, collective_timeout_s=COLLECTIVE_S)
    single = project.block(engine="simulated", gpu=["good", *UNSTARTED], shards=1)
    pairs = project.block(gpu=STRUCK, shards=2, batch=1, length=TALKATIVE_LENGTH)
    project.write_study(**TALKATIVE, matrix=[*single, *pairs])
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    targets = [paths.target for paths in cells.values()]
    crawl(cluster, nodes)
    run = project.start("--retries", "0", *targets)

    nodes_of: dict[str, str] = {}

    def kill(paths: CellPaths) -> None:
        nodes_of["killed"] = project.signal_rank(paths, 1, "KILL").node

    def cut_off(paths: CellPaths) -> None:
        nodes_of["cut-off"] = project.rank(paths, 1).node
        cluster.node(nodes_of["cut-off"]).cut_off()

    def cancel(paths: CellPaths) -> None:
        cluster.run("scancel", project.job(paths))

    def orphan(paths: CellPaths) -> None:
        (attempt,) = project.attempts(paths)
        project.signal(attempt.node, attempt.pid, "KILL")

    strokes = [kill, project.hold, cut_off, cancel, orphan]
    project.strike({cells[name]: stroke for name, stroke in zip(STRUCK, strokes, strict=True)})
    cluster.run("scancel", project.job(cells["held"]))
    project.await_told(cells["cut-off"], 0)
    cluster.node(nodes_of["cut-off"]).reconnect()

    assert run.ended() == 1, run.output
    assert "invalid partition specified: nowhere" in run.output
    assert project.told() == {
        "good": ("ok", None),
        "killed": ("failed", "rank_died"),
        "stopped": ("failed", "collective_timeout"),
        "cut-off": ("failed", "collective_timeout"),
        "cancelled": ("failed", "cancelled"),
        "orphaned": ("failed", "supervisor_died"),
        "held": ("missing", "not_run"),
        "rejected": ("missing", "not_run"),
    }
    project.assert_nothing_left()
    failures = {name: project.failure(cells[name]) for name in STRUCK}
    for name, failure in failures.items():
        (attempt,) = project.attempts(cells[name])
        assert (attempt.job_id, attempt.reason) == (failure.job_id, str(failure.reason))
        assert failure.log_tail
    failure = failures["killed"]
    assert (failure.rank, failure.node, failure.exit_code) == (1, nodes_of["killed"], -9)
    assert failure.node != project.attempts(cells["killed"])[0].node
    assert failure.log.endswith("rank-1.log")
    assert "rank 1 had not ended" in failures["stopped"].message
    assert "did not answer in time" in failures["cut-off"].message
    assert failures["cancelled"].slurm_state == "CANCELLED"
    # Its job was not killed: Snakemake's step saw it end.
    assert failures["orphaned"].exit_code == 1
    assert failures["orphaned"].slurm_state == "FAILED"

    gpus = GPUS | dict.fromkeys(UNSTARTED, gpu_type("v100"))
    project.write_site(gpus, collective_timeout_s=COLLECTIVE_S)
    run_freely(cluster, nodes)
    assert project.planned(*targets) == {"cell": len(cells) - 1}
    again = project.start(*(cells[name].target for name in AGAIN))
    assert again.ended() == 0, again.output
    assert {name for name, told in project.told().items() if told == ("ok", None)} == {"good", *AGAIN}
    assert len(project.jobs(cells["good"])) == 1
    project.assert_nothing_left()
