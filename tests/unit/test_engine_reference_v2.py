"""Llama 2's published loop: when it stops, what ends a row, and what its logits take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import engine_tiny
from shardwatt.engine.protocol import BatchResult, Sampling
from shardwatt.engine.reference import Reference
from shardwatt.engine.reference_v2 import ReferenceV2

GREEDY = Sampling(temperature=0, top_p=1, seed=0)
SHORT, LONG = [1, 40, 41], [1, 5, 80, 81, 82, 83, 84, 11]
LENGTH = 16


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    folder = tmp_path_factory.mktemp("reference-v2")
    checkpoint = engine_tiny.make(folder / "model")
    with engine_tiny.alone(folder / "group"):
        opened = engine_tiny.open_engine(checkpoint, eos_ids=frozenset())
        opened.allocate(2, 64)
        yield opened


def answered(
    loaded: Reference, prompts: list[list[int]], ends: set[int], length: int = LENGTH
) -> BatchResult:
    engine = ReferenceV2(loaded.model, loaded.device, frozenset(ends))
    return engine.generate(engine_tiny.ask(prompts, length), GREEDY, lambda rows: None)


def never_stopped(loaded: Reference, prompts: list[list[int]], length: int = LENGTH) -> list[list[int]]:
    """New tokens of each row as far as the loop of version 1 computes them, its surplus included."""
    surplus = max(map(len, prompts)) - min(map(len, prompts))
    results = loaded.generate(engine_tiny.ask(prompts, length + surplus), GREEDY, lambda rows: None)
    return results.tokens


def test_it_stops_after_the_step_in_which_the_last_row_ends(loaded: Reference) -> None:
    rows = never_stopped(loaded, [SHORT, LONG])
    ends = {rows[0][2], rows[1][6]}
    last = [min(row.index(end) for end in ends if end in row) for row in rows]
    result = answered(loaded, [SHORT, LONG], ends)
    assert result.finish == ["eos", "eos"]
    assert [len(tokens) for tokens in result.tokens] == last
    # A row's new token n is written at position len(prompt) + n; steps write positions 3 and on.
    written = max(len(SHORT) + last[0], len(LONG) + last[1])
    assert result.generated_tokens == 2 * (written - len(SHORT) + 1)
    assert sum(phase.steps for phase in result.phases) == written - len(SHORT) + 1
    fed = sum(phase.tokens for phase in result.phases)
    assert fed == 2 * written
    assert sum(phase.attended for phase in result.phases) == written * (written + 1)


def test_its_answers_are_those_of_the_loop_that_never_stops(loaded: Reference) -> None:
    rows = never_stopped(loaded, [SHORT, LONG])
    ends = frozenset({rows[0][2], rows[1][6]})
    request = engine_tiny.ask([SHORT, LONG], LENGTH)
    endless = Reference(loaded.model, loaded.device, ends).generate(request, GREEDY, lambda rows: None)
    stopping = answered(loaded, [SHORT, LONG], set(ends))
    assert stopping.tokens == endless.tokens
    assert stopping.finish == endless.finish
    assert stopping.generated_tokens < endless.generated_tokens


def test_one_row_that_goes_on_keeps_all_of_them_going(loaded: Reference) -> None:
    rows = never_stopped(loaded, [SHORT, LONG])
    end = next(token for token in rows[0] if token not in rows[1])
    result = answered(loaded, [SHORT, LONG], {end})
    assert result.finish == ["eos", "length"]
    assert result.generated_tokens == 2 * (len(LONG) - len(SHORT) + LENGTH)


def test_an_end_of_sequence_inside_a_prompt_ends_nothing(loaded: Reference) -> None:
    rows = never_stopped(loaded, [SHORT, LONG])
    inside = next(token for token in LONG[3:] if token not in rows[1])
    first = next(token for token in rows[0] if token not in rows[1])
    result = answered(loaded, [SHORT, LONG], {inside, first})
    assert result.finish == ["eos", "length"]
    assert len(result.tokens[1]) == LENGTH


def test_an_end_of_sequence_past_a_rows_length_lets_the_batch_stop(loaded: Reference) -> None:
    # The short row computes on while the long one answers; its end counts there, though it is cut before.
    short, long = never_stopped(loaded, [SHORT, LONG], 3)
    late = next(token for token in short[3:] if token not in short[:3] and token not in long[:1])
    result = answered(loaded, [SHORT, LONG], {late, long[0]}, length=3)
    stopped_at = max(short.index(late) + len(SHORT), len(LONG))
    assert result.finish == ["length", "eos"]
    assert result.generated_tokens == 2 * (stopped_at - len(SHORT) + 1)


def test_rows_that_all_end_at_once_stop_it_after_the_prefill(loaded: Reference) -> None:
    first = never_stopped(loaded, [SHORT])[0][0]
    result = answered(loaded, [SHORT, SHORT], {first})
    assert result.tokens == [[], []]
    assert [phase.name for phase in result.phases] == ["prefill"]
    assert result.generated_tokens == 2


def test_logits_are_made_for_every_position_that_is_fed(loaded: Reference) -> None:
    made: list[tuple[int, ...]] = []

    def note(layer: nn.Module, arguments: tuple[Tensor], logits: Tensor) -> None:
        made.append(tuple(logits.shape))

    hook = loaded.model.output.register_forward_hook(note)
    try:
        answered(loaded, [LONG, LONG], {1}, length=2)
        loaded.generate(engine_tiny.ask([LONG, LONG], 2), GREEDY, lambda rows: None)
    finally:
        hook.remove()
    vocabulary = engine_tiny.RECIPE.vocab_size
    published = [(2, len(LONG), vocabulary), (2, 1, vocabulary)]
    assert made == [*published, (2, vocabulary), (2, vocabulary)]


@torch.inference_mode()
def test_the_last_positions_logits_are_those_of_version_1(loaded: Reference) -> None:
    tokens = torch.tensor([LONG])
    every = loaded.model.logits(tokens, 0)
    assert every.dtype == torch.float32
    assert engine_tiny.off(every[:, -1], loaded.model(tokens, 0)) <= 1e-6
