"""Keys and values of earlier positions: allocated once, written and read in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from shardwatt.engine.fast.segments import Segment


class Cache:
    """A static cache of one rank.

    Rows lie in segments. A segment's keys are dense, with room for as many positions as the segment has:
    bfloat16 products on processors would copy them otherwise. When a segment grows, its rows move apart.

    Args:
        layers: L.
        rows: R.
        positions: T.
        heads: G, key and value heads of this rank.
        head_dim: D.
        by_position: [R x T, G, D], as kernels for rows of unlike length read it; otherwise [R x G, T, D], so
            that the positions of a head lie side by side, as matrix products want them.
        dtype: of the weights.
        device: theirs too.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        positions: int,
        heads: int,
        head_dim: int,
        by_position: bool,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows, self.positions, self.heads, self.head_dim = rows, positions, heads, head_dim
        self._by_position = by_position
        # Zeros, not garbage: a masked position's value is multiplied by 0, and 0 x NaN is NaN.
        shape = (2, rows * heads * positions, head_dim)
        self._layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self._flat = [layer.flatten(0, 1) for layer in self._layers]
        self._lay_out([Segment(0, rows, positions)])

    def places(self, rows: Tensor | slice, positions: Tensor) -> Tensor:
        """Where keys and values of tokens go: of each token's row and position, both [N]; [N x 2 x G]."""
        stride = self.heads if self._by_position else 1
        return (self._first[rows] + positions[:, None, None] * stride).flatten()

    def write(self, layer: int, new: Tensor, places: Tensor) -> None:
        """Write keys and values, [N, 2 x G, D], to their places."""
        self._flat[layer].index_copy_(0, places, new.reshape(-1, self.head_dim))

    def arrange(self, segments: list[Segment], held: Sequence[int]) -> None:
        """Lay the first rows out in other segments; the others' contents are lost.

        Args:
            segments: from row 0 on, without gaps.
            held: positions of each of these rows that hold something; they are kept.
        """
        old_segments, old_parts = self.segments, self.parts
        self._lay_out(segments)
        moves = []
        for place, source in enumerate(old_segments):
            for target_place, target in enumerate(segments):
                first, stop = max(source.first, target.first), min(source.stop, target.stop)
                used = max(held[first:stop], default=0)
                same = source.first == target.first and source.positions == target.positions
                if used and not same:
                    moves.append((place, source.first, target_place, target.first, first, stop, used))
        for old, new in zip(old_parts, self.parts, strict=True):
            saved = {place: [part.clone() for part in old[place]] for place in {move[0] for move in moves}}
            for place, source_first, target_place, target_first, first, stop, used in moves:
                for read, written in zip(saved[place], new[target_place], strict=True):
                    written[self._heads_of(first - target_first, stop - target_first), :used] = read[
                        self._heads_of(first - source_first, stop - source_first), :used
                    ]

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first positions of a row to another row, whose segment has room for them."""
        if self._by_position:
            for whole in self._layers:
                rows = whole.view(2, self.rows, self.positions, -1)
                rows[:, target, :positions] = rows[:, source, :positions]
            return
        for layer in self.parts:
            for kind in range(2):
                read, written = (self._row(layer, row, kind) for row in (source, target))
                written[:, :positions] = read[:, :positions]

    def _row(self, layer: list[tuple[Tensor, Tensor]], row: int, kind: int) -> Tensor:
        """Keys or values of a row, [G, positions of its segment, D]."""
        place = next(place for place, segment in enumerate(self.segments) if row < segment.stop)
        first = row - self.segments[place].first
        return layer[place][kind][self._heads_of(first, first + 1)]

    def _heads_of(self, first: int, stop: int) -> slice:
        return slice(first * self.heads, stop * self.heads)

    def _lay_out(self, segments: list[Segment]) -> None:
        #: Of the rows that are in use.
        self.segments = segments
        #: Keys and values by layer and segment: [r x G, T, D] of the segment, or [R x T, G, D].
        self.parts: list[list[tuple[Tensor, Tensor]]] = []
        for layer in self._layers:
            views = []
            for first, stop, positions in segments:
                start, length = first * self.heads * self.positions, (stop - first) * self.heads * positions
                shape = (-1, self.heads if self._by_position else positions, self.head_dim)
                keys, values = layer[:, start : start + length]
                views.append((keys.view(shape), values.view(shape)))
            self.parts.append(views)
        # Place of (row, key or value, head) at position 0, counted in heads of D numbers.
        device = self._layers[0].device
        kind = torch.arange(2)[:, None] * (self.rows * self.heads * self.positions)
        firsts = []
        for first, stop, positions in segments:
            head = torch.arange(self.heads) * (1 if self._by_position else positions)
            row = torch.arange(stop - first)[:, None, None] * (self.heads * positions)
            firsts.append(first * self.heads * self.positions + row + kind + head)
        self._first = torch.cat(firsts).to(device)  # [R, 2, G]
