"""Attention of packed prompts, and of one new token a row to the cache: two ways, by what the device has."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from shardwatt.engine.fast.cache import Cache
from shardwatt.engine.fast.packing import Packed

#: Compute capability from which torch's FlashAttention kernels run.
_FLASH_CAPABILITY = (8, 0)

#: Blocks of work for each multiprocessor below which FlashAttention splits the keys of a row.
_BLOCKS = 2 * 0.8


@dataclass(frozen=True, slots=True)
class Heads:
    """Heads of this rank: H for queries, G for keys and values, each of size D."""

    queries: int
    groups: int
    size: int


class Attention(Protocol):
    """How heads attend.

    Attributes:
        name: for the record.
        by_position: the cache's layout that it reads.
        segmented: whether the cache is laid out in segments of rows; otherwise it is one.
    """

    name: str
    by_position: bool
    segmented: bool

    def prefill(self, q: Tensor, k: Tensor, v: Tensor, prompts: Packed) -> Tensor:
        """Each token attends to its prompt up to itself: q [N, H, D], k and v [N, G, D]; [N, H x D]."""

    def reach(self, positions: Tensor, most: int) -> Tensor:
        """What a step's rows see, for `decode` in all layers.

        Args:
            positions: of the new tokens, [R].
            most: positions that a row sees at most.
        """

    def decode(self, q: Tensor, cache: Cache, layer: int, reach: Tensor, most: int) -> Tensor:
        """The new token of each row attends to the row's cache: q [R, H, D]; [R, H x D]."""


