"""Guards the fast engine over several nodes: from a checkpoint saved at another count and staged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Record
from slurm_cluster import Cluster
from slurm_project import SlurmProject, tail
from workflow_project import RECIPE

pytestmark = pytest.mark.slurm

#: `fast-refill` fills the places of rows that have ended; all else of it is `fast`.
ENGINES = ("reference", "fast-refill")


def answers(paths: CellPaths) -> dict[str, str]:
    rows = pq.read_table(paths.results / "responses.parquet").to_pylist()
    return {row["prompt_id"]: row["text"] for row in rows}


def test_two_nodes_run_a_model_saved_in_one_shard(
    cluster: Cluster,
    new_project: Callable[[Path, Cluster, Path], SlurmProject],
    run_together: Callable[[SlurmProject, str], None],
    tmp_path: Path,
    tiny_models: Path,
) -> None:
    project = new_project(tmp_path / "a project", cluster, tiny_models)
    kind = {"kind": "cpu", "per_node": 1, "memory_gib": 1, "tdp_w": 30}
    node_disk = project.root / "on the node"
    project.write_site(
        {"v100": {**kind, "slurm": {"partition": "v100", "gres": "gpu:v100"}}}, staging=str(node_disk)
    )
    (project.root / "config" / "models" / "tiny.yaml").write_text(yaml.safe_dump({**RECIPE, "shards": [1]}))
    shutil.rmtree(project.root / "models" / "tiny" / "shards-2")
    project.write_study(temperature=0, matrix=project.block(engine=list(ENGINES), gpu="v100", shards=2))
    run_together(project, "tiny")
    found = {paths.cell.engine: paths for paths in project.cells()}
    assert set(found) == set(ENGINES)
    for paths in found.values():
        assert paths.record.exists(), tail(paths.supervisor_log)
        record = read(Record, paths.record)
        assert len(record.provenance.nodes) == 2
        assert answers(paths) == answers(found["reference"])
    copies = [path for path in node_disk.rglob("*") if path.name.startswith("consolidated")]
    assert [path.name for path in copies] == ["consolidated.00.pth"]
