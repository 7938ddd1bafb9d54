"""LLaMA with fused layers over a static cache (arXiv 2302.13971, 2307.09288): prefill and single steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shardwatt.engine.fast.attention import Attention, Heads, attention
from shardwatt.engine.fast.cache import Cache
from shardwatt.engine.fast.collectives import Peers
from shardwatt.engine.fast.packing import Packed
from shardwatt.engine.fast.weights import Block, Weights
from shardwatt.engine.finite import Finite
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.rope import rotations


class FastModel:
    """A decoder of the LLaMA family, this rank's part; call `allocate` first.

    Args:
        weights: of this rank.
        model: its shape, and how many ranks there are.
    """

    cache: Cache
    attention: Attention

    def __init__(self, weights: Weights, model: ModelOnRank) -> None:
        self.architecture = model.architecture
        self.weights = weights
        self.peers = Peers(model.ranks)
        self.finite = Finite(weights.embedding.device, weights.embedding.dtype)
        self.heads = Heads(
            queries=model.architecture.n_heads // model.ranks,
            groups=model.architecture.kv_heads_per_shard(model.ranks),
            size=model.architecture.head_dim,
        )

    @property
    def row_bytes(self) -> int:
        """Keys and values of a position of a row, in one layer."""
        return 2 * self.heads.groups * self.heads.size * self.weights.embedding.element_size()

    def allocate(self, rows: int, positions: int) -> None:
        """Make a cache of rows x positions; the old one goes first. Weights are laid out for so many rows."""
        if hasattr(self, "cache"):
            del self.cache
        self.weights.suit(rows)
        dtype, device = self.weights.embedding.dtype, self.weights.embedding.device
        self.attention = attention(self.heads, rows, positions, dtype, device)
        self.rotations = rotations(self.architecture, positions).to(device)  # [T, D / 2]
        self.cache = Cache(
            layers=len(self.weights.blocks),
            rows=rows,
            positions=positions,
            heads=self.heads.groups,
            head_dim=self.heads.size,
            by_position=self.attention.by_position,
            dtype=dtype,
            device=device,
        )

    def prefill(self, prompts: Packed) -> Tensor:
        """Take in prompts; the logits after each one's last token: [prompts, vocabulary], float32."""
        rotation = self.rotations[prompts.positions, None]  # [N, 1, D / 2]
        places = self.cache.places(prompts.rows, prompts.positions)
        x = self._embedded(prompts.tokens)  # [N, dim]
        queries, groups = self.heads.queries, self.heads.groups
        last = len(self.weights.blocks) - 1
        for layer, block in enumerate(self.weights.blocks):
            heads = self._project(x, layer, block, rotation, places)  # [N, H + 2 G, D]
            q, k, v = heads[:, :queries], heads[:, queries:-groups], heads[:, -groups:]
            mixed = self.attention.prefill(q, k, v, prompts)  # [N, H x D]
            if layer == last:
                # What follows concerns each token alone, and only the last ones are asked for.
                x, mixed = x[prompts.ends], mixed[prompts.ends]
            x = self._finish(x, mixed, block)
        return self._logits(x)

    def step(self, tokens: Tensor, positions: Tensor, most: int) -> Tensor:
        """Take in a token a row; the logits after it. Nothing here waits for the device.

        Args:
            tokens: ids, [R], of the first rows of the cache.
            positions: where each goes, [R].
            most: positions that a row sees at most.

        Returns:
            [R, vocabulary], float32.
        """
        rotation = self.rotations[positions, None]  # [R, 1, D / 2]
        places = self.cache.places(slice(len(positions)), positions)
        reach = self.attention.reach(positions, most)
        x = self._embedded(tokens)  # [R, dim]
        for layer, block in enumerate(self.weights.blocks):
            q = self._project(x, layer, block, rotation, places)[:, : self.heads.queries]  # [R, H, D]
            mixed = self.attention.decode(q, self.cache, layer, reach, most)  # [R, H x D]
            x = self._finish(x, mixed, block)
        return self._logits(x)

    def _embedded(self, tokens: Tensor) -> Tensor:
        return self.peers.join(functional.embedding(tokens, self.weights.embedding))

    def _project(self, x: Tensor, layer: int, block: Block, rotation: Tensor, places: Tensor) -> Tensor:
        """Queries, keys, values: [N, H + 2 G, D]; keys and values are put into the cache."""
        queries, groups = self.heads.queries, self.heads.groups
        qkv = block.qkv(block.attention_norm(x))  # [N, (H + 2 G) x D]
        heads = qkv.view(-1, queries + 2 * groups, self.heads.size)
        rotate(heads[:, : queries + groups], rotation)
        self.cache.write(layer, heads[:, queries:], places)
        return heads

    def _finish(self, x: Tensor, mixed: Tensor, block: Block) -> Tensor:
        """The rest of a layer, added to the residual stream in place: x [N, dim], mixed [N, H x D]."""
        x += self.peers.sum(block.wo(mixed))
        both = block.w13(block.ffn_norm(x))  # [N, 2 x hidden]
        gate, up = both.chunk(2, -1)
        x += self.peers.sum(block.w2(functional.silu(gate).mul_(up)))
        return x

    def _logits(self, x: Tensor) -> Tensor:
        part = self.weights.output(self.weights.norm(x))  # [R, vocabulary / ranks]
        logits = self.peers.join(part).float()
        self.finite.add(logits)
        return logits


def rotate(x: Tensor, rotation: Tensor) -> None:
    """Turn neighbouring pairs of a head in place, in float32: x [N, heads, D], rotation [N, 1, D / 2]."""
    pairs = x.view(*x.shape[:-1], -1, 2)  # [N, heads, D / 2, 2]
    turned = torch.view_as_complex(pairs.float()).mul_(rotation)
    if x.dtype != torch.float32:
        pairs.copy_(torch.view_as_real(turned))
