"""Files of weights that are to be written: which tensors are in them, and what of the whole ones each is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from shardwatt.architectures import Architecture
from shardwatt.checkpoints import WHOLE_FILE
from shardwatt.engine.weights.huggingface import rotated_heads
from shardwatt.engine.weights.rank import RankWeights
from shardwatt.engine.weights.safetensorsfile import header
from shardwatt.engine.weights.slices import OUTPUT, tensors_of
from shardwatt.errors import ShardwattError

#: Largest file of the layout of transformers in bytes, unless one tensor is larger.
FILE_BYTES = 5 * 10**9

_SHARD = "consolidated.{rank:02d}.safetensors"
_FILE = "model-{number:05d}-of-{count:05d}.safetensors"


class ReshardError(ShardwattError):
    """A copy that cannot be made; nothing is left of it."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of a file to be.

    Attributes:
        name: in that file.
        whole: Meta's name of the whole tensor that it is of.
        dtype: of its numbers.
        shape: rows first.
        cut: makes it from the whole tensor; a view or a copy.
    """

    name: str
    whole: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    cut: Callable[[Tensor], Tensor]

    @property
    def size_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A safetensors file to be.

    Attributes:
        name: of the file.
        tensors: in their order in the file, which is that of the source's names.
    """

    name: str
    tensors: list[PlannedTensor]

    @property
    def header(self) -> bytes:
        return header({tensor.name: (tensor.dtype, tensor.shape) for tensor in self.tensors})

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(tensor.size_bytes for tensor in self.tensors)


def meta_files(architecture: Architecture, source: RankWeights, shards: int) -> list[PlannedFile]:
    """Meta's layout: what rank N of so many holds is in file N; a tied embedding is there once."""
    files = []
    for rank in range(shards):
        weights = source.of_rank(rank, shards)
        tensors = [
            PlannedTensor(name, name, weights.dtype(name), weights.shape(name), _slice(weights, name))
            for name in _saved_names(architecture, source)
        ]
        files.append(PlannedFile(_SHARD.format(rank=rank), tensors))
    return files


def hugging_face_files(architecture: Architecture, source: RankWeights) -> list[PlannedFile]:
    """The layout of transformers: whole tensors, in files of at most FILE_BYTES of them."""
    weights = source.of_rank(0, 1)
    groups: list[list[PlannedTensor]] = [[]]
    size_bytes = 0
    for name in _saved_names(architecture, source):
        cut = _half_split(rotated_heads(architecture, name))
        theirs = tensors_of(architecture)[name].theirs
        tensor = PlannedTensor(theirs, name, weights.dtype(name), weights.shape(name), cut)
        if groups[-1] and size_bytes + tensor.size_bytes > FILE_BYTES:
            groups.append([])
            size_bytes = 0
        groups[-1].append(tensor)
        size_bytes += tensor.size_bytes
    if len(groups) == 1:
        return [PlannedFile(WHOLE_FILE, groups[0])]
    return [
        PlannedFile(_FILE.format(number=number, count=len(groups)), group)
        for number, group in enumerate(groups, start=1)
    ]


def _saved_names(architecture: Architecture, source: RankWeights) -> list[str]:
    return [name for name in source.names if name != OUTPUT or not architecture.tied_embeddings]


def _slice(weights: RankWeights, name: str) -> Callable[[Tensor], Tensor]:
    """Takes a rank's part of a whole tensor."""
    part = weights.slice(name)
    rows, columns = slice(part.rows.start, part.rows.stop), slice(part.columns.start, part.columns.stop)
    return lambda whole: whole[columns] if whole.dim() == 1 else whole[rows, columns]


def _half_split(heads: int | None) -> Callable[[Tensor], Tensor]:
    """Puts the pairs of rows of so many heads apart, as transformers has them; None leaves all as it is."""
    if heads is None:
        return lambda whole: whole
    # [heads, D / 2, 2, dim] to [heads, 2, D / 2, dim]
    return lambda whole: whole.view(heads, -1, 2, whole.shape[1]).transpose(1, 2).reshape(whole.shape)
