"""Guards the fast engines: packed prefill, rows that end, leave and are replaced, and what is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest
import torch

import checkpoints_tiny
import engine_tiny
from engine_dense import dense_logits
from shardwatt.engine.fast import graphs, loop
from shardwatt.engine.fast.attention import Products
from shardwatt.engine.fast.capture import Capture
from shardwatt.engine.fast.graphs import Eager, Graphs
from shardwatt.engine.fast.packing import packed
from shardwatt.engine.fast.segments import Segment
from shardwatt.engine.fast.slots import Slots
from shardwatt.engine.protocol import BatchRequest, BatchResult, Sampling
from shardwatt.engine.sampling import row_keys, sorted_next_tokens
from shardwatt.errors import DoesNotFit

GREEDY = Sampling(temperature=0, top_p=1, seed=0)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, seed=5)

_random = Random(2)
#: One token, several segments of lengths, and more prompts than places.
PROMPTS = [
    [_random.randrange(3, 320) for _ in range(size)] for size in (17, 1, 90, 3, 40, 41, 2, 90, 5, 33, 64)
]
LENGTH, POSITIONS = 40, 120  # the longest prompts meet the end of the cache
#: As many that rows end at any time, by themselves or at their length.
EOS = frozenset(range(100, 110))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fast")


def opened(
    root: Path,
    ended: loop.Ended = "stay",
    kind: checkpoints_tiny.Kind = "llama2-70b",
    rows: int = len(PROMPTS),
    positions: int = POSITIONS,
    precision: str = "fp32",
) -> loop.Fast:
    folder = root / kind
    if not folder.exists():
        checkpoints_tiny.tiny(folder, kind)
    model = engine_tiny.on_rank(
        engine_tiny.saved(folder), checkpoints_tiny.SHAPES[kind], precision=precision, eos_ids=EOS
    )
    engine = loop.load(model, ended)
    engine.allocate(rows, positions)
    return engine


def request(rows: int, prompts: list[list[int]] = PROMPTS) -> BatchRequest:
    return engine_tiny.ask(prompts, LENGTH, POSITIONS, rows=rows)


def generated(engine: loop.Fast, asked: BatchRequest, sampling: Sampling) -> BatchResult:
    counted: list[int] = []
    result = engine.generate(asked, sampling, counted.append)
    assert sum(counted) == result.generated_tokens
    return result


@pytest.mark.parametrize("kind", ["llama1", "llama2-70b", "llama3"])
def test_packed_prefill_gives_each_prompt_its_own_logits(root: Path, kind: checkpoints_tiny.Kind) -> None:
    engine = opened(root, kind=kind)
    prompts, places = PROMPTS[:6], [5, 0, 3, 1, 2, 4]
    with torch.inference_mode():
        together = engine.model.prefill(packed(prompts, places, engine.device))
    weights = checkpoints_tiny.tiny_weights(kind)
    for prompt, logits in zip(prompts, together, strict=True):
        exact = dense_logits(weights, checkpoints_tiny.SHAPES[kind], prompt)[-1]
        assert (logits - exact).abs().max() < 1e-5 * exact.abs().max()
        with torch.inference_mode():
            alone = engine.model.prefill(packed([prompt], [7], engine.device))[0]
        assert (logits - alone).abs().max() < 2e-6 * exact.abs().max()


def test_steps_after_a_packed_prefill_give_the_logits_of_the_whole_text(root: Path) -> None:
    engine = opened(root)
    prompts, news = PROMPTS[:4], [[5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16]]
    with torch.inference_mode():
        engine.model.prefill(packed(prompts, range(4), engine.device))
        for step in range(3):
            tokens = torch.tensor([new[step] for new in news])
            positions = torch.tensor([len(prompt) + step for prompt in prompts])
            logits = engine.model.step(tokens, positions, POSITIONS)
    weights = checkpoints_tiny.tiny_weights("llama2-70b")
    for prompt, new, last in zip(prompts, news, logits, strict=True):
        exact = dense_logits(weights, engine.on.architecture, prompt + new)[-1]
        assert (last - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_rows_that_leave_or_are_replaced_change_no_text(root: Path, sampling: Sampling) -> None:
    stay = generated(opened(root), request(len(PROMPTS)), sampling)
    leave = generated(opened(root, "leave"), request(len(PROMPTS)), sampling)
    room = generated(opened(root, "make room", rows=3), request(3), sampling)
    assert stay.tokens == leave.tokens == room.tokens
    assert stay.finish == leave.finish == room.finish
    assert {"eos", "length"} <= set(stay.finish) or sampling is GREEDY
    assert stay.generated_tokens > leave.generated_tokens
    backwards = engine_tiny.ask(PROMPTS[::-1], LENGTH, POSITIONS, rows=len(PROMPTS))
    ids = [f"p{place}" for place in reversed(range(len(PROMPTS)))]
    turned = BatchRequest(0, ids, backwards.prompts, LENGTH, POSITIONS, len(PROMPTS))
    assert generated(opened(root), turned, sampling).tokens == stay.tokens[::-1]


@pytest.mark.parametrize("ended", ["stay", "leave", "make room"])
def test_looking_at_tokens_a_step_late_as_on_gpus_changes_no_text(root: Path, ended: loop.Ended) -> None:
    rows = 3 if ended == "make room" else len(PROMPTS)
    at_once, late = opened(root, ended, rows=rows), opened(root, ended, rows=rows)
    late.late = 1
    expected, found = (generated(engine, request(rows), SAMPLED) for engine in (at_once, late))
    assert (found.tokens, found.finish) == (expected.tokens, expected.finish)
    ends = found.finish.count("eos")
    assert 0 <= found.generated_tokens - expected.generated_tokens <= rows * ends


def test_text_is_the_likeliest_and_is_cut_at_its_end(root: Path) -> None:
    result = generated(opened(root, "make room", rows=4), request(4), GREEDY)
    weights = checkpoints_tiny.tiny_weights("llama2-70b")
    for place in (0, 1, 3, 7):
        prompt, new, finish = PROMPTS[place], result.tokens[place], result.finish[place]
        room = min(LENGTH, POSITIONS - len(prompt))
        exact = dense_logits(weights, checkpoints_tiny.SHAPES["llama2-70b"], prompt + new)
        best = exact[len(prompt) - 1 :].argmax(-1).tolist()
        assert best[: len(new)] == new
        assert not EOS & set(new)
        if finish == "eos":
            assert best[len(new)] in EOS
        else:
            assert len(new) == room
            assert finish == ("length" if room == LENGTH else "context")
    assert result.finish[7] == "context"


def test_tokens_are_drawn_with_the_key_of_their_prompt_and_at_their_position(root: Path) -> None:
    result = generated(opened(root), request(len(PROMPTS)), SAMPLED)
    weights = checkpoints_tiny.tiny_weights("llama2-70b")
    for place in (1, 3, 6):
        prompt, new = PROMPTS[place], result.tokens[place][:12]
        logits = dense_logits(weights, checkpoints_tiny.SHAPES["llama2-70b"], prompt + new)[len(prompt) - 1 :]
        keys = row_keys(SAMPLED.seed, [f"p{place}"] * len(new), "cpu")
        positions = len(prompt) + torch.arange(len(new))
        assert sorted_next_tokens(logits[: len(new)].float(), SAMPLED, keys, positions).tolist() == new


def test_rows_that_stay_are_computed_on_and_counted(root: Path) -> None:
    result = generated(opened(root), request(len(PROMPTS)), SAMPLED)
    prefill, decode = result.phases
    drawn = [len(new) + (finish == "eos") for new, finish in zip(result.tokens, result.finish, strict=True)]
    assert decode.steps == max(drawn) - 1
    assert result.generated_tokens == len(PROMPTS) * max(drawn)
    sizes = [len(prompt) for prompt in PROMPTS]
    assert (prefill.name, prefill.tokens) == ("prefill", sum(sizes))
    assert prefill.attended == sum(sum(range(1, size + 1)) for size in sizes)
    assert decode.tokens == decode.steps * len(PROMPTS)
    seen = [min(size + step, POSITIONS) for size in sizes for step in range(1, decode.steps + 1)]
    assert decode.attended == sum(seen)
    assert prefill.start_s <= prefill.stop_s <= decode.start_s <= decode.stop_s


def test_replaced_rows_take_their_turns_and_waste_little(root: Path) -> None:
    result = generated(opened(root, "make room", rows=3), request(3), SAMPLED)
    drawn = sum(len(new) + (end == "eos") for new, end in zip(result.tokens, result.finish, strict=True))
    assert result.generated_tokens == drawn
    prefills = [phase for phase in result.phases if phase.name == "prefill"]
    assert sum(phase.tokens for phase in prefills) == sum(map(len, PROMPTS))
    assert len(prefills) > 3
    borders = [moment for phase in result.phases for moment in (phase.start_s, phase.stop_s)]
    assert borders == sorted(borders)


def test_a_batch_after_another_sees_nothing_of_it(root: Path) -> None:
    used = opened(root, "leave")
    for prompts in (PROMPTS, PROMPTS[3:6], PROMPTS[:2]):
        asked = request(len(prompts), prompts)
        assert (
            generated(used, asked, SAMPLED).tokens == generated(opened(root, "leave"), asked, SAMPLED).tokens
        )


def test_a_step_of_fixed_shape_as_graphs_hold_it_draws_the_same(root: Path) -> None:
    fixed, eager = opened(root), opened(root)
    prompts = sorted(PROMPTS, key=len, reverse=True)
    keys = torch.arange(len(prompts))
    with torch.inference_mode():
        steps = Eager(eager.slots, "")
        steps.begin([len(prompt) + 1 for prompt in prompts], [0] * len(prompts))
        assert len(eager.model.cache.segments) == 1  # so small a cache does not pay
        apart = [Segment(0, 4, 96), Segment(4, 7, 64), Segment(7, 11, 32)]
        eager.model.cache.arrange(apart, [0] * len(prompts))
        for engine in (fixed, eager):
            engine.slots.fill(range(len(prompts)), prompts, keys, SAMPLED)
        for step in range(1, 30):
            fixed.slots.advance(len(prompts), POSITIONS, SAMPLED)
            steps.advance([len(prompt) + step for prompt in prompts], SAMPLED)
            assert torch.equal(fixed.slots.tokens, eager.slots.tokens)
            assert torch.equal(fixed.slots.positions, eager.slots.positions)
    assert len(eager.model.cache.segments) == 3


class Recorder:
    """In the place of `Capture`: what it records is taken again as it is."""

    def __init__(self, fails_at: int | None = None, error: RuntimeError | None = None) -> None:
        self.recorded = 0
        self.fails_at, self.error = fails_at, error

    def rehearse(self, step: Callable[[], None]) -> None:
        step()

    def record(self, step: Callable[[], None]) -> SimpleNamespace:
        if self.recorded == self.fails_at and self.error is not None:
            raise self.error
        self.recorded += 1
        return SimpleNamespace(replay=step)


def recording(
    root: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder, ended: loop.Ended, rows: int
) -> loop.Fast:
    """An engine that takes its steps from graphs of few positions, as on CUDA over a cache in one piece."""
    monkeypatch.setattr(graphs, "BUCKET", 16)
    engine = opened(root, ended, rows=rows)
    assert isinstance(engine.model.attention, Products)
    engine.model.attention.segmented = False
    eager = Eager(engine.slots, "")
    engine.steps = Graphs(engine.slots, eager, cast(Capture, recorder), 1, shrinks=ended != "stay")
    return engine


def warm_up(rows: int, length: int) -> BatchRequest:
    """The longest prompts first, as a run warms up."""
    prompts = sorted(PROMPTS, key=len, reverse=True)[:rows]
    return dataclasses.replace(request(rows, prompts), index=-1, length=length)


@pytest.mark.parametrize("warmup_tokens", [1, 4])
@pytest.mark.parametrize(("ended", "rows"), [("stay", 11), ("leave", 11), ("make room", 3)])
def test_nothing_is_captured_after_the_warm_up(
    root: Path, monkeypatch: pytest.MonkeyPatch, ended: loop.Ended, rows: int, warmup_tokens: int
) -> None:
    recorder = Recorder()
    engine = recording(root, monkeypatch, recorder, ended, rows)
    generated(engine, warm_up(rows, warmup_tokens), SAMPLED)
    captured = recorder.recorded
    assert captured == 8 * (1 if ended == "stay" else rows.bit_length())  # buckets of 120 positions, halves
    # Long and short ones, and short ones alone, which start in the first bucket.
    for prompts in (PROMPTS, [*PROMPTS[1:5], *PROMPTS[8:9], *PROMPTS[1:5], *PROMPTS[:2]]):
        asked = request(rows, prompts)
        expected = generated(opened(root, ended, rows=rows), asked, SAMPLED)
        assert generated(engine, asked, SAMPLED).tokens == expected.tokens
    assert recorder.recorded == captured
    assert engine.notes()["cuda_graphs"] == f"{captured} captured, by rows and 16 positions or more"


def test_graphs_of_a_long_cache_are_few_and_see_little_too_much() -> None:
    assert [graphs.bucket(length, 2048) for length in (1, 256, 257, 1100, 2048)] == [
        256,
        256,
        512,
        1280,
        2048,
    ]
    for limit in (100, 700, 2049, 32_768, 131_072):
        buckets = sorted({graphs.bucket(length, limit) for length in range(1, limit + 1)})
        slots = cast(Slots, SimpleNamespace(last=limit - 1))
        steps = Graphs(slots, cast(Eager, None), cast(Capture, None), 1, shrinks=True)
        keys = list(steps._keys(64, SAMPLED))
        # All that may be asked for in the run, and nothing twice.
        assert [length for rows, length, _ in keys if rows == 1] == buckets
        assert len(set(keys)) == len(keys) == 7 * len(buckets)
        assert len(buckets) <= 4 + 4 * max(0, (limit - 1).bit_length() - 10)
        for below, here in zip([0, *buckets], buckets, strict=False):
            assert here <= max(below + 256, 1.25 * (below + 1))


def test_what_is_captured_in_the_run_is_counted_and_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    engine = recording(root, monkeypatch, recorder, "stay", len(PROMPTS))
    expected = generated(opened(root), request(len(PROMPTS)), SAMPLED).tokens
    assert generated(engine, request(len(PROMPTS)), SAMPLED).tokens == expected
    late = recorder.recorded
    assert late > 0
    assert engine.notes()["cuda_graphs"].endswith(f", {late} of them after the warm-up")


@pytest.mark.parametrize(
    "error", [RuntimeError("not permitted\nwhile capturing"), torch.OutOfMemoryError("not permitted")]
)
@pytest.mark.parametrize("fails_at", [0, 2])
def test_where_graphs_cannot_be_captured_the_steps_are_taken_singly_and_it_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, error: RuntimeError
) -> None:
    expected = generated(opened(root), request(len(PROMPTS)), SAMPLED).tokens
    recorder = Recorder(fails_at, error)
    engine = recording(root, monkeypatch, recorder, "stay", len(PROMPTS))
    for _ in range(2):  # in the run, without a warm-up, and once more
        assert generated(engine, request(len(PROMPTS)), SAMPLED).tokens == expected
    assert recorder.recorded == fails_at
    note = "none: capture failed (not permitted), operation by operation instead"
    assert engine.notes()["cuda_graphs"] == note


def test_a_step_that_has_no_memory_does_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Recorder):
        def rehearse(self, step: Callable[[], None]) -> None:
            raise torch.OutOfMemoryError("out of memory")

    engine = recording(root, monkeypatch, Full(), "stay", len(PROMPTS))
    with pytest.raises(DoesNotFit, match=r"^out of memory$"):
        generated(engine, warm_up(len(PROMPTS), 1), SAMPLED)


@pytest.mark.parametrize("with_another_cache", [False, True])
def test_memory_that_runs_out_after_a_failed_capture_is_told_with_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, with_another_cache: bool
) -> None:
    engine = recording(root, monkeypatch, Recorder(0, RuntimeError("not permitted")), "stay", len(PROMPTS))
    generated(engine, warm_up(len(PROMPTS), 1), SAMPLED)
    if with_another_cache:
        engine.allocate(len(PROMPTS), POSITIONS)

    def full(*words: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(engine.model, "prefill", full)
    with pytest.raises(DoesNotFit, match=r"2\.00 GiB\. \(a CUDA graph could not be .*`cuda_graphs: never`"):
        generated(engine, request(len(PROMPTS)), SAMPLED)


def test_every_cache_of_an_engine_has_its_steps_captured_on_one_stream(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On another one cuBLAS would take another workspace, and keep it.
    captures: list[Capture] = []

    def watched(slots: object, eager: object, capture: Capture, *rest: object, **words: object) -> Graphs:
        captures.append(capture)
        return cast(Graphs, None)

    engine = opened(root)
    monkeypatch.setattr(engine, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(loop, "Graphs", watched)
    for _ in range(3):
        engine._steps()
    assert len({id(capture) for capture in captures}) == 3
    assert len({id(capture._stream) for capture in captures}) == 1


def test_precision_is_that_of_weights_and_cache(root: Path) -> None:
    exact = opened(root)
    with torch.inference_mode():
        wanted = exact.model.prefill(packed(PROMPTS[:3], range(3), exact.device))
    for precision, dtype, bound in (("bf16", torch.bfloat16, 0.05), ("fp16", torch.float16, 0.005)):
        engine = opened(root, precision=precision)
        with torch.inference_mode():
            logits = engine.model.prefill(packed(PROMPTS[:3], range(3), engine.device))
        assert engine.model.cache.parts[0][0][0].dtype == dtype
        assert 0 < (logits - wanted).abs().max() < bound * wanted.abs().max()
        assert len(generated(engine, request(len(PROMPTS)), SAMPLED).tokens) == len(PROMPTS)
