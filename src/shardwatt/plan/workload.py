"""What a cell's engine will do for its prompts, phase by phase, before any is read: expected counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from shardwatt.architectures import Architecture
from shardwatt.cell import Cell
from shardwatt.datasets import TokenLengths
from shardwatt.engines import loop_of
from shardwatt.modelwork import PhaseName, Work
from shardwatt.plan.lengths import Lengths
from shardwatt.plan.memory import FAST_PREFILL_TOKENS

#: Lengths of a data set that says none (assumptions, as of instructions of a paragraph).
ASSUMED_LENGTHS = TokenLengths(
    prompt_deciles=[40, 55, 60, 65, 70, 75, 80, 90, 105, 135, 500],
    prompt_tail=[170, 260, 400],
    output_mean=100,
    source="assumption: instructions of a paragraph, answers of another",
)

#: `fast-drop` leaves out ended rows a sixteenth of the batch at a time, so that half of that runs on in vain
#: (`Eager.size` of shardwatt.engine.fast.graphs). With CUDA graphs it halves the batch instead, which keeps
#: more of them; that is left out, since it is not known here whether there are any.
_DROPPED_AT_ONCE = 1 / 16


@dataclass(frozen=True, slots=True)
class PhaseLoad:
    """One phase of a cell, all batches together; expected counts.

    Attributes:
        steps: forward passes.
        rows: of a batch that a step computes, on average.
        work: what goes through the model, of all rows together.
        positions: of the cache that a row's step goes over, on average: a loop that copies the cache copies
            these.
    """

    steps: int = 0
    rows: float = 0.0
    work: Work = field(default_factory=Work)
    positions: float = 0.0

    def __add__(self, other: PhaseLoad) -> PhaseLoad:
        steps, tokens = self.steps + other.steps, self.work.tokens + other.work.tokens
        return PhaseLoad(
            steps,
            (self.rows * self.steps + other.rows * other.steps) / max(1, steps),
            self.work + other.work,
            (self.positions * self.work.tokens + other.positions * other.work.tokens) / max(1, tokens),
        )

    def times(self, count: int) -> PhaseLoad:
        """So many batches of the same load."""
        work = self.work
        return PhaseLoad(
            count * self.steps,
            self.rows,
            Work(count * work.tokens, count * work.logits, count * work.attended, count * work.finished),
            self.positions,
        )


@dataclass(frozen=True, slots=True)
class Workload:
    """What a cell has to do; all counts but `prompts` and `batches` are expectations.

    Attributes:
        prompts: that are answered.
        batches: that they are put into.
        prompt_tokens: of all prompts, begin of sequence included.
        output_tokens: of all responses, before their end of sequence.
        generated_tokens: rows x steps in which a token is drawn.
        phases: prefill, walk, decode; one that does not occur has no steps.
    """

    prompts: int
    batches: int
    prompt_tokens: int
    output_tokens: int
    generated_tokens: int
    phases: Mapping[PhaseName, PhaseLoad]


#: What a batch of so many rows takes in each phase.
_Phases = dict[PhaseName, PhaseLoad]


@dataclass(frozen=True, slots=True)
class _Limits:
    """How long a row may become.

    Attributes:
        length: new tokens.
        positions: prompt and response together: of the cache or of the context, whichever is less.
    """

    length: int
    positions: int


def most_positions(architecture: Architecture, cache_tokens: int | None) -> int:
    """Positions that a prompt and its response may take together: of the cache or of the context."""
    return min(architecture.context, cache_tokens or architecture.context)


def workload(
    cell: Cell,
    architecture: Architecture,
    *,
    prompts: int,
    cache_tokens: int | None,
    lengths: TokenLengths,
    ends: bool = True,
) -> Workload:
    """Expect what a cell's engine does for its prompts.

    Each engine's own loop: `reference` prefills up to the shortest prompt of a batch, walks to the longest
    and runs on for `length` tokens; `reference-v2` likewise, until all rows have ended; `fast` and `hf` run
    until the last row has ended, and `fast-drop` and `fast-refill` do without rows that have. docs/engines.md
    says it in full, `shardwatt.plan.lengths` how long prompts and responses are taken to be.

    Args:
        cell: its engine, batch and length.
        architecture: its context cuts what does not fit.
        prompts: how many are answered.
        cache_tokens: what the study fixes for the cache, or None.
        lengths: of prompts and responses, in tokens.
        ends: whether responses end by themselves; False: what it takes if none does.
    """
    positions = most_positions(architecture, cache_tokens)
    limits = _Limits(cell.length, positions)
    # A prompt leaves room for one token at least.
    expected = Lengths.of(lengths).within(positions - 1)
    if not ends:
        expected = expected.without_ends()
    return _workload(loop_of(cell.engine), cell.batch, prompts, limits, expected)


@lru_cache(maxsize=4096)
def _workload(engine: str, batch: int, prompts: int, limits: _Limits, lengths: Lengths) -> Workload:
    """The same from what matters for it alone: many cells of a study share it."""
    output = lengths.output_within(limits.length, limits.positions)
    if engine == "fast-refill":
        batches, phases = 1, _refilled(prompts, min(batch, prompts), limits, lengths)
    else:
        full, rest = divmod(prompts, batch)
        batches = full + bool(rest)
        sizes = [(full, batch), (1 if rest else 0, rest)]
        phases = _sum(sizes, lambda rows: _LOOPS[engine](rows, limits, lengths))
    drawn = sum(load.work.tokens for name, load in phases.items() if name != "prefill")
    return Workload(
        prompts=prompts,
        batches=batches,
        prompt_tokens=round(prompts * lengths.prompts.mean),
        output_tokens=round(prompts * output),
        generated_tokens=prompts + drawn,
        phases=phases,
    )


def _sum(sizes: Iterable[tuple[int, int]], phases_of: Callable[[int], _Phases]) -> _Phases:
    """All phases of so many batches of so many rows."""
    total: _Phases = {"prefill": PhaseLoad(), "walk": PhaseLoad(), "decode": PhaseLoad()}
    for count, rows in sizes:
        if count:
            for name, load in phases_of(rows).items():
                total[name] += load.times(count)
    return total


def _published(rows: int, limits: _Limits, lengths: Lengths, *, stops: bool) -> _Phases:
    """A batch of the published loop: every row at the same position in each step."""
    longest, shortest = round(lengths.prompts.longest(rows)), round(lengths.prompts.shortest(rows))
    steps = lengths.steps_behind_longest(rows, limits.length, limits.positions, stops=stops)
    logits = shortest if stops else 1  # `reference-v2` makes them for all positions
    attended = rows * _triangle(shortest)
    prefill = Work(rows * shortest, rows * logits, attended, rows * shortest)
    return {
        "prefill": PhaseLoad(1, rows, prefill, shortest),
        "walk": _steps(rows, shortest, longest),
        "decode": _steps(rows, longest, longest + round(steps)),
    }


def _steps(rows: int, known: int, last: int) -> PhaseLoad:
    """Steps of all rows from a position that is known to one that is written."""
    steps = last - known
    if steps <= 0:
        return PhaseLoad()
    tokens = rows * steps
    attended = rows * (_triangle(last) - _triangle(known))
    return PhaseLoad(steps, rows, Work(tokens, tokens, attended, tokens), attended / tokens)


def _fast(rows: int, limits: _Limits, lengths: Lengths, *, drops: bool) -> _Phases:
    """A batch of engine `fast`: each row at its own position, until the last one has ended."""
    most = _most_steps(limits, lengths)
    steps = round(lengths.responses.cut_longest(rows, most))
    tokens, attended = float(rows * steps), rows * (steps * lengths.prompts.mean + _triangle(steps))
    if drops:
        running = rows * lengths.responses.cut_mean(most)
        kept = min(tokens, running + steps * rows * _DROPPED_AT_ONCE / 2)
        attended = _attended_by_running(rows, most, lengths) * kept / max(1.0, running)
        tokens = kept
    return {"prefill": _packed(rows, lengths), "decode": _decode(steps, tokens, attended)}


def _refilled(prompts: int, rows: int, limits: _Limits, lengths: Lengths) -> _Phases:
    """Engine `fast-refill`: one queue, whose next prompts take the places of rows that have ended."""
    most = _most_steps(limits, lengths)
    each = lengths.responses.cut_mean(most)
    waiting = prompts - rows
    # While prompts wait, all places are taken; then as many rows as there are places run out.
    full_steps = round(waiting * each / rows)
    steps = full_steps + round(lengths.responses.cut_longest(rows, most))
    tokens = prompts * each
    # Rows end one by one or several at a step; each such step is followed by a prefill.
    ends_a_step = rows / (each + 1)
    refills = min(waiting, math.ceil(full_steps * -math.expm1(-ends_a_step))) if waiting else 0
    first = _packed(rows, lengths)
    later = _packed(waiting, lengths, at_least=refills)
    return {
        "prefill": first + later,
        "walk": PhaseLoad(),
        "decode": _decode(steps, tokens, _attended_by_running(prompts, most, lengths)),
    }


def _padded(rows: int, limits: _Limits, lengths: Lengths) -> _Phases:
    """A batch of `hf`: shorter prompts padded on the left, all rows until the last one has ended."""
    longest = round(lengths.prompts.longest(rows))
    steps = round(lengths.responses.cut_longest(rows, _most_steps(limits, lengths)))
    fed = rows * longest
    pairs = round(rows * (lengths.prompts.mean_square + lengths.prompts.mean) / 2)
    decode = _decode(steps, rows * steps, rows * (steps * lengths.prompts.mean + _triangle(steps)))
    return {
        "prefill": PhaseLoad(1, rows, Work(fed, rows, pairs, fed), longest),
        "decode": PhaseLoad(decode.steps, decode.rows, decode.work, longest + (steps + 1) / 2),
    }


def _most_steps(limits: _Limits, lengths: Lengths) -> float:
    """Steps after the prefill that a row may take: the token that fills its length is not fed."""
    return max(0.0, min(limits.length, limits.positions - lengths.prompts.mean) - 1)


def _attended_by_running(rows: int, most: float, lengths: Lengths) -> float:
    """Positions that rows attend to in all their steps, each until it ends by itself or is cut."""
    each = lengths.responses.cut_mean(most)
    return rows * (each * lengths.prompts.mean + (lengths.responses.cut_mean_square(most) + each) / 2)


def _packed(rows: int, lengths: Lengths, *, at_least: int = 1) -> PhaseLoad:
    """A packed prefill of so many prompts: every token once, logits and last layer for each one's last."""
    if rows == 0:
        return PhaseLoad()
    tokens = round(rows * lengths.prompts.mean)
    pairs = round(rows * (lengths.prompts.mean_square + lengths.prompts.mean) / 2)
    steps = max(at_least, -(-tokens // FAST_PREFILL_TOKENS))
    return PhaseLoad(steps, rows / steps, Work(tokens, rows, pairs, rows), lengths.prompts.mean)


def _decode(steps: int, tokens: float, attended: float) -> PhaseLoad:
    """Steps that feed a token of each row that they compute."""
    fed = round(tokens)
    if steps <= 0 or fed == 0:
        return PhaseLoad()
    return PhaseLoad(steps, fed / steps, Work(fed, fed, round(attended), fed), attended / tokens)


def _triangle(number: int) -> int:
    """1 + 2 + … + number."""
    return number * (number + 1) // 2


#: A batch of so many rows, by the loop that answers it.
_LOOPS: Mapping[str, Callable[[int, _Limits, Lengths], _Phases]] = {
    "reference": lambda rows, limits, lengths: _published(rows, limits, lengths, stops=False),
    "reference-v2": lambda rows, limits, lengths: _published(rows, limits, lengths, stops=True),
    "fast": lambda rows, limits, lengths: _fast(rows, limits, lengths, drops=False),
    "fast-drop": lambda rows, limits, lengths: _fast(rows, limits, lengths, drops=True),
    "hf": _padded,
}