class Products:
    """Matrix products and a softmax: runs everywhere, and on processors reads the cache but once.

    Query heads that share keys lie along one axis, so that no key is copied. Prefill is torch's own
    scaled-dot-product attention, prompt by prompt. On GPUs without `Flash` its kernels know of no shared
    keys, and what it does instead holds all scores: there keys are copied for a prefill.
    """

    by_position = False

    def __init__(self, heads: Heads, positions: int, dtype: torch.dtype, device: torch.device) -> None:
        self._heads = heads
        self._scale = 1.0 / math.sqrt(heads.size)
        self._columns = torch.arange(positions, device=device)
        self._seen = torch.tensor(0.0, dtype=dtype, device=device)
        self._unseen = torch.tensor(-math.inf, dtype=dtype, device=device)
        self._shared = heads.queries > heads.groups
        self._copies = self._shared and device.type == "cuda"
        self.segmented = device.type == "cpu"
        self.name = "matrix products over the cache"
        if self.segmented:
            self.name += ", in segments of rows of like length"

    def prefill(self, q: Tensor, k: Tensor, v: Tensor, prompts: Packed) -> Tensor:
        mixed = q.new_empty(q.shape)  # [N, H, D]
        if self._copies:
            k, v = (repeated(part, self._heads.queries // self._heads.groups) for part in (k, v))
        for first, stop in zip(prompts.borders, prompts.borders[1:], strict=False):
            # [1, H or G, S, D]
            own_q, own_k, own_v = (part[None, first:stop].transpose(1, 2) for part in (q, k, v))
            own = functional.scaled_dot_product_attention(
                own_q, own_k, own_v, is_causal=True, enable_gqa=self._shared and not self._copies
            )
            mixed[first:stop] = own[0].transpose(0, 1)
        return mixed.flatten(1)

    def reach(self, positions: Tensor, most: int) -> Tensor:
        """0 where a row sees a position, -inf where not; [R, 1, most]."""
        return torch.where(self._columns[:most] > positions[:, None, None], self._unseen, self._seen)

    def decode(self, q: Tensor, cache: Cache, layer: int, reach: Tensor, most: int) -> Tensor:
        rows, groups = len(q), self._heads.groups
        # Scaled before the product, which float16 might not hold.
        q = (q * self._scale).reshape(rows * groups, -1, self._heads.size)  # [R x G, n, D]
        mixed = torch.empty_like(q)
        for segment, (all_keys, all_values) in zip(cache.segments, cache.parts[layer], strict=True):
            first, stop = segment.first, min(segment.stop, rows)
            own, length = slice(first * groups, stop * groups), min(segment.positions, most)
            keys = all_keys[: (stop - first) * groups, :length]  # [r x G, T, D]
            values = all_values[: (stop - first) * groups, :length]
            scores = torch.bmm(q[own], keys.transpose(1, 2))  # [r x G, n, T]
            by_row = scores.view(stop - first, -1, length)  # [r, H, T]
            by_row += reach[first:stop, :, :length]
            torch.bmm(torch.softmax(scores, -1), values, out=mixed[own])
        return mixed.view(rows, -1)


class Flash:
    """FlashAttention's kernels for rows of unlike length (arXiv 2307.08691), on NVIDIA GPUs in 16 bits.

    With few rows and heads a step keeps the GPU busy only if the keys of a row are split among blocks. The
    kernels split them where query heads share keys; so every query head is there twice where none do. They
    would also split a cache in pages, but where no keys are shared torch 2.13 then writes the first row alone
    (https://github.com/pytorch/pytorch/issues/194167).

    Args:
        heads: of this rank.
        rows: R.
        positions: T.
        multiprocessors: of the device.
        device: CUDA's.
    """

    name = "FlashAttention over rows of their own length"
    by_position = True
    segmented = False

    def __init__(
        self, heads: Heads, rows: int, positions: int, multiprocessors: int, device: torch.device
    ) -> None:
        alone = heads.queries == heads.groups
        self._rows_split = _BLOCKS * multiprocessors / heads.groups if alone else 0.0
        self._each = torch.arange(rows + 1, dtype=torch.int32, device=device)  # a query a row
        self._row_starts = self._each * positions

    def prefill(self, q: Tensor, k: Tensor, v: Tensor, prompts: Packed) -> Tensor:
        longest = max(prompts.sizes)
        return flash(q, k, v, (prompts.starts, prompts.starts), (longest, longest), causal=True).flatten(1)

    def reach(self, positions: Tensor, most: int) -> Tensor:
        """How many positions each row sees, int32, [R]."""
        return (positions + 1).int()

    def decode(self, q: Tensor, cache: Cache, layer: int, reach: Tensor, most: int) -> Tensor:
        rows = len(q)
        ((keys, values),) = cache.parts[layer]  # [R x T, G, D]
        starts = self._each[: rows + 1], self._row_starts[: rows + 1]
        if rows < self._rows_split:
            return flash(repeated(q, 2), keys, values, starts, (1, most), used=reach)[:, ::2].flatten(1)
        return flash(q, keys, values, starts, (1, most), used=reach).flatten(1)


def flash(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    *,
    causal: bool = False,
    used: Tensor | None = None,
) -> Tensor:
    """torch's FlashAttention of rows one after another, as `torch.nn.attention.varlen` calls it.

    That function came later than the operator, and fills a tensor with zeros each time.

    Args:
        q: queries of all rows, [N, H, D].
        k: keys, [K, G, D]; H is a multiple of G.
        v: values, likewise.
        starts: where each row's queries and keys begin, and where the last ones end; int32, [R + 1].
        longest: queries and keys of the longest row.
        causal: whether a query sees no later keys; a row's last query sees its last key.
        used: how many of its keys each row sees, int32, [R]; None for all.

    Returns:
        [N, H, D].
    """
    attend = torch.ops.aten._flash_attention_forward.default
    mixed: Tensor = attend(q, k, v, *starts, *longest, 0.0, causal, False, seqused_k=used)[0]
    return mixed


def repeated(heads: Tensor, times: int) -> Tensor:
    """Each head so many times in a row: [N, heads, D] to [N, heads x times, D]."""
    return heads[:, :, None].expand(-1, -1, times, -1).flatten(1, 2)


def attention(heads: Heads, rows: int, positions: int, dtype: torch.dtype, device: torch.device) -> Attention:
    """The best way that this device has; for so many rows and positions of the cache."""
    if (
        device.type == "cuda"
        and torch.version.hip is None
        and dtype in (torch.float16, torch.bfloat16)
        and torch.cuda.get_device_capability(device) >= _FLASH_CAPABILITY
        and heads.size <= 256
        and heads.size % 8 == 0
        and torch.backends.cuda.is_flash_attention_available()
    ):
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        return Flash(heads, rows, positions, multiprocessors, device)
    return Products(heads, positions, dtype, device)
