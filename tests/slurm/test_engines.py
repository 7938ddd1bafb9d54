"""Guards the fast engine over several nodes: from a checkpoint saved at another count and staged."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Record
from slurm_cluster import Cluster
from slurm_project import make_project

pytestmark = pytest.mark.slurm

ENGINES = ("reference", "fast", "fast-refill")


def answers(paths: CellPaths) -> dict[str, str]:
    rows = pq.read_table(paths.results / "responses.parquet").to_pylist()
    return {row["prompt_id"]: row["text"] for row in rows}


def test_two_nodes_run_a_model_saved_in_one_shard(
    cluster: Cluster, tmp_path: Path, tiny_models: Path
) -> None:
    project = make_project(tmp_path / "a project", cluster, tiny_models)
    kind = {"kind": "cpu", "per_node": 2, "memory_gib": 1, "tdp_w": 30}
    node_disk = project.root / "on the node"
    project.write_site(
        {"v100": {**kind, "slurm": {"partition": "v100", "gres": "gpu:v100"}}}, staging=str(node_disk)
    )
    project.write_study(temperature=0, matrix=project.block(engine=list(ENGINES), gpu="v100", shards=4))

    run = project.start("results/tiny/cells.parquet")
    try:
        assert run.ended() == 0, run.output
    finally:
        run.stop()

    found = {paths.cell.engine: paths for paths in project.cells()}
    assert set(found) == set(ENGINES)
    for paths in found.values():
        record = read(Record, paths.record)
        assert len(record.provenance.nodes) == 2
        assert answers(paths) == answers(found["reference"])
    copies = [path for path in node_disk.rglob("*") if path.name.startswith("consolidated")]
    assert [path.name for path in copies] == ["consolidated.00.pth"]
