"""LLaMA once more, for the tests: float64, head by head, position by position, no cache, no shards."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shardwatt.architectures import Architecture


def dense_logits(weights: dict[str, Tensor], shape: Architecture, tokens: list[int]) -> Tensor:
    """Logits after each token of one row, [S, vocab_size], from whole tensors under Meta's names."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    size = shape.head_dim
    x = w["tok_embeddings.weight"][tokens]
    for layer in range(shape.n_layers):
        p = f"layers.{layer}."
        y = _norm(x, w[p + "attention_norm.weight"], shape)
        q, k, v = (y @ w[f"{p}attention.{name}.weight"].T for name in ("wq", "wk", "wv"))
        mixed = torch.zeros_like(q)
        for head in range(shape.n_heads):
            of_q = slice(head * size, (head + 1) * size)
            group = head * shape.n_kv_heads // shape.n_heads
            of_k = slice(group * size, (group + 1) * size)
            turned_q, turned_k = _turned(q[:, of_q], shape), _turned(k[:, of_k], shape)
            for position in range(len(tokens)):
                scores = turned_k[: position + 1] @ turned_q[position] / math.sqrt(size)
                mixed[position, of_q] = torch.softmax(scores, 0) @ v[: position + 1, of_k]
        x = x + mixed @ w[p + "attention.wo.weight"].T
        y = _norm(x, w[p + "ffn_norm.weight"], shape)
        gate = y @ w[p + "feed_forward.w1.weight"].T
        gate = gate / (1 + torch.exp(-gate))
        x = x + (gate * (y @ w[p + "feed_forward.w3.weight"].T)) @ w[p + "feed_forward.w2.weight"].T
    return _norm(x, w["norm.weight"], shape) @ w["output.weight"].T


def _norm(x: Tensor, gain: Tensor, shape: Architecture) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + shape.norm_eps) * gain


def _turned(x: Tensor, shape: Architecture) -> Tensor:
    """Neighbouring pairs of a head, [S, D], turned by their position's angle."""
    turned = torch.empty_like(x)
    for position in range(len(x)):
        for pair in range(shape.head_dim // 2):
            angle = position * _frequency(shape, pair)
            a, b = x[position, 2 * pair], x[position, 2 * pair + 1]
            turned[position, 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            turned[position, 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def _frequency(shape: Architecture, pair: int) -> float:
    plain = math.pow(shape.rope_theta, -2 * pair / shape.head_dim)
    scaling = shape.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    wavelength = 2 * math.pi / plain
    if wavelength < scaling.original_context / scaling.high_freq_factor:
        return plain
    if wavelength > scaling.original_context / scaling.low_freq_factor:
        return plain / scaling.factor
    passage = (scaling.original_context / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    return (1 - passage) * plain / scaling.factor + passage * plain
