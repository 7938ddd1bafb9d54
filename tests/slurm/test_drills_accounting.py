"""The same with slurmdbd: success, scancel and a lost node, and the executor asking sacct once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from slurm_cluster import Cluster
from slurm_project import SlurmProject, await_true, gpu_type

pytestmark = pytest.mark.slurm


def test_success_scancel_and_a_lost_node_with_accounting(
    accounting_cluster: Cluster,
    new_project: Callable[[Path, Cluster, Path], SlurmProject],
    tiny_models: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    cluster = accounting_cluster
    project = new_project(tmp_path / "a project", cluster, tiny_models)
    request.addfinalizer(project.stop)
    profile = project.root / "profiles" / "slurm" / "profile.v9+.yaml"
    words = yaml.safe_load(profile.read_text())
    profile.write_text(yaml.safe_dump(words | {"slurm-requeue": False, "slurm-no-requeue": True}))
    gpus = {"good": gpu_type("a100"), "cancelled": gpu_type("v100"), "lost": gpu_type("v100")}
    project.write_site(gpus)
    single = project.block(gpu="good", shards=1, batch=1, length=4)
    # No model runs in what is struck, and it is held, so that none ends before.
    pairs = project.block(engine="simulated", gpu=["cancelled", "lost"], shards=2)
    project.write_study(prompts=2, simulated_window_s=20.0, matrix=[*single, *pairs])
    cells = {paths.cell.gpu: paths for paths in project.cells()}
    targets = [paths.target for paths in cells.values()]
    run = project.start("--retries", "0", *targets)
    project.strike({cells[name]: project.hold for name in ("cancelled", "lost")})
    lost = project.rank(cells["lost"], 0).node
    cluster.node(lost).switch_off()
    cluster.run("scancel", project.job(cells["cancelled"]))
    job = project.job(cells["lost"])
    await_true(lambda: project.job_state(job) == "NODE_FAIL", "Slurm misses the node")
    cluster.node(lost).boot()
    assert run.ended() == 1, run.output
    assert project.told() == {
        "good": ("ok", None),
        "cancelled": ("failed", "cancelled"),
        "lost": ("failed", "node_fail"),
    }
    project.assert_nothing_left()
    assert project.planned(*targets) == {"cell": 2}
    again = project.start("--slurm-status-command", "sacct", cells["lost"].target)
    assert again.ended() == 0, again.output
    assert project.told()["lost"] == ("ok", None)
