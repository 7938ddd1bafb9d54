"""From a checkpoint's tensors to the layers of the fast model: fused, and laid out for their kernels."""

from __future__ import annotations

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
    """Read a rank's weights layer by layer; at most one tensor is held twice at a time.

    With tied embeddings one rank holds their table once on GPUs. On processors it is held twice: as it is for
    looking up, and in oneDNN's layout for the output. Several ranks hold columns of it for the one and rows
    for the other.

    Args:
        source: this rank's slices, under Meta's names.
        model: its precision and device.
    """
    dtype, device = DTYPES[model.precision], torch.device(model.device)
    epsilon = model.architecture.norm_eps

    def fused(*names: str) -> Tensor:
        sizes = [source.shape(name)[0] for name in names]
        whole = torch.empty((sum(sizes), *source.shape(names[0])[1:]), dtype=dtype, device=device)
        stop = 0
        for name, size in zip(names, sizes, strict=True):
            start, stop = stop, stop + size
            source.copy_to(name, whole[start:stop])
        return whole

    def block(layer: int) -> Block:
        attention, feed_forward = f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
        return Block(
            attention_norm=norm(fused(f"layers.{layer}.attention_norm.weight"), epsilon),
            qkv=linear(fused(*(f"{attention}.{part}.weight" for part in ("wq", "wk", "wv")))),
            wo=linear(fused(f"{attention}.wo.weight")),
            ffn_norm=norm(fused(f"layers.{layer}.ffn_norm.weight"), epsilon),
            w13=linear(fused(*(f"{feed_forward}.{part}.weight" for part in ("w1", "w3")))),
            w2=linear(fused(f"{feed_forward}.w2.weight")),
        )

    # The largest first: while it is held twice, there is little else.
    shared = model.architecture.tied_embeddings and model.ranks == 1 and not prepacks(dtype, device)
    output = None if shared else linear(fused("output.weight"))
    embedding = fused("tok_embeddings.weight")
    return Weights(
        embedding=embedding,
        blocks=[block(layer) for layer in range(model.architecture.n_layers)],
        norm=norm(fused("norm.weight"), epsilon),
        output=output or linear(embedding),
    )
