"""How the next token is drawn: top-p (nucleus) sampling, the same on every rank."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from shardwatt.engine.protocol import Sampling


def batch_generator(seed: int, batch: int, device: torch.device) -> torch.Generator:
    """Random numbers of one batch, the same on every rank and in every run.

    The seed is the first 64 bits of SHA-256("seed/batch"): neighbouring batches share nothing.
    """
    digest = hashlib.sha256(f"{seed}/{batch}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big"))


def next_tokens(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Draw a token for each row; at temperature 0 take the likeliest.

    Args:
        logits: [rows, vocab_size].
        sampling: temperature and top-p.
        generator: where the draw comes from, on the logits' device.

    Returns:
        ids, [rows].
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities, ids = nucleus(torch.softmax(logits / sampling.temperature, dim=-1), sampling.top_p)
    drawn = torch.multinomial(probabilities, 1, generator=generator)  # [rows, 1], places in the sorted order
    return ids.gather(-1, drawn).squeeze(-1)


def nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The smallest set of likeliest tokens that reaches top_p (arXiv 1904.09751), renormalised.

    A token stays if the likelier ones together have at most top_p, as in the published loop.

    Returns:
        probabilities in falling order, zero outside the set, and their ids; both [rows, vocab_size].
    """
    falling, ids = probabilities.sort(dim=-1, descending=True)
    likelier = falling.cumsum(dim=-1) - falling
    kept = falling.masked_fill(likelier > top_p, 0.0)
    return kept / kept.sum(dim=-1, keepdim=True), ids
