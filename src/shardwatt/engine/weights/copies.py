"""What a checkpoint holds more than once is the same each time."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from shardwatt.engine.weights.saved import CHUNK_BYTES, Part, Reader, SavedTensor, bad
from shardwatt.engine.weights.slices import Slice
from shardwatt.models import Checkpoint

#: What says that the embedding is the output layer too, by layout.
_TIES = {"meta": "tied_embeddings", "huggingface": "tie_word_embeddings"}


def same_places(parts: list[Part]) -> list[list[Part]]:
    """Parts that hold the same of a whole tensor together, in the order of the first of each."""
    same: dict[Slice, list[Part]] = {}
    for part in parts:
        same.setdefault(part.place, []).append(part)
    return list(same.values())


def expect_same(copies: Iterable[SavedTensor]) -> None:
    """Read saved tensors of one shape and type, and compare their bytes with those of the first.

    Raises:
        CellFailure: BAD_CHECKPOINT, one has others; STORAGE, a file cannot be read.
    """
    first, *others = copies
    end = math.prod(first.shape) * first.dtype.itemsize
    for other in others:
        for begin in range(0, end, CHUNK_BYTES):
            count = min(CHUNK_BYTES, end - begin)
            if other.file.read(count, other.offset + begin) != first.file.read(count, first.offset + begin):
                raise bad(
                    other.file.path,
                    f"{other.name}: found other numbers than in {first.file.path.name}, expected the same in "
                    "every shard that holds it; get a clean copy of all shards",
                )


def expect_tied(checkpoint: Checkpoint, embedding: list[Part], output: list[Part], wanted: Slice) -> None:
    """Read an output layer that is saved although it is the embedding, and compare the two.

    Args:
        checkpoint: whose shape says that they are one.
        embedding: its parts.
        output: parts of the output layer.
        wanted: rows that are compared; ranks share them.

    Raises:
        CellFailure: BAD_CHECKPOINT, they are two; STORAGE, a file cannot be read.
    """
    reader = Reader()
    # Holds the numbers of both exactly.
    dtype = torch.promote_types(embedding[0].tensor.dtype, output[0].tensor.dtype)
    at_once = max(1, CHUNK_BYTES // (len(wanted.columns) * dtype.itemsize))
    for begin in range(0, len(wanted.rows), at_once):
        place = Slice(wanted.rows[begin : begin + at_once], wanted.columns)
        one, other = torch.empty(2, len(place.rows), len(place.columns), dtype=dtype).unbind()
        reader.copy(embedding, place, one)
        reader.copy(output, place, other)
        if not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            tensor = output[0].tensor
            raise bad(
                tensor.file.path,
                f"{tensor.name}: found an output layer of its own, and {checkpoint.params.name} says that "
                f"it is the embedding; set {_TIES[checkpoint.layout]} to false there if the model was "
                "trained so, otherwise get a clean copy",
            )
