"""Guards how rows are put into segments, and prompts into portions of a prefill."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from shardwatt.engine.fast import segments as module
from shardwatt.engine.fast.packing import portions
from shardwatt.engine.fast.segments import Segment, best_segments, fitting, grown

LIMIT = 500
ROW_BYTES = 40_000
lengths_of_rows = st.lists(st.integers(1, LIMIT), min_size=1, max_size=9)


def rounded(length: int) -> int:
    return min(-(-length // module.POSITIONS_STEP) * module.POSITIONS_STEP, LIMIT)


def cost(segments: list[Segment]) -> int:
    return sum(
        module._SEGMENT_BYTES + (stop - first) * positions * ROW_BYTES for first, stop, positions in segments
    )


def every_cut(lengths: list[int]) -> list[list[Segment]]:
    inner = range(1, len(lengths))
    cuts = [[0, *cut, len(lengths)] for count in range(len(lengths)) for cut in combinations(inner, count)]
    return [[Segment(a, b, rounded(max(lengths[a:b]))) for a, b in pairwise(cut)] for cut in cuts]


@given(lengths_of_rows)
def test_no_way_of_cutting_rows_costs_less(lengths: list[int]) -> None:
    best = best_segments(lengths, LIMIT, ROW_BYTES)
    assert [row for first, stop, _ in best for row in range(first, stop)] == list(range(len(lengths)))
    assert all(max(lengths[first:stop]) <= positions <= LIMIT for first, stop, positions in best)
    assert cost(best) == min(map(cost, every_cut(lengths)))


def test_rows_of_unlike_length_are_taken_apart_and_small_ones_together() -> None:
    assert best_segments([480, 480, 40, 40], LIMIT, ROW_BYTES) == [Segment(0, 2, 480), Segment(2, 4, 64)]
    assert best_segments([480, 480, 40, 40], LIMIT, 100) == [Segment(0, 4, 480)]


@given(lengths_of_rows, st.data())
def test_grown_segments_have_room_and_lose_none(lengths: list[int], data: st.DataObject) -> None:
    old = best_segments(lengths, LIMIT, ROW_BYTES)
    count = data.draw(st.integers(1, len(lengths)))
    later = data.draw(st.lists(st.integers(1, LIMIT), min_size=count, max_size=count))
    new = grown(old, later, LIMIT)
    assert new is not None
    assert new[-1].stop == count
    for (first, stop, positions), before in zip(new, old, strict=False):
        assert first == before.first
        assert max(before.positions, *later[first:stop]) <= positions <= LIMIT
    assert grown(old, [*lengths, 1], LIMIT) is None


def test_segments_stay_until_others_are_much_better() -> None:
    old = [Segment(0, 4, 320)]
    assert fitting(old, [318, 310, 300, 290], LIMIT, ROW_BYTES) == old
    assert fitting(old, [318, 20, 20, 20], LIMIT, ROW_BYTES) == [Segment(0, 1, 320), Segment(1, 4, 32)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 100))
def test_portions_hold_every_prompt_once_and_few_tokens(sizes: list[int], most: int) -> None:
    parts = list(portions(sizes, most))
    assert [place for part in parts for place in range(part.start, part.stop)] == list(range(len(sizes)))
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        total = sum(sizes[part])
        assert total <= most or part.stop - part.start == 1
        assert following is None or total + sizes[following.start] > most
