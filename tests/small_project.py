"""Small projects and sites for tests: a root with config/, a checkpoint in Meta's layout, a place."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from shardwatt.architectures import ArchitectureError, from_params
from shardwatt.site import Site, parse_site
from shardwatt.tensornames import shard_shape, whole_tensors

#: LLaMA 65B's params.json as Meta ships it: vocabulary and context are not in it.
PARAMS_65B = {
    "dim": 8192,
    "multiple_of": 256,
    "n_heads": 64,
    "n_layers": 80,
    "norm_eps": 1e-05,
    "vocab_size": -1,
}

BLOCK: dict[str, Any] = {
    "model": "llama-65b",
    "gpu": "v100",
    "shards": 8,
    "batch": 64,
    "length": 256,
    "dataset": "gsm8k",
}

DATASETS = {
    "alpaca": {"format": "alpaca", "file": "alpaca.json", "sha256": "a" * 64},
    "gsm8k": {"format": "gsm8k", "file": "gsm8k.jsonl", "sha256": "b" * 64},
}

GPUS: dict[str, dict[str, Any]] = {
    "v100": {"kind": "cuda", "per_node": 8, "memory_gib": 32},
    "a100": {"kind": "cuda", "per_node": 8, "memory_gib": 80},
    "cpu": {"kind": "cpu", "per_node": 4, "memory_gib": 2},
}


def site_content(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a site's file says: one machine with GPUs; some keys replaced."""
    return {
        "name": "testbed",
        "launcher": "local",
        "models": str(folder / "models"),
        "data": str(folder / "data"),
        "gpus": GPUS,
        **changes,
    }


def make_site(folder: Path, **changes: Any) -> Site:
    return parse_site(site_content(folder, **changes), "site.yaml")


def study_content(**changes: Any) -> dict[str, Any]:
    """What a study's file says: one cell; some keys replaced."""
    return {"title": "A test", "prompts": 8, "matrix": [BLOCK], **changes}


def blocks(**changes: Any) -> dict[str, Any]:
    """A matrix of one block, some axes replaced."""
    return {"matrix": [{**BLOCK, **changes}]}


def write_yaml(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def make_root(folder: Path) -> Path:
    """A project's root with the catalogue of data sets, and no study or recipe."""
    write_yaml(folder / "config" / "datasets.yaml", {"datasets": DATASETS})
    (folder / "config" / "studies").mkdir()
    (folder / "config" / "models").mkdir()
    return folder


def make_checkpoint(folder: Path, shards: int, params: dict[str, Any] | None = None) -> Path:
    """Files of a checkpoint in Meta's layout: their tensors have the shapes of the model, and no bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params or PARAMS_65B))
    (folder / "tokenizer.model").write_bytes(b"pieces")
    weights = hollow_shard(json.dumps(params or PARAMS_65B), shards)
    for rank in range(shards):
        (folder / f"consolidated.{rank:02d}.pth").write_bytes(weights)
    return folder


@cache
def hollow_shard(params: str, shards: int) -> bytes:
    """A shard file of torch whose tensors all show one number again and again."""
    try:
        architecture = from_params(json.loads(params), vocab_size=32_000)
    except ArchitectureError:
        return b"weights"  # what is wrong with the shape is told before they are looked at
    import torch  # here: most of those who need a small project need no torch

    number = torch.zeros(1, dtype=torch.float16)
    tensors = {
        tensor.name: number.expand(shard_shape(architecture, tensor, shards))
        for tensor in whole_tensors(architecture)
    }
    stream = io.BytesIO()
    torch.save(tensors, stream)
    return stream.getvalue()
