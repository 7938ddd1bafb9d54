"""Guards what a plan expects an engine to do: the engines' own counts, and their loops over drawn lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import engine_tiny
from checkpoints_tiny import SHAPES
from engine_cases import GREEDY, POSITIONS, Case, opened
from shardwatt.architectures import CATALOGUE
from shardwatt.cell import Cell
from shardwatt.datasets import TokenLengths
from shardwatt.engine.protocol import BatchRequest, Phase
from shardwatt.engines import MODEL_ENGINES, simulated_counterpart
from shardwatt.models import Checkpoint
from shardwatt.modelwork import Work
from shardwatt.plan.lengths import Lengths
from shardwatt.plan.workload import ASSUMED_LENGTHS, PhaseLoad, Workload, workload

CELL = Cell("reference", "llama-7b", "fp16", "a100", 1, 4, 5, "gsm8k", "none", 1)
SHAPE = CATALOGUE["llama-7b"]

#: Prompts of 10 tokens each, and responses that never end by themselves.
SAME = TokenLengths(prompt_deciles=[10] * 11, output_mean=1e9, source="made up")
#: Prompts of 10 to 310 tokens, responses of 50 on average.
MIXED = TokenLengths(
    prompt_deciles=[10, 20, 25, 30, 35, 40, 45, 50, 60, 80, 310],
    prompt_tail=[110, 180, 260],
    output_mean=50.0,
    source="made up",
)


def load_of(
    cell: Cell, lengths: TokenLengths, *, prompts: int = 10, cache_tokens: int | None = None
) -> Workload:
    return workload(cell, SHAPE, prompts=prompts, cache_tokens=cache_tokens, lengths=lengths)


def test_the_published_loop_by_hand() -> None:
    found = load_of(CELL, SAME)
    # Batches of 4, 4 and 2 rows. Each prefills 10 tokens and draws; then 4 steps, which attend to 11 … 14.
    assert (found.prompts, found.batches) == (10, 3)
    assert (found.prompt_tokens, found.output_tokens, found.generated_tokens) == (100, 50, 50)
    assert found.phases["prefill"] == PhaseLoad(3, 10 / 3, Work(100, 10, 10 * 55, 100), 10)
    assert found.phases["walk"] == PhaseLoad()
    assert found.phases["decode"] == PhaseLoad(12, 10 / 3, Work(40, 40, 10 * (11 + 12 + 13 + 14), 40), 12.5)


def test_the_second_published_loop_makes_logits_of_every_prompt_token() -> None:
    found = load_of(replace(CELL, engine="reference-v2"), SAME)
    assert found.phases["prefill"].work.logits == 100
    assert found.generated_tokens == 50


def test_packed_prefills_finish_the_last_token_of_each_prompt_alone() -> None:
    found = load_of(replace(CELL, engine="fast", batch=512), SAME, prompts=1024)
    # 512 prompts of 10 tokens are 5120, in portions of at most 2048.
    assert found.phases["prefill"] == PhaseLoad(6, 512 / 3, Work(10_240, 1024, 1024 * 55, 1024), 10)
    assert found.phases["decode"].steps == 2 * 4


def test_a_cache_cuts_what_does_not_fit() -> None:
    found = load_of(CELL, SAME, cache_tokens=13)
    assert found.output_tokens == 30, "three tokens fit behind ten"
    assert found.phases["decode"].steps == 3 * 2
    context = workload(CELL, replace(SHAPE, context=12), prompts=10, cache_tokens=None, lengths=SAME)
    assert context.output_tokens == 20
    assert load_of(CELL, SAME, cache_tokens=500) == load_of(CELL, SAME), "a larger one takes no more time"


def test_a_cache_cuts_the_rows_of_hf_as_those_of_fast() -> None:
    cells = [replace(CELL, engine=engine, batch=8, length=100) for engine in ("fast", "hf")]
    fast, hf = (load_of(cell, MIXED, prompts=80, cache_tokens=120) for cell in cells)
    assert hf.output_tokens == fast.output_tokens
    assert hf.phases["decode"].steps == fast.phases["decode"].steps


@pytest.mark.parametrize("engine", MODEL_ENGINES)
def test_a_simulated_engine_has_the_work_of_the_one_that_it_stands_for(engine: str) -> None:
    real = load_of(replace(CELL, engine=engine), MIXED, prompts=64)
    assert load_of(replace(CELL, engine=simulated_counterpart(engine)), MIXED, prompts=64) == real


def test_the_assumed_lengths_are_said_to_be_assumed() -> None:
    assert ASSUMED_LENGTHS.source.startswith("assumption")
    assert Lengths.of(ASSUMED_LENGTHS).prompts.mean > 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    root: Path = tmp_path_factory.mktemp("workload")
    checkpoint = Case("llama2-70b", "meta", 1).write(root)
    with engine_tiny.alone(root / "group"):
        yield checkpoint


@pytest.mark.parametrize("name", MODEL_ENGINES)
def test_an_engine_does_what_is_expected_of_it(name: str, saved: Checkpoint) -> None:
    """A real engine, with prompts of one length and no end of sequence: nothing is left to chance."""
    rows, size, length = 4, 6, 9
    engine = opened(name, saved, "llama2-70b")
    request = BatchRequest(0, [str(row) for row in range(rows)], [[1] * size] * rows, length, POSITIONS, rows)
    result = engine.generate(request, GREEDY, lambda tokens: None)

    lengths = TokenLengths(prompt_deciles=[size] * 11, output_mean=1e9, source="made up")
    cell = replace(CELL, engine=name, batch=rows, length=length)
    found = workload(cell, SHAPES["llama2-70b"], prompts=rows, cache_tokens=POSITIONS, lengths=lengths)
    assert found.generated_tokens == result.generated_tokens
    assert found.output_tokens == sum(map(len, result.tokens)) == rows * length
    for phase, load in found.phases.items():
        own = [one for one in result.phases if one.name == phase]
        assert (load.steps, load.work.tokens, load.work.attended) == (
            _sum(own, "steps"),
            _sum(own, "tokens"),
            _sum(own, "attended"),
        ), phase


def _sum(phases: Sequence[Phase], count: str) -> int:
    return sum(getattr(phase, count) for phase in phases)


#: The same prompts, with responses whose own quantiles are known: hardly any is short, as of worked answers.
COUNTED = MIXED.model_copy(
    update={"output_deciles": [20, 30, 35, 40, 44, 48, 52, 58, 64, 75, 190], "output_tail": [90, 120, 150]}
)


@cache
def drawn_batches(rows: int, count: int, *, counted: bool = False) -> list[list[tuple[int, int]]]:
    """Batches of prompts and responses in whole tokens, as MIXED or COUNTED has them; the responses uncut."""
    source, lengths = random.Random(3), Lengths.of(COUNTED if counted else MIXED)
    return [
        [
            (
                round(lengths.prompts.quantile(source.random())),
                round(lengths.responses.quantile(source.random())),
            )
            for _ in range(rows)
        ]
        for _ in range(count)
    ]


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("length", [16, 128])
@pytest.mark.parametrize("cache_tokens", [None, 150])
@pytest.mark.parametrize("counted", [False, True])
def test_steps_of_published_loops_are_those_of_drawn_batches(
    batch: int, length: int, cache_tokens: int | None, counted: bool
) -> None:
    """The loops of docs/engines.md over drawn lengths; prompts that fill the cache are cut, as planned."""
    positions = min(SHAPE.context, cache_tokens or SHAPE.context)
    walks, firsts, seconds = [], [], []
    for drawn in drawn_batches(batch, 400 + 8000 // batch, counted=counted):
        sizes = [min(prompt, positions - 1) for prompt, _ in drawn]
        last = min(positions, max(sizes) + length) - 1
        walks.append(max(sizes) - min(sizes))
        firsts.append(last - max(sizes))
        ends = max(size + response for size, (_, response) in zip(sizes, drawn, strict=True))
        seconds.append(max(0, min(last, ends) - max(sizes)))
    cell = replace(CELL, batch=batch, length=length)
    for engine, decodes in (("reference", firsts), ("reference-v2", seconds)):
        lengths = COUNTED if counted else MIXED
        found = load_of(
            replace(cell, engine=engine), lengths, prompts=100 * batch, cache_tokens=cache_tokens
        ).phases
        if batch > 1:
            assert found["walk"].steps / 100 == pytest.approx(fmean(walks), rel=0.1, abs=1)
        assert found["decode"].steps / 100 == pytest.approx(fmean(decodes), rel=0.1, abs=2)


@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("length", [16, 128])
@pytest.mark.parametrize("counted", [False, True])
def test_rows_of_fast_engines_end_where_drawn_ones_do(batch: int, length: int, counted: bool) -> None:
    steps, running, outputs = [], [], []
    for drawn in drawn_batches(batch, 400 + 8000 // batch, counted=counted):
        taken = [min(response, length - 1) for _, response in drawn]
        steps.append(max(taken))
        running.append(sum(taken))
        outputs.append(sum(min(response, length) for _, response in drawn))
    cell = replace(CELL, batch=batch, length=length)
    found = {
        engine: load_of(replace(cell, engine=engine), COUNTED if counted else MIXED, prompts=100 * batch)
        for engine in ("fast", "fast-drop", "fast-refill", "hf")
    }
    for engine in ("fast", "hf", "fast-drop"):
        assert found[engine].phases["decode"].steps / 100 == pytest.approx(fmean(steps), rel=0.05, abs=1)
    assert found["fast"].phases["decode"].work.tokens / 100 == pytest.approx(
        batch * fmean(steps), rel=0.05, abs=1
    )
    # The least that can be: no row is computed once it has ended.
    least = fmean(running)
    assert found["fast-refill"].phases["decode"].work.tokens / 100 == pytest.approx(least, rel=0.06)
    dropped = found["fast-drop"].phases["decode"].work.tokens / 100
    assert least * 0.94 <= dropped <= found["fast"].phases["decode"].work.tokens / 100
    for planned in found.values():
        assert planned.output_tokens / 100 == pytest.approx(fmean(outputs), rel=0.05)


@pytest.mark.parametrize("engine", MODEL_ENGINES)
@pytest.mark.parametrize("lengths", [MIXED, COUNTED])
def test_without_ends_every_response_takes_its_full_length(engine: str, lengths: TokenLengths) -> None:
    cell = replace(CELL, engine=engine, batch=8, length=100)
    words: dict[str, Any] = {"prompts": 64, "cache_tokens": None, "lengths": lengths}
    longest = workload(cell, SHAPE, ends=False, **words)
    assert longest.output_tokens == 64 * 100
    # The last token of a row is not fed.
    assert longest.phases["decode"].steps == 8 * 99
    assert longest.phases["decode"].work.tokens == pytest.approx(64 * 99)
    expected = workload(cell, SHAPE, **words)
    assert (expected == longest) == (engine == "reference") or expected.output_tokens < longest.output_tokens


def test_refilling_keeps_places_taken_until_the_queue_runs_dry() -> None:
    refilled = load_of(replace(CELL, engine="fast-refill", batch=64, length=128), MIXED, prompts=4096)
    assert refilled.batches == 1
    assert 0.9 * 64 < refilled.phases["decode"].rows <= 64
    stays = load_of(replace(CELL, engine="fast", batch=64, length=128), MIXED, prompts=4096)
    assert refilled.phases["decode"].steps < 0.5 * stays.phases["decode"].steps
    one, other = (load.phases["prefill"].work for load in (refilled, stays))
    assert one.tokens == pytest.approx(other.tokens, rel=1e-3), "every prompt token once"
    assert (one.logits, one.finished) == (other.logits, other.finished)


@pytest.mark.parametrize("engine", MODEL_ENGINES)
@pytest.mark.parametrize("batch", [1, 64, 4096])
def test_no_engine_does_less_than_responses_need(engine: str, batch: int) -> None:
    found = load_of(replace(CELL, engine=engine, batch=batch, length=64), MIXED, prompts=1000)
    fed = sum(load.work.tokens for load in found.phases.values())
    assert fed >= found.prompt_tokens + found.output_tokens - found.prompts * 1.01
    assert found.generated_tokens >= found.output_tokens
    assert found.batches == (1 if engine == "fast-refill" else -(-1000 // batch))
    for load in found.phases.values():
        assert load.work.finished <= load.work.tokens
        assert load.rows <= max(batch, 1000 / load.steps if load.steps else 0)
