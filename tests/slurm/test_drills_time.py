"""The time limit: kept by the supervisor, by the ranks where it hangs, by Slurm where all hang."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow.parquet as pq
import pytest

from slurm_project import TALKATIVE, TALKATIVE_LENGTH, SlurmProject, crawl, gpu_type, run_freely

pytestmark = pytest.mark.slurm


def test_a_cell_ends_before_its_time_limit_and_whoever_hangs_at_it(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(6)
    nodes = project.cluster.layout.node_names()
    gpus = ["deadline", "late", "hung"]
    # Slurm's signal is due 75 s before the limit, and may come up to 60 s early: after the supervisor's end.
    site = dict.fromkeys(gpus, gpu_type("v100")) | {"deadline": gpu_type("v100", runtime_min=7)}
    project.write_site(
        site,
        stop_before_limit_s=150,
        collective_timeout_s=240,
    )
    block = project.block(gpu=gpus, shards=2, batch=1, length=TALKATIVE_LENGTH)
    project.write_study(**TALKATIVE, matrix=block)
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    targets = [paths.target for paths in cells.values()]
    crawl(project.cluster, nodes)
    run = project.start("--retries", "0", *targets)
    for paths in cells.values():
        project.await_run(paths, prompts=1)
    late, hung = (project.attempts(cells[name])[0] for name in ("late", "hung"))
    # Two to three minutes, so that the signal is due within two; and for the other one the end.
    for supervisor, left_min in ((late, 3), (hung, 0)):
        project.signal(supervisor.node, supervisor.pid, "STOP")
        limit_min = max(1, minutes_used(project, supervisor.job_id) + left_min)
        project.cluster.run("scontrol", "update", f"jobid={supervisor.job_id}", f"TimeLimit={limit_min}")
    # Slurm's signal reaches the ranks though their supervisor hangs.
    project.await_told(cells["late"], 0)
    project.signal(late.node, late.pid, "CONT")
    assert run.ended() == 1, run.output
    project.assert_nothing_left()
    assert project.told() == dict.fromkeys(gpus, ("failed", "time_limit"))
    failures = {name: project.failure(paths) for name, paths in cells.items()}
    for name in ("deadline", "late"):
        partial = failures[name].partial
        assert partial is not None
        rows = pq.read_table(project.root / partial).num_rows
        assert 1 <= rows < TALKATIVE["prompts"]
        assert "stop_before_limit_s" in failures[name].message
    # Slurm woke it and ended it, in order or not: Slurm knows why.
    assert failures["hung"].slurm_state == "TIMEOUT"
    assert failures["hung"].partial is None
    assert {name: project.attempts(paths)[0].reason for name, paths in cells.items()} == dict.fromkeys(
        gpus, "time_limit"
    )
    run_freely(project.cluster, nodes)
    assert project.planned(*targets) == {"cell": 3}
    again = project.start(cells["hung"].target)
    assert again.ended() == 0, again.output
    assert project.told()["hung"] == ("ok", None)


def minutes_used(project: SlurmProject, job_id: str) -> int:
    """Whole minutes that a job has run: Slurm tells them as [[days-]hours:]minutes:seconds."""
    used = project.cluster.run("squeue", "--noheader", f"--jobs={job_id}", "--format=%M").strip()
    *hours, minutes, _ = (int(number) for number in used.split(":"))
    return 60 * sum(hours) + minutes
