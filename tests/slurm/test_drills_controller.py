"""Slurm's controller goes away for a while."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from slurm_cluster import ANSWERS_SOON
from slurm_project import SlurmProject, await_true, gpu_type

pytestmark = pytest.mark.slurm


def test_cells_end_well_though_the_controller_was_restarted(
    make_slurm_project: Callable[..., SlurmProject],
) -> None:
    project = make_slurm_project(2, *ANSWERS_SOON)
    cluster = project.cluster
    project.write_site({"steady": gpu_type("v100")})
    # No model runs: jobs and supervisor are the same. The cell is held, so that it goes on.
    block = project.block(engine="simulated", gpu="steady", shards=2)
    project.write_study(simulated_window_s=20.0, matrix=block)
    (paths,) = project.cells()
    run = project.start("--retries", "0", paths.target)
    project.strike({paths: project.hold})
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
