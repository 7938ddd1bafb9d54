"""From a checkpoint's tensors to the layers of the fast model: fused, and laid out for their kernels."""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from shardwatt.engine.fast.linear import Linear, linear, prepacks
from shardwatt.engine.fast.norm import Norm, norm
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights import RankWeights
from shardwatt.engine.weights.dtypes import DTYPES


@dataclass(frozen=True, slots=True)
class Block:
    """Weights of one layer.

    Attributes:
        attention_norm: dim to dim.
        qkv: dim to (H + 2 G) x D: queries, keys, values.
        wo: H x D to dim.
        ffn_norm: dim to dim.
        w13: dim to 2 x hidden: w1's half, then w3's.
        w2: hidden to dim.
    """

    attention_norm: Norm
    qkv: Linear
    wo: Linear
    ffn_norm: Norm
    w13: Linear
    w2: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All of a rank's weights: embedding [vocabulary, dim / ranks], output dim to vocabulary / ranks."""

    embedding: Tensor
    blocks: list[Block]
    norm: Norm
    output: Linear

    def suit(self, rows: int) -> None:
        """Lay the weights out for steps of so many rows, tensor by tensor."""
        self.output.suit(rows)
        for block in self.blocks:
            for product in (block.qkv, block.wo, block.w13, block.w2):
                product.suit(rows)


def read_weights(source: RankWeights, model: ModelOnRank) -> Weights:
    """Read a rank's weights layer by layer, in the memory that they take in the end.

    Where weights are laid out, one product's are held twice meanwhile. The output layer, the largest, comes
    first, when there is nothing else. The embedding, which is as large and not laid out, comes last: until
    then w1 with w3, the largest product of a layer, is held twice in its place. That is room enough unless
    the vocabulary is smaller than the feed-forward layer is wide.

    With tied embeddings one rank holds their table once on GPUs. On processors it is held twice: as it is for
    looking up, and in oneDNN's layout for the output. Several ranks hold columns of it for the one and rows
    for the other.

    Args:
        source: this rank's slices, under Meta's names.
        model: its precision and device, and the rows that weights are laid out for.
    """
    dtype, device = DTYPES[model.precision], torch.device(model.device)
    epsilon, laid_out = model.architecture.norm_eps, prepacks(dtype, device)

    def fused(*names: str, passes: bool = False) -> Tensor:
        sizes = [source.shape(name)[0] for name in names]
        shape = (sum(sizes), *source.shape(names[0])[1:])
        whole = passing_tensor(shape, dtype) if passes else torch.empty(shape, dtype=dtype, device=device)
        stop = 0
        for name, size in zip(names, sizes, strict=True):
            start, stop = stop, stop + size
            source.copy_to(name, whole[start:stop])
        return whole

    def product(*names: str) -> Linear:
        return linear(fused(*names, passes=laid_out), model.rows)

    def block(layer: int) -> Block:
        attention, feed_forward = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        return Block(
            attention_norm=norm(fused(f"layers.{layer}.attention_norm.weight"), epsilon),
            qkv=product(*(f"{attention}.{part}.weight" for part in ("wq", "wk", "wv"))),
            wo=product(f"{attention}.wo.weight"),
            ffn_norm=norm(fused(f"layers.{layer}.ffn_norm.weight"), epsilon),
            w13=product(*(f"{feed_forward}.{part}.weight" for part in ("w1", "w3"))),
            w2=product(f"{feed_forward}.w2.weight"),
        )

    shared = model.architecture.tied_embeddings and model.ranks == 1 and not laid_out
    output = None if shared else product("output.weight")
    blocks = [block(layer) for layer in range(model.architecture.n_layers)]
    embedding = fused("tok_embeddings.weight")
    return Weights(
        embedding=embedding,
        blocks=blocks,
        norm=norm(fused("norm.weight"), epsilon),
        output=output or linear(embedding, model.rows),
    )


def passing_tensor(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory goes back to the system with it: glibc would keep some of what it has lent, up to
    32 MiB a tensor, and that would stay beside the shard.

    Raises:
        MemoryError: there is not enough.
    """
    size = math.prod(shape) * dtype.itemsize
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"{size} bytes for weights that are to be laid out: {error.strerror}") from error
    return torch.frombuffer(memory, dtype=dtype).view(shape)
