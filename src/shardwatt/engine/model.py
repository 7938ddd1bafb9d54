"""LLaMA on FairScale's tensor-parallel layers (arXiv 2302.13971, 2307.09288, 2407.21783).

Letters in shapes: R rows of the batch, S tokens of this call, T positions in the cache, H query heads
and G key and value heads of this rank, D size of a head, dim width of the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairscale.nn.model_parallel import layers
from fairscale.nn.model_parallel.initialize import get_model_parallel_world_size
from torch import Tensor, nn
from torch.nn import functional

from shardwatt.architectures import Architecture
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.rope import rotations
from shardwatt.engine.weights import open_weights
from shardwatt.engine.weights.dtypes import DTYPES


class Transformer(nn.Module):
    """A decoder of the LLaMA family, this rank's part; parameters are named as in Meta's checkpoints.

    Born on the meta device: it takes no memory until weights are assigned with
    `load_state_dict(..., assign=True)`, as `load_transformer` does. Needs FairScale's model-parallel group.
    Call `allocate` before the first forward pass.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.rotations = torch.empty(0)
        with _without_initial_weights():
            self.tok_embeddings = _unallocated(
                layers.ParallelEmbedding(architecture.vocab_size, architecture.dim)
            )
            self.layers = nn.ModuleList(Block(architecture) for _ in range(architecture.n_layers))
            self.norm = RMSNorm(architecture)
            self.output = _column(architecture.dim, architecture.vocab_size, gather_output=True)

    def allocate(self, rows: int, positions: int) -> None:
        """Make caches of rows x positions, in the weights' precision and on their device."""
        weight = self.norm.weight
        self.rotations = rotations(self.architecture, positions).to(weight.device)
        for block in self.layers:
            assert isinstance(block, Block)
            block.attention.allocate(rows, positions, weight.dtype, weight.device)

    def forward(self, tokens: Tensor, start: int) -> Tensor:
        """Logits of the token after the last one.

        Args:
            tokens: ids, [R, S]; they take positions start to start + S - 1 of the cache.
            start: positions that the cache holds already.

        Returns:
            [R, vocab_size], float32, the same on every rank.
        """
        hidden = self.hidden(tokens, start)  # [R, S, dim]
        logits: Tensor = self.output(hidden[:, -1])  # [R, vocab_size]
        return logits.float()

    def logits(self, tokens: Tensor, start: int) -> Tensor:
        """Logits of the token after each one, [R, S, vocab_size], float32; arguments as of `forward`."""
        logits: Tensor = self.output(self.hidden(tokens, start))  # [R, S, vocab_size]
        return logits.float()

    def hidden(self, tokens: Tensor, start: int) -> Tensor:
        """Normalised output of the last block, [R, S, dim]."""
        count = tokens.shape[1]
        rotation = self.rotations[start : start + count]  # [S, D / 2]
        mask = None
        if count > 1:
            # Token s of this call sees the positions up to start + s.
            blocked = self.norm.weight.new_full((count, start + count), float("-inf"))
            mask = blocked.triu(start + 1)  # [S, T]
        x: Tensor = self.tok_embeddings(tokens)  # [R, S, dim]
        for block in self.layers:
            x = block(x, start, rotation, mask)
        normalised: Tensor = self.norm(x)
        return normalised


