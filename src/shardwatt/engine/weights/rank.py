"""A rank's slices of a checkpoint: opened strictly, copied where the engine wants them."""

from __future__ import annotations

import torch
from torch import Tensor

from shardwatt.architectures import Architecture
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights.copies import expect_same, expect_tied, same_places
from shardwatt.engine.weights.huggingface import hugging_face_parts
from shardwatt.engine.weights.meta import meta_parts
from shardwatt.engine.weights.saved import Part, Reader
from shardwatt.engine.weights.slices import EMBEDDING, OUTPUT, Slice, slice_of, whole_shapes


class RankWeights:
    """This rank's slices under Meta's names and in Meta's order of rows; `open_weights` makes one.

    Attributes:
        names: in the order of a forward pass. Where embeddings are tied, output.weight is there too, and
            reads the embedding's rows.
    """

    def __init__(
        self, architecture: Architecture, saved: dict[str, list[Part]], rank: int, ranks: int
    ) -> None:
        self._architecture, self._saved = architecture, saved
        self._is_whole = ranks == 1
        self._whole = whole_shapes(architecture)
        self._parts = {name: _one_of_each(parts, rank) for name, parts in saved.items()}
        self._slices = {name: slice_of(architecture, name, rank, ranks) for name in self._whole}
        self._reader = Reader()
        self.names: tuple[str, ...] = tuple(self._whole)

    def of_rank(self, rank: int, ranks: int) -> RankWeights:
        """Another rank's slices, or those of another number of ranks, of the same open files."""
        return RankWeights(self._architecture, self._saved, rank, ranks)

    def slice(self, name: str) -> Slice:
        """Which rows and columns of the whole tensor are this rank's."""
        return self._slices[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of this rank's slice: [outputs, inputs], or [dim] of a norm."""
        wanted = self._slices[name]
        shape = (len(wanted.rows), len(wanted.columns))
        return shape if len(self._whole[name]) == 2 else shape[1:]

    def dtype(self, name: str) -> torch.dtype:
        """What its numbers are saved as."""
        return self._parts[name][0].tensor.dtype

    @torch_failures()
    def copy_to(self, name: str, destination: Tensor, part: Slice | None = None) -> None:
        """Copy this rank's slice of a tensor, or another part of it.

        Reads whole rows of the files that hold a part of it, some MiB at a time. Of a tensor that is split by
        columns (wo, w2, tok_embeddings) and was saved in fewer shards than run, a rank reads as many times
        its own share as there are ranks for each saved shard; on one node, all but one read from memory.

        A rank that is alone also reads the other copies of key and value heads that several shards hold, and
        compares them.

        Args:
            name: Meta's.
            destination: of the slice's shape; of any dtype, device and strides.
            part: what of the whole tensor is wanted, where that is not `slice(name)`.

        Raises:
            CellFailure: BAD_CHECKPOINT, the file has become shorter, copies differ, or fp16 cannot hold a
                number; STORAGE, it cannot be read; HOST_OOM.
        """
        wanted = self._slices[name] if part is None else part
        matrix = destination if destination.dim() == 2 else destination[None]
        shape = (len(wanted.rows), len(wanted.columns))
        assert matrix.shape == shape, f"{name}: {tuple(destination.shape)} for {shape}"
        if self._is_whole and destination.dim() == 2:
            for copies in same_places(self._saved[name]):
                expect_same(copy.tensor for copy in copies)
        self._reader.copy(self._parts[name], wanted, matrix)


@torch_failures()
def open_weights(model: ModelOnRank) -> RankWeights:
    """Check that a checkpoint is exactly right, down to the last tensor of the last file.

    The files' headers are read, and of their weights only what is there more than once: the norms of several
    shards, and an output layer beside an embedding that it is tied to. Ranks share that work.

    Args:
        model: `ranks` is one of the architecture's `allowed_shards()`, whatever the checkpoint was saved in.

    Raises:
        CellFailure: BAD_CHECKPOINT, names the file, the tensor, what was found and what was expected;
            BAD_TOKENIZER, the embedding has fewer rows than the tokenizer pieces; STORAGE, a file cannot be
            read; HOST_OOM.
    """
    find = meta_parts if model.checkpoint.layout == "meta" else hugging_face_parts
    saved = find(model)
    if model.architecture.tied_embeddings:
        if saved.get(OUTPUT):
            wanted = slice_of(model.architecture, OUTPUT, model.rank, model.ranks)
            expect_tied(model.checkpoint, saved[EMBEDDING], saved[OUTPUT], wanted)
        saved[OUTPUT] = saved[EMBEDDING]
    return RankWeights(model.architecture, saved, model.rank, model.ranks)


def _one_of_each(parts: list[Part], rank: int) -> list[Part]:
    """One of the parts that hold the same: this rank's own where as many shards were saved as run."""
    return [copies[rank % len(copies)] for copies in same_places(parts)]
