"""The nucleus by the same steps whatever the values are: for CUDA, where the host must not wait."""

from __future__ import annotations

import torch
from torch import Tensor

from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling.noise import finish, streams

#: Bits that tell apart float32 numbers from 0 to 1: the sign and the highest bit of the exponent are 0.
_BITS = 30

#: Bytes that are worked on at a time: they are passed over up to thirty times, and stay in the second-level
#: cache meanwhile, of which an A100 has 40 MB and an H100 50 MB.
_CACHED_BYTES = 32 * 2**20


def unbranched_next_tokens(logits: Tensor, sampling: Sampling, keys: Tensor, positions: Tensor) -> Tensor:
    """Draw a token for each row; arguments and tokens as of `next_tokens`.

    The host reads no value, and what is launched depends on the shape alone.
    """
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    ids = torch.arange(logits.shape[1], device=logits.device)
    rows = rows_at_a_time(*logits.shape)
    drawn = []
    all_starts = streams(keys, positions)
    for some, starts in zip(torch.split(logits, rows), torch.split(all_starts, rows), strict=True):
        probabilities = torch.softmax(some / sampling.temperature, dim=-1)
        weights = probabilities * (probabilities > _border(probabilities, sampling.top_p))
        drawn.append(finish(weights, starts, ids).argmax(dim=-1))
    return torch.cat(drawn)


def rows_at_a_time(rows: int, vocab_size: int) -> int:
    """Rows that are worked on together: all if they fit into the cache, else equal parts that do."""
    parts = max(1, -(-rows * vocab_size * _bytes(1) // _CACHED_BYTES))
    return -(-rows // parts)


def _border(probabilities: Tensor, top_p: float) -> Tensor:
    """What a token's probability must exceed to be in the nucleus, [R, 1]; probabilities: [R, V], float32.

    Numbers that are not negative are ordered as their bits are, read as integers. The bits of the largest
    number above which there is more than top_p are found from the highest to the lowest, some at a time; 0
    where there is no such number.
    """
    device = probabilities.device
    at_once = _bits_at_once(probabilities.numel())
    bits = torch.zeros(len(probabilities), 1, dtype=torch.int32, device=device)
    digits = torch.arange(1, 2**at_once, dtype=torch.int32, device=device)  # [D]
    for shift in range(_BITS - at_once, -1, -at_once):
        tried = bits.add(digits, alpha=1 << shift).view(torch.float32)  # [R, D]
        above = probabilities[:, None, :] > tried[:, :, None]  # [R, D, V]
        likelier = (probabilities[:, None, :] * above).sum(dim=-1)  # [R, D], falling
        digit = (likelier > top_p).sum(dim=-1, keepdim=True, dtype=torch.int32)
        bits.add_(digit, alpha=1 << shift)
    return bits.view(torch.float32)


def _bits_at_once(numbers: int) -> int:
    """Few numbers take their time in launches, many in being read: so few are compared more at once."""
    return next(bits for bits in (5, 3, 2, 1) if bits == 1 or numbers * _bytes(bits) <= _CACHED_BYTES)


def _bytes(bits: int) -> int:
    """Of a probability, and of what it is compared with in so many bits: a truth value and a product each."""
    return 4 + ((1 << bits) - 1) * (1 + 4)
