"""Guards what `make slurm-cluster` tells a person to type."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_cluster import Cluster
from slurm_cluster.__main__ import usage
from slurm_project import PATIENCE_S
from workflow_project import ROOT, planned_jobs

pytestmark = pytest.mark.slurm


def typed(cluster: Cluster, folder: Path, *which: str) -> str:
    """Type printed commands that hold these words into a shell in the project; returns what they say."""
    lines = [line.strip() for line in usage(cluster).splitlines() if line.startswith("  ")]
    script = ["set -e", f'export PATH="{Path(sys.executable).parent}:$PATH"']
    for words in ("export SLURM_CONF", *which):
        (line,) = (line for line in lines if words in line)
        script.append(line)
    # Models and data of this project stay as they are.
    environment = os.environ | {"SHARDWATT_MODELS": str(folder), "SHARDWATT_DATA": str(folder)}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_site_of_the_test_cluster_fits_it(cluster: Cluster, tmp_path: Path) -> None:
    typed(cluster, tmp_path, "check-site")


def test_the_demo_study_is_planned_on_it(cluster: Cluster, tmp_path: Path) -> None:
    said = typed(cluster, tmp_path, " -n ")
    assert planned_jobs(said)["cell"] == 7
    assert "4 nodes x 2 v100, partition v100" in said
    assert "1 node x 1 a100, partition a100" in said
    listed = typed(cluster, tmp_path, "sinfo", "shardwatt cells")
    assert "7 of 7 cells: 7 missing" in listed
