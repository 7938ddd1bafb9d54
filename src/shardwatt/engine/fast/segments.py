"""Which rows are attended to together: rows of like length, so that little of the cache is read in vain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

#: Positions of a segment are a multiple of this: a kernel made for a length serves the next steps too.
POSITIONS_STEP = 32

#: Bytes of cache that could be read in the time that one more segment takes to launch (some 40 microseconds
#: for four operations in each layer, at 20 GB/s).
_SEGMENT_BYTES = 800_000

#: How much worse than the best the segments may be before the cache is laid out anew.
_PATIENCE = 1.25


class Segment(NamedTuple):
    """Rows first to stop - 1, of whose cache so many positions are read."""

    first: int
    stop: int
    positions: int


def rounded(length: int, step: int, limit: int) -> int:
    """Length, rounded up to a multiple of the step, at most the limit."""
    return min(-(-length // step) * step, limit)


def best_segments(lengths: Sequence[int], limit: int, row_bytes: int) -> list[Segment]:
    """Cut neighbouring rows into segments, so that reading the cache and launching take the least time.

    Args:
        lengths: positions that each row attends to.
        limit: positions that the cache has for a row.
        row_bytes: keys and values of one position of a row, in one layer.
    """
    sizes = [rounded(length, POSITIONS_STEP, limit) for length in lengths]
    starts = [row for row in range(len(sizes)) if row == 0 or sizes[row] != sizes[row - 1]]
    stops = [*starts[1:], len(sizes)]
    best: list[tuple[float, list[Segment]]] = [(0.0, [])]  # for the rows before each start
    for last, stop in enumerate(stops):
        options = []
        longest = 0
        for place in range(last, -1, -1):
            first = starts[place]
            longest = max(longest, sizes[first])
            bytes_read = _SEGMENT_BYTES + (stop - first) * longest * row_bytes
            options.append((best[place][0] + bytes_read, place, Segment(first, stop, longest)))
        cost, place, segment = min(options)
        best.append((cost, [*best[place][1], segment]))
    return best[-1][1]


def grown(segments: Sequence[Segment], lengths: Sequence[int], limit: int) -> list[Segment] | None:
    """The same segments, with room for these lengths; None if they do not hold all these rows."""
    rows = len(lengths)
    if segments[-1].stop < rows:
        return None
    more = []
    for first, stop, positions in segments:
        if first < rows:
            needed = rounded(max(lengths[first:stop]), POSITIONS_STEP, limit)
            more.append(Segment(first, min(stop, rows), max(positions, needed)))
    return more


def fitting(segments: Sequence[Segment], lengths: Sequence[int], limit: int, row_bytes: int) -> list[Segment]:
    """Segments for these lengths: the same as far as they are not much worse than the best."""
    kept = grown(segments, lengths, limit)
    best = best_segments(lengths, limit, row_bytes)
    if kept is not None and _cost(kept, row_bytes) <= _PATIENCE * _cost(best, row_bytes):
        return kept
    return best


def _cost(segments: Sequence[Segment], row_bytes: int) -> float:
    rows = sum((stop - first) * positions for first, stop, positions in segments)
    return len(segments) * _SEGMENT_BYTES + rows * row_bytes
