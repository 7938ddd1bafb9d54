"""A site on Slurm and its cells, for tests of what jobs ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardwatt.cell import Cell
from shardwatt.site import Site
from small_project import make_site

V100: dict[str, Any] = {
    "partition": "v100",
    "gres": "gpu:v100",
    "nodes": 4,
    "cpus_per_rank": 4,
    "memory_per_node_gib": 64.0,
    "memory_per_node_max_gib": 128.0,
    "runtime_min": 60,
    "runtime_max_min": 200,
}


def slurm_site(words: dict[str, Any] | None = None, *, per_node: int = 2, **changes: Any) -> Site:
    """A cluster with nodes of two V100s.

    Args:
        words: what its jobs ask of Slurm, in place of `V100`.
        per_node: devices in a node.
        changes: keys of the site to replace.
    """
    v100 = {
        "kind": "cuda",
        "per_node": per_node,
        "memory_gib": 32,
        "slurm": V100 if words is None else words,
    }
    cpu = {
        "kind": "cpu",
        "per_node": per_node,
        "memory_gib": 2,
        "slurm": {"partition": "cpu", "exclusive": False, "runtime_min": 10},
    }
    content = {"launcher": "slurm", "gpus": {"v100": v100, "cpu": cpu}, **changes}
    return make_site(Path("/nowhere"), **content)


def slurm_cell(shards: int, gpu: str = "v100") -> Cell:
    return Cell(
        engine="reference",
        model="llama-65b",
        precision="fp16",
        gpu=gpu,
        shards=shards,
        batch=64,
        length=256,
        dataset="gsm8k",
        cap="none",
        repeat=1,
    )
