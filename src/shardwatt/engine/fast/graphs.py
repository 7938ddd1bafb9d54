"""How decode steps are launched: as CUDA graphs, or operation by operation, thousands a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
import torch.distributed as dist

from shardwatt.engine.fast.capture import Capture, Graph
from shardwatt.engine.fast.segments import Segment, fitting, grown, rounded
from shardwatt.engine.fast.slots import Slots
from shardwatt.engine.protocol import Sampling

#: Positions of the cache by which graphs differ; more in long caches.
BUCKET = 256

#: What graphs differ by: rows, positions that a row sees at most, how tokens are drawn.
Key = tuple[int, int, Sampling]


def bucket(length: int, limit: int) -> int:
    """Positions that the graph sees which takes a step of so many; at most the limit.

    They are an eighth of the next power of two apart: it sees at most a quarter too many, or `BUCKET`, and
    the number of graphs grows with the logarithm of a long cache.
    """
    return rounded(length, max(BUCKET, 2 ** (length - 1).bit_length() // 8), limit)


class Steps(Protocol):
    """How the steps of a batch are launched."""

    @property
    def failed(self) -> bool:
        """Whether a step could not be captured: torch keeps the memory that the capture took."""

    def prepare(self, rows: int, sampling: Sampling) -> None:
        """Be ready for batches of so many rows; no row runs yet."""

    def begin(self, lengths: list[int], held: list[int]) -> None:
        """Rows come, go or move: positions that each will attend to, and how many it holds already."""

    def size(self, rows: int, running: int) -> int:
        """Rows that a batch of so many is to have when so many of them still run."""

    def advance(self, lengths: list[int], sampling: Sampling) -> None:
        """Take the step of the first rows; positions that each attends to, its own included."""

    def note(self) -> str:
        """How it went, for the record."""


class Eager:
    """Operation by operation; the cache is laid out in segments of rows of like length where that pays."""

    def __init__(self, slots: Slots, why: str) -> None:
        self._slots, self._why = slots, why
        self._cache, self._segmented = slots.model.cache, slots.model.attention.segmented
        self._row_bytes = slots.model.row_bytes

    @property
    def failed(self) -> bool:
        return False

    def prepare(self, rows: int, sampling: Sampling) -> None:
        """Nothing: the warm-up's own steps are those of the run."""

    def begin(self, lengths: list[int], held: list[int]) -> None:
        if self._segmented:
            old = self._cache.segments
            self._arrange(fitting(old, lengths, self._cache.positions, self._row_bytes), held)

    def size(self, rows: int, running: int) -> int:
        # Not each time that one ends: kernels are made anew for each size.
        step = max(1, rows // 16)
        return min(rows, -(-running // step) * step)

    def advance(self, lengths: list[int], sampling: Sampling) -> None:
        if self._segmented:
            more = grown(self._cache.segments, lengths, self._cache.positions)
            assert more is not None
            self._arrange(more, [length - 1 for length in lengths])
        most = max(segment.positions for segment in self._cache.segments) if self._segmented else max(lengths)
        self._slots.advance(len(lengths), most, sampling)

    def note(self) -> str:
        return self._why

    def _arrange(self, segments: list[Segment], held: list[int]) -> None:
        if segments != self._cache.segments:
            self._cache.arrange(segments, held)


class Graphs:
    """A graph for each number of rows and each bucket of positions.

    All buckets of a number of rows, and those of the halves that it may shrink to, are captured when it is
    prepared. One that is missing later is captured then, and the note counts it: that took time in the run.

    Args:
        slots: whose steps are taken.
        eager: takes them where capturing fails.
        capture: records them.
        ranks: how many there are; above one, each captures the same steps, and all fail together.
        shrinks: whether rows leave the batch.
    """

    def __init__(self, slots: Slots, eager: Eager, capture: Capture, ranks: int, *, shrinks: bool) -> None:
        self._slots, self._eager, self._capture = slots, eager, capture
        self._ranks, self._shrinks = ranks, shrinks
        self._graphs: dict[Key, Graph] = {}
        self._late = 0
        self._failure: str | None = None

    @property
    def failed(self) -> bool:
        return self._failure is not None

    def prepare(self, rows: int, sampling: Sampling) -> None:
        self._capture_those(self._keys(rows, sampling))

    def begin(self, lengths: list[int], held: list[int]) -> None:
        self._eager.begin(lengths, held)

    def size(self, rows: int, running: int) -> int:
        while rows // 2 >= max(1, running):
            rows //= 2
        return rows

    def advance(self, lengths: list[int], sampling: Sampling) -> None:
        key = (len(lengths), bucket(max(lengths), self._slots.last + 1), sampling)
        if key not in self._graphs and self._failure is None:
            self._late += 1
            self._capture_those([key])
        if self._failure is None:
            self._graphs[key].replay()
        else:
            self._eager.advance(lengths, sampling)

    def note(self) -> str:
        if self._failure is not None:
            return f"none: capture failed ({self._failure}), operation by operation instead"
        late = f", {self._late} of them after the warm-up" if self._late else ""
        return f"{len(self._graphs)} captured, by rows and {BUCKET} positions or more{late}"

    def _keys(self, rows: int, sampling: Sampling) -> Iterator[Key]:
        limit = self._slots.last + 1
        while rows:
            length = 0
            while length < limit:
                length = bucket(length + 1, limit)
                yield rows, length, sampling
            rows = rows // 2 if self._shrinks else 0

    def _capture_those(self, keys: Iterable[Key]) -> None:
        """Capture these steps as far as they are missing; rows are left as they were.

        What a rehearsal writes into the cache, the step that is taken later writes anew before it reads it.
        """
        slots = self._slots
        tokens, positions = slots.tokens.clone(), slots.positions.clone()
        for key in keys:
            if self._failure is None and key not in self._graphs:
                self._failure = self._captured(key)
        slots.tokens.copy_(tokens)
        slots.positions.copy_(positions)
        if self._failure is not None:
            self._graphs.clear()

    def _captured(self, key: Key) -> str | None:
        """Capture a step; why that failed on this rank or another, else None."""

        def step() -> None:
            self._slots.advance(*key)

        # Where there is no memory for the step itself, the batch does not fit.
        self._capture.rehearse(step)
        failure = None
        try:
            self._graphs[key] = self._capture.record(step)
        except RuntimeError as error:
            failure = str(error).strip().partition("\n")[0] or type(error).__name__
        if self._ranks > 1:
            # Each time: the next rehearsal would wait for ever for a rank that has given up.
            failed = torch.tensor(float(failure is not None))
            dist.all_reduce(failed)
            if failed and failure is None:
                failure = "on another rank"
        return failure