class Block(nn.Module):
    """Attention and feed-forward layer, each behind a norm and added to the residual stream."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.attention = Attention(architecture)
        self.feed_forward = FeedForward(architecture)
        self.attention_norm = RMSNorm(architecture)
        self.ffn_norm = RMSNorm(architecture)

    def forward(self, x: Tensor, start: int, rotation: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), start, rotation, mask)  # [R, S, dim]
        output: Tensor = x + self.feed_forward(self.ffn_norm(x))
        return output


class Attention(nn.Module):
    """Causal attention over a static cache; query heads may share key and value heads in groups."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        shards = get_model_parallel_world_size()
        self.heads = architecture.n_heads // shards
        self.kv_heads = architecture.kv_heads_per_shard(shards)
        self.head_dim = architecture.head_dim
        # With more ranks than key and value heads, several ranks hold the same one.
        kv_dim = self.kv_heads * shards * self.head_dim
        self.wq = _column(architecture.dim, architecture.q_dim)
        self.wk = _column(architecture.dim, kv_dim)
        self.wv = _column(architecture.dim, kv_dim)
        self.wo = _row(architecture.q_dim, architecture.dim)
        self.cache_k = self.cache_v = torch.empty(0)

    def allocate(self, rows: int, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (rows, positions, self.kv_heads, self.head_dim)  # [R, T, G, D]
        self.cache_k = self.cache_v = torch.empty(0)  # the old cache goes before the new one comes
        self.cache_k = torch.zeros(shape, dtype=dtype, device=device)
        self.cache_v = torch.zeros(shape, dtype=dtype, device=device)

    def forward(self, x: Tensor, start: int, rotation: Tensor, mask: Tensor | None) -> Tensor:
        rows, count, _ = x.shape
        stop = start + count
        q = self.wq(x).view(rows, count, self.heads, self.head_dim)  # [R, S, H, D]
        k = self.wk(x).view(rows, count, self.kv_heads, self.head_dim)  # [R, S, G, D]
        v = self.wv(x).view(rows, count, self.kv_heads, self.head_dim)  # [R, S, G, D]
        self.cache_k[:rows, start:stop] = rotated(k, rotation)
        self.cache_v[:rows, start:stop] = v
        q = rotated(q, rotation).transpose(1, 2)  # [R, H, S, D]
        keys = self._all_heads(self.cache_k[:rows, :stop]).transpose(1, 2)  # [R, H, T, D]
        values = self._all_heads(self.cache_v[:rows, :stop]).transpose(1, 2)  # [R, H, T, D]
        scores = q @ keys.transpose(2, 3) / math.sqrt(self.head_dim)  # [R, H, S, T]
        if mask is not None:
            scores = scores + mask
        shares = functional.softmax(scores.float(), dim=-1).type_as(q)  # [R, H, S, T]
        mixed = shares @ values  # [R, H, S, D]
        output: Tensor = self.wo(mixed.transpose(1, 2).flatten(2))  # [R, S, dim]
        return output

    def _all_heads(self, cached: Tensor) -> Tensor:
        """Repeat key or value heads for the query heads that share them: [R, T, G, D] to [R, T, H, D]."""
        if self.heads == self.kv_heads:
            return cached
        return cached.repeat_interleave(self.heads // self.kv_heads, dim=2)


class FeedForward(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.w1 = _column(architecture.dim, architecture.hidden_dim)
        self.w2 = _row(architecture.hidden_dim, architecture.dim)
        self.w3 = _column(architecture.dim, architecture.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        gated = functional.silu(self.w1(x)) * self.w3(x)  # [R, S, hidden_dim / shards]
        output: Tensor = self.w2(gated)  # [R, S, dim]
        return output


class RMSNorm(nn.Module):
    """x / rms(x) x weight, the root mean square taken in float32 (arXiv 1910.07467)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.epsilon = architecture.norm_eps
        self.weight = nn.Parameter(torch.empty(architecture.dim, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)  # [R, S, 1]
        return (wide * scale).type_as(x) * self.weight


@torch_failures()
def load_transformer(model: ModelOnRank) -> Transformer:
    """Build this rank's part of a model and fill it from its checkpoint, tensor by tensor.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER or HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    transformer = Transformer(model.architecture)
    weights = open_weights(model)
    dtype, filled = DTYPES[model.precision], dict[str, Tensor]()
    # Of a single rank, both uses of a tied embedding are the same tensor; several split it in two ways.
    shared = {"output.weight"} if model.architecture.tied_embeddings and model.ranks == 1 else set[str]()
    for name in weights.names:
        if name not in shared:
            filled[name] = torch.empty(weights.shape(name), dtype=dtype, device=model.device)
            weights.copy_to(name, filled[name])
    for name in shared:
        filled[name] = filled["tok_embeddings.weight"]
    transformer.load_state_dict(filled, strict=True, assign=True)
    return transformer.requires_grad_(False)


def rotated(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of a head, as Meta's weights expect: x [R, S, H, D], rotation [S, D / 2]."""
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))  # [R, S, H, D / 2]
    turned = pairs * rotation[:, None, :]
    return torch.view_as_real(turned).flatten(-2).type_as(x)  # [R, S, H, D]


def _column(inputs: int, outputs: int, *, gather_output: bool = False) -> Any:
    return _unallocated(layers.ColumnParallelLinear(inputs, outputs, bias=False, gather_output=gather_output))


def _row(inputs: int, outputs: int) -> Any:
    return _unallocated(layers.RowParallelLinear(inputs, outputs, bias=False, input_is_parallel=True))


def _unallocated(layer: Any) -> Any:
    # FairScale allocates with torch.Tensor(rows, columns), which ignores torch.device("meta").
    return layer.to("meta")


@contextmanager
def _without_initial_weights() -> Iterator[None]:
    """Keep FairScale 0.4.13 from allocating and filling the unsharded weight of each layer on every rank."""
    initialise = layers._initialize_affine_weight
    layers._initialize_affine_weight = lambda *args, **kwargs: None
    try:
        yield
    finally:
        layers._initialize_affine_weight = initialise
