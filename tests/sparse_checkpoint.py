"""Checkpoints of any size that take no disk: every tensor is a hole in its file, and reads as zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from shardwatt.architectures import Architecture
from shardwatt.engine.weights.safetensorsfile import header
from shardwatt.engine.weights.shapefile import params_of
from shardwatt.engine.weights.slices import slice_of, whole_shapes

Files = Literal["pth", "safetensors"]


def sparse(folder: Path, shape: Architecture, shards: int, files: Files = "safetensors") -> list[Path]:
    """Write a checkpoint in Meta's layout, in bfloat16, and return its files of weights.

    Args:
        folder: made here.
        shape: of the model.
        shards: files that it is saved in.
        files: as torch.save writes them, or safetensors.
    """
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(params_of(shape)))
    (folder / "tokenizer.model").touch()
    paths = []
    for shard in range(shards):
        path = folder / f"consolidated.{shard:02d}.{files}"
        tensors = _shapes(shape, shard, shards)
        if files == "pth":
            _save_pth(path, tensors)
        else:
            _save_safetensors(path, tensors)
        paths.append(path)
    return paths


def _shapes(shape: Architecture, shard: int, shards: int) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, whole in whole_shapes(shape).items():
        part = slice_of(shape, name, shard, shards)
        found[name] = (len(part.rows), len(part.columns))[2 - len(whole) :]
    return found


def _save_pth(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    # Neither has numbers: the tensors no memory, the file holes where theirs would be.
    with FakeTensorMode(), torch.serialization.skip_data(materialize_fake_tensors=True):
        tensors: dict[str, Tensor] = {
            name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()
        }
        torch.save(tensors, path)


def _save_safetensors(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    start = header({name: (torch.bfloat16, shape) for name, shape in shapes.items()})
    path.write_bytes(start)
    with path.open("r+b") as stream:
        stream.truncate(len(start) + sum(2 * torch.Size(shape).numel() for shape in shapes.values()))
