"""Which tensors a LLaMA has, under Meta's names, and which part of each belongs to a rank.

Projections whose outputs are split (wq, wk, wv, w1, w3, output) are split by rows, those whose inputs are
split (wo, w2) by columns, as in FairScale's ColumnParallelLinear and RowParallelLinear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from shardwatt.architectures import Architecture

# Of what is sliced here, and so offered from here too.
from shardwatt.tensornames import EMBEDDING as EMBEDDING
from shardwatt.tensornames import OUTPUT as OUTPUT
from shardwatt.tensornames import WholeTensor, whole_tensors

#: Recomputed from the shape of the model, so not read.
ROPE_FREQUENCIES = "rope.freqs"


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows and columns of a whole matrix, each counted from 0; a norm is one row.

    Attributes:
        rows: of the whole matrix; every second one for half a head in transformers' order.
        columns: without gaps.
    """

    rows: range
    columns: range


@lru_cache(maxsize=8)
def tensors_of(architecture: Architecture) -> Mapping[str, WholeTensor]:
    """Every tensor of a model, in the order of a forward pass; output.weight included where tied."""
    return {tensor.name: tensor for tensor in whole_tensors(architecture)}


def whole_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, unsplit: [outputs, inputs], or [dim] of a norm."""
    return {name: tensor.shape for name, tensor in tensors_of(architecture).items()}


def slice_of(
    architecture: Architecture,
    name: str,
    rank: int,
    ranks: int,
    *,
    embedding_by_rows: bool = False,
) -> Slice:
    """The part of a tensor that one of so many ranks holds; `ranks` is one of `allowed_shards()`.

    Args:
        architecture: the model's shape.
        name: Meta's.
        rank: from 0.
        ranks: how many there are.
        embedding_by_rows: split the embedding by vocabulary, as LLaMA 3 is saved, instead of by width.
    """
    tensor = tensors_of(architecture)[name]
    split = "rows" if name == EMBEDDING and embedding_by_rows else tensor.split
    if split == "none":
        return Slice(range(1), range(tensor.shape[0]))
    rows, columns = map(range, tensor.shape)
    if split == "heads":
        # Above the number of key and value heads, neighbouring ranks hold the same one.
        first = rank * architecture.n_kv_heads // ranks
        heads = architecture.kv_heads_per_shard(ranks)
        size = architecture.head_dim
        return Slice(rows[first * size : (first + heads) * size], columns)
    if split == "columns":
        return Slice(rows, _share(columns, rank, ranks))
    return Slice(_share(rows, rank, ranks), columns)


def _share(whole: range, rank: int, ranks: int) -> range:
    size = len(whole) // ranks
    return whole[rank * size : (rank + 1) * size]
