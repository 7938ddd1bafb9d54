"""Guards the fast engines' cache: what was written is read again, however rows are laid out and moved."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from shardwatt.engine.fast.cache import Cache
from shardwatt.engine.fast.segments import Segment

LAYERS, ROWS, POSITIONS, HEADS, SIZE = 2, 6, 20, 3, 4


def cache(*, by_position: bool = False) -> Cache:
    return Cache(
        layers=LAYERS,
        rows=ROWS,
        positions=POSITIONS,
        heads=HEADS,
        head_dim=SIZE,
        by_position=by_position,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def write_all(into: Cache, held: list[int]) -> list[list[Tensor]]:
    """Write so many positions of each row; [layer][row] is [positions, 2, G, D]."""
    generator = torch.Generator().manual_seed(len(held))
    written = []
    for layer in range(LAYERS):
        rows = [torch.randn(count, 2, HEADS, SIZE, generator=generator) for count in held]
        row_of_each = torch.arange(len(held)).repeat_interleave(torch.tensor(held))
        positions = torch.cat([torch.arange(count) for count in held])
        new = torch.cat(rows).flatten(1, 2)  # [N, 2 x G, D]
        into.write(layer, new, into.places(row_of_each, positions))
        written.append(rows)
    return written


def read(from_cache: Cache, layer: int, row: int, count: int, *, by_position: bool = False) -> Tensor:
    """[positions, 2, G, D], through the views that attention reads."""
    place, segment = next(
        (place, segment) for place, segment in enumerate(from_cache.segments) if row < segment.stop
    )
    inside = row - segment.first
    both = []
    for part in from_cache.parts[layer][place]:
        if by_position:
            both.append(part.view(-1, segment.positions, HEADS, SIZE)[inside, :count])
        else:
            both.append(part.view(-1, HEADS, segment.positions, SIZE)[inside, :, :count].transpose(0, 1))
    return torch.stack(both, dim=1)


@st.composite
def layouts(draw: st.DrawFn, rows: int, least: list[int]) -> list[Segment]:
    cuts = sorted(draw(st.sets(st.integers(1, rows - 1)))) if rows > 1 else []
    borders = [0, *cuts, rows]
    return [
        Segment(first, stop, draw(st.integers(max(least[first:stop]), POSITIONS)))
        for first, stop in pairwise(borders)
    ]


@given(st.data())
def test_rows_keep_their_contents_through_any_layouts(data: st.DataObject) -> None:
    held = data.draw(st.lists(st.integers(1, POSITIONS), min_size=1, max_size=ROWS))
    kept = cache()
    kept.arrange(data.draw(layouts(len(held), held)), [0] * len(held))
    written = write_all(kept, held)
    for _ in range(2):
        held = held[: data.draw(st.integers(1, len(held)))]
        kept.arrange(data.draw(layouts(len(held), held)), held)
        for layer in range(LAYERS):
            for row, count in enumerate(held):
                assert torch.equal(read(kept, layer, row, count), written[layer][row])
    for part in (part for layer in kept.parts for views in layer for part in views):
        assert part.is_contiguous()


@pytest.mark.parametrize("by_position", [False, True])
def test_a_moved_row_is_read_in_its_new_place_and_no_other_is_touched(by_position: bool) -> None:
    moved = cache(by_position=by_position)
    held = [5, 7, 3, 20, 1, 9]
    if not by_position:
        moved.arrange([Segment(0, 4, 20), Segment(4, 6, 9)], [0] * ROWS)
    written = write_all(moved, held)
    moved.move(5, 1, 9)
    for layer in range(LAYERS):
        written[layer][1] = written[layer][5]
        for row, count in enumerate([5, 9, 3, 20, 1, 9]):
            assert torch.equal(read(moved, layer, row, count, by_position=by_position), written[layer][row])
