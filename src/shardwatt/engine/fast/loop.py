"""The loop around the fast model: packed prefill, then steps until the rows have ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Literal

import torch

from shardwatt.engine.device import OnDevice
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.fast.capture import Capture
from shardwatt.engine.fast.graphs import Eager, Graphs, Steps
from shardwatt.engine.fast.linear import prepacks
from shardwatt.engine.fast.lookout import Lookout
from shardwatt.engine.fast.model import FastModel
from shardwatt.engine.fast.packing import PREFILL_TOKENS, portions
from shardwatt.engine.fast.rows import Row, answers, opened
from shardwatt.engine.fast.slots import Slots
from shardwatt.engine.fast.weights import read_weights
from shardwatt.engine.protocol import BatchRequest, BatchResult, ModelOnRank, OnStep, Phase, Sampling
from shardwatt.engine.sampling import row_keys
from shardwatt.engine.weights import open_weights
from shardwatt.errors import DoesNotFit

#: What becomes of rows that have ended while others run: they stay and are computed on; they leave the batch;
#: the next prompts take their places, and when there are none left, they leave.
Ended = Literal["stay", "leave", "make room"]


class Fast(OnDevice):
    """A fast loop over a loaded model; an `Engine`."""

    def __init__(self, model: ModelOnRank, ended: Ended) -> None:
        super().__init__(torch.device(model.device))
        self.ended = ended
        #: Steps after which the host looks at their tokens: on CUDA the next one is launched first.
        self.late = 1 if self.device.type == "cuda" else 0
        self.on = model
        self.model = FastModel(read_weights(open_weights(model), model), model)
        self.slots: Slots
        self.steps: Steps
        #: Of caches that are gone.
        self._capture_failed = False

    @torch.inference_mode()
    def allocate(self, rows: int, positions: int) -> None:
        """Make room for batches of at most so many rows and cache positions.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: HOST_OOM.
        """
        with self._failures():
            self._capture_failed = self._has_failed()
            # What was there goes first, graphs and their buffers included.
            for old in ("steps", "slots"):
                self.__dict__.pop(old, None)
            self.model.allocate(rows, positions)
            self.slots = Slots(self.model, rows, positions, self.device)
            self.steps = self._steps()

    def _has_failed(self) -> bool:
        """Whether a step could not be captured, with this cache or one before."""
        return self._capture_failed or ("steps" in self.__dict__ and self.steps.failed)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """`torch_failures`, with a word where a capture that failed before may be why memory ran out."""
        try:
            with torch_failures():
                yield
        except DoesNotFit as full:
            if not self._has_failed():
                raise
            raise DoesNotFit(
                f"{full} (a CUDA graph could not be captured before that, and torch keeps the memory that it "
                "took: try `cuda_graphs: never`)"
            ) from full

    def _steps(self) -> Steps:
        if self.device.type != "cuda":
            return Eager(self.slots, "none: not a GPU")
        if self.on.cuda_graphs == "never":
            return Eager(self.slots, "none: the study wants none")
        if self.on.cuda_graphs == "one-shard" and self.on.ranks > 1:
            return Eager(self.slots, "none: more than one shard")
        eager, capture = Eager(self.slots, ""), Capture(self._stream)
        return Graphs(self.slots, eager, capture, self.on.ranks, shrinks=self.ended != "stay")

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """Where steps are captured, of every cache that is allocated."""
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def generate(self, request: BatchRequest, sampling: Sampling, on_step: OnStep) -> BatchResult:
        """Answer a batch.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: NOT_FINITE, HOST_OOM, RANK_DIED or COLLECTIVE_TIMEOUT.
        """
        with self._failures():
            if request.warms_up:
                # Whether or not it takes a step: prompts of another batch may be shorter or longer.
                self.steps.prepare(min(request.rows, len(request.prompts)), sampling)
            self.model.finite.begin()
            run = _Run(self, request, sampling, on_step)
            run.answer()
            self.model.finite.check()
        tokens, finish = answers(run.all_rows, request.length)
        return BatchResult(tokens, finish, run.generated_tokens, run.phases)

    def notes(self) -> dict[str, str]:
        """How it ran, for the record."""
        packs = prepacks(self.model.weights.embedding.dtype, self.device)
        return {
            "loop": f"rows that have ended {self.ended}",
            "weights": "fused, in oneDNN's own layout" if packs else "fused",
            "prefill": f"packed without padding, up to {PREFILL_TOKENS} tokens at once",
            "attention": self.model.attention.name,
            "sampling": "without a full sort",
            "cuda_graphs": self.steps.note(),
        }


class _Run:
    """One request on its way through an engine."""

    def __init__(self, engine: Fast, request: BatchRequest, sampling: Sampling, on_step: OnStep) -> None:
        self.engine, self.slots, self.steps = engine, engine.slots, engine.steps
        self.request, self.sampling, self.on_step = request, sampling, on_step
        self.keys = row_keys(sampling.seed, request.prompt_ids, "cpu")
        self.all_rows = opened(request)
        self.waiting = list(self.all_rows)
        self.rows: list[Row] = []  # by place
        timeout_s = engine.on.collective_timeout_s if engine.on.ranks > 1 else None
        self.lookout: Lookout[Row] = Lookout(request.rows, engine.device, engine.late, timeout_s)
        self.phases: list[Phase] = []
        self.generated_tokens = 0

    def answer(self) -> None:
        """Prefill and decode in turn until no prompt waits and no row runs."""
        first, self.waiting = self.waiting[: self.request.rows], self.waiting[self.request.rows :]
        self.rows = list(first)
        self._prefill(list(range(len(first))))
        while True:
            self._decode()
            if not self.waiting:
                return
            free = [place for place, row in enumerate(self.rows) if not row.runs][: len(self.waiting)]
            for place in free:
                self.rows[place] = self.waiting.pop(0)
            self._prefill(free)

    def _prefill(self, places: list[int]) -> None:
        """Take in the prompts of the rows in these places."""
        start_s = self.engine.now_s()
        rows = [self.rows[place] for place in places]
        self.steps.begin(self._lengths(), self._held())
        steps = 0
        for part in portions([row.prompt_tokens for row in rows]):
            prompts = [self.request.prompts[row.prompt] for row in rows[part]]
            keys = self.keys[[row.prompt for row in rows[part]]]
            drawn = self.slots.fill(places[part], prompts, keys, self.sampling)
            self._drew(rows[part], drawn)
            self._look()
            steps += 1
        self._look(all_of_them=True)
        sizes = [row.prompt_tokens for row in rows]
        attended = sum(size * (size + 1) // 2 for size in sizes)
        self.phases.append(Phase("prefill", start_s, self.engine.now_s(), steps, sum(sizes), attended))

    def _decode(self) -> None:
        """Take steps until all rows have ended, or the first one if a prompt waits for its place."""
        start_s = self.engine.now_s()
        steps = tokens = attended = 0
        while any(row.runs for row in self.rows):
            if self.waiting and not all(row.runs for row in self.rows):
                break
            if self.engine.ended != "stay":
                self._shrink()
            lengths = self._lengths()
            self.steps.advance(lengths, self.sampling)
            self._drew(self.rows, self.slots.tokens[: len(self.rows)])
            self._look()
            steps += 1
            tokens += len(lengths)
            attended += sum(lengths)
        self._look(all_of_them=True)
        if steps:
            self.phases.append(Phase("decode", start_s, self.engine.now_s(), steps, tokens, attended))

    def _lengths(self) -> list[int]:
        """Positions that each row's next step attends to."""
        positions = self.slots.last + 1
        return [row.attends(positions) for row in self.rows]

    def _held(self) -> list[int]:
        """Positions that the cache holds of each row."""
        positions = self.slots.last + 1
        return [row.held(positions) for row in self.rows]

    def _drew(self, rows: Sequence[Row], tokens: torch.Tensor) -> None:
        for row in rows:
            row.drawn += 1
        self.lookout.send(rows, tokens)
        self.generated_tokens += len(rows)
        self.on_step(len(rows))

    def _look(self, *, all_of_them: bool = False) -> None:
        for row, token in self.lookout.seen(all_of_them=all_of_them):
            row.see(token, self.engine.on.eos_ids)

    def _shrink(self) -> None:
        """Leave out rows that have ended, once the batch can be of a smaller size."""
        running = sum(row.runs for row in self.rows)
        size = self.steps.size(len(self.rows), running)
        if size == len(self.rows):
            return
        sources = [place for place in range(size, len(self.rows)) if self.rows[place].runs]
        targets = [place for place, row in enumerate(self.rows[:size]) if not row.runs][: len(sources)]
        lengths, held = self._lengths(), self._held()
        if sources:
            # Room first: the places may have been those of shorter rows.
            for source, target in zip(sources, targets, strict=True):
                lengths[target] = max(lengths[source], lengths[target])
            self.steps.begin(lengths, held)
        for source, target in zip(sources, targets, strict=True):
            self.slots.move(source, target, held[source])
            self.rows[target] = self.rows[source]
        del self.rows[size:]
        self.steps.begin(self._lengths(), self._held())


def load(model: ModelOnRank, ended: Ended) -> Fast:
    """Load this rank's part of a model.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER, STORAGE or HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    with torch_failures(), torch.inference_mode():
        return Fast(model, ended)
