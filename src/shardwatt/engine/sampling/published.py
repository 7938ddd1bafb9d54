"""The published way to a nucleus: the whole vocabulary sorted."""

from __future__ import annotations

import torch
from torch import Tensor

from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling.noise import finish, streams


def sorted_next_tokens(logits: Tensor, sampling: Sampling, keys: Tensor, positions: Tensor) -> Tensor:
    """Draw a token for each row as the published loop does: softmax, full sort, cumulative sum, draw.

    Like the published draw it makes the host wait for CUDA once.

    Args:
        logits: [R, vocab_size], float32; -inf for what may not be drawn.
        sampling: temperature, 0 for the likeliest token (of equals the lowest id), and top-p.
        keys: of the rows, from `row_keys`, [R], int64.
        positions: of the token that is drawn in its row's sequence, prompt included, [R], int64.

    Returns:
        ids, [R], int64.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    falling, ids = torch.softmax(logits / sampling.temperature, dim=-1).sort(dim=-1, descending=True)
    kept = in_nucleus(falling, sampling.top_p)  # [R, V]
    widest = max(1, int(kept.sum(dim=-1).max()))  # no token stays where the logits are no numbers
    weights = falling[:, :widest] * kept[:, :widest]
    ids = ids[:, :widest]
    first = finish(weights, streams(keys, positions), ids).argmax(dim=-1, keepdim=True)  # [R, 1]
    return ids.gather(-1, first).squeeze(-1)


def in_nucleus(falling: Tensor, top_p: float) -> Tensor:
    """Which tokens are in the smallest set of likeliest ones that reaches top_p (arXiv 1904.09751).

    A token stays if the likelier ones together have at most top_p, as in the published loop. There, tokens as
    likely as the last that stays go or stay as the sort has left them; here they stay, so that the set does
    not depend on how it is found.

    Args:
        falling: probabilities in falling order, all or the first of them, [R, K].
        top_p: 0 or more.

    Returns:
        True for those that stay, [R, K].
    """
    # CUDA adds up a single row in an order that changes each time: float64 leaves no trace of it.
    exact = torch.float64 if falling.is_cuda and len(falling) == 1 else falling.dtype
    likelier = falling.cumsum(dim=-1, dtype=exact) - falling
    # The likelier ones' sum never falls, so what stays comes first; the first one stays in any case.
    last = (likelier[:, 1:] <= top_p).sum(dim=-1, keepdim=True)
    return falling >= falling.gather(-1, last)
