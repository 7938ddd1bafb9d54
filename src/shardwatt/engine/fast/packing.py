"""Prompts of mixed length one after another in one row of tokens: nothing is padded, nothing walked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

#: Tokens that go through the model at once: enough to be limited by arithmetic, few enough that the
#: activations stay small beside the weights. A longer prompt goes alone.
PREFILL_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Packed:
    """Prompts one after another.

    Attributes:
        tokens: ids, [N].
        positions: of each token in its own prompt, [N].
        rows: the row of the cache that each token belongs to, [N].
        borders: the first token of each prompt, and N.
        starts: the same on the device, int32, [prompts + 1].
        ends: the last token of each prompt, [prompts].
        sizes: tokens of each prompt.
    """

    tokens: Tensor
    positions: Tensor
    rows: Tensor
    borders: list[int]
    starts: Tensor
    ends: Tensor
    sizes: list[int]


def packed(prompts: Sequence[list[int]], rows: Sequence[int], device: torch.device) -> Packed:
    """Put prompts one after another; each belongs to a row of the cache."""
    sizes = [len(prompt) for prompt in prompts]
    borders = [0, *accumulate(sizes)]
    lengths = torch.tensor(sizes)
    return Packed(
        tokens=sent(torch.tensor([token for prompt in prompts for token in prompt]), device),
        positions=sent(torch.cat([torch.arange(size) for size in sizes]), device),
        rows=sent(torch.tensor(rows).repeat_interleave(lengths), device),
        borders=borders,
        starts=sent(torch.tensor(borders, dtype=torch.int32), device),
        ends=sent(lengths.cumsum(0) - 1, device),
        sizes=sizes,
    )


def sent(values: Tensor, device: torch.device) -> Tensor:
    """The host's values on a device, on CUDA by way of pinned memory: from other memory the host would wait
    until the device has done all that it was asked before."""
    if device.type != "cuda":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def portions(sizes: Sequence[int], most: int = PREFILL_TOKENS) -> Iterator[slice]:
    """Neighbouring prompts that go through the model together: at most so many tokens, or one prompt."""
    first = total = 0
    for place, size in enumerate(sizes):
        if place > first and total + size > most:
            yield slice(first, place)
            first, total = place, 0
        total += size
    if first < len(sizes):
        yield slice(first, len(sizes))
