"""Guards the batches: each engine gets its order and portions, and the warm-up touches the largest shapes."""

from __future__ import annotations

from typing import cast

import pytest

from shardwatt.cell import Cell
from shardwatt.engine.protocol import Engine
from shardwatt.run.batches import make_room, plan_batches, warm_up_requests
from shardwatt.run.exchange import BatchPlan


def plan(*sizes: int, positions: int = 100, rows: int | None = None) -> BatchPlan:
    return BatchPlan(
        prompt_ids=[str(row) for row in range(len(sizes))],
        prompts=[list(range(size)) for size in sizes],
        positions=positions,
        rows=rows or len(sizes),
    )


def test_the_longest_prefill_of_each_number_of_rows_is_warmed_without_a_walk() -> None:
    requests = warm_up_requests([plan(5, 90), plan(20, 30), plan(8, 9), plan(7)], 4, walks=True)
    assert [[len(prompt) for prompt in request.prompts] for request in requests] == [[20, 20], [7]]
    assert [request.positions for request in requests] == [24, 11]
    assert all(request.length == 4 and request.index == -1 for request in requests)


def test_without_a_walk_whole_prompts_are_warmed() -> None:
    requests = warm_up_requests([plan(5, 90), plan(20, 30), plan(7)], 4, walks=False)
    assert [[len(prompt) for prompt in request.prompts] for request in requests] == [[5, 90], [7]]
    assert [request.positions for request in requests] == [94, 11]


def test_only_the_places_of_a_queue_are_warmed() -> None:
    request, _ = warm_up_requests([plan(9, 8, 3, 2, 1, rows=2)], 4, walks=False)
    assert ([len(prompt) for prompt in request.prompts], request.prompt_ids, request.rows) == (
        [9, 8],
        ["0", "1"],
        2,
    )


def test_a_prompt_that_takes_a_free_place_is_warmed_alone() -> None:
    requests = warm_up_requests([plan(9, 2, 5, 3, 4, rows=2)], 4, walks=False)
    assert [request.prompt_ids for request in requests] == [["0", "1"], ["3"]]
    alone = requests[-1]
    assert [len(prompt) for prompt in alone.prompts] == [3]
    assert (alone.rows, alone.length, alone.positions, alone.warms_up) == (1, 1, 4, True)


class Remembering:
    """The memory of an engine that holds nothing but a cache."""

    held = peak = 0

    def allocate(self, rows: int, positions: int) -> None:
        self.held = rows * positions
        self.peak = max(self.peak, self.held)

    def forget_peak_memory(self) -> None:
        self.peak = self.held


def test_the_last_cells_cache_is_no_part_of_the_peak() -> None:
    engine = Remembering()
    engine.allocate(50, 1000)
    make_room(cast(Engine, engine), [plan(5, 9), plan(3, positions=200)])
    assert engine.peak == 2 * 200


def test_the_warm_up_stays_inside_the_cache() -> None:
    (request,) = warm_up_requests([plan(9, 8, positions=10)], 16, walks=True)
    assert request.positions == 10


def test_no_tokens_mean_no_warm_up() -> None:
    assert warm_up_requests([plan(5)], 0, walks=True) == []


def cell(engine: str) -> Cell:
    return Cell(engine, "tiny", "fp32", "cpu", 1, 2, 8, "demo-alpaca", "none", 1)


SIZES = {"a": 3, "b": 9, "c": 5, "d": 5, "e": 20}


def planned(engine: str) -> list[BatchPlan]:
    tokens = [list(range(size)) for size in SIZES.values()]
    plans = plan_batches(list(SIZES), tokens, cell(engine), context=16, cache_tokens=None)
    for batch in plans:
        assert [len(prompt) for prompt in batch.prompts] == [SIZES[name] for name in batch.prompt_ids]
    return plans


@pytest.mark.parametrize("engine", ["reference", "reference-v2", "hf"])
def test_published_loops_answer_prompts_as_they_were_sampled(engine: str) -> None:
    plans = planned(engine)
    assert [batch.prompt_ids for batch in plans] == [["a", "b"], ["c", "d"], ["e"]]
    assert [(batch.rows, batch.positions) for batch in plans] == [(2, 16), (2, 13), (1, 16)]


@pytest.mark.parametrize("engine", ["fast", "fast-drop"])
def test_the_fast_engine_answers_the_longest_first_and_equals_as_they_were_sampled(engine: str) -> None:
    assert [batch.prompt_ids for batch in planned(engine)] == [["e", "b"], ["c", "d"], ["a"]]


def test_a_queue_is_one_batch_with_the_cells_rows() -> None:
    (batch,) = planned("fast-refill")
    assert (batch.prompt_ids, batch.rows, batch.positions) == (["e", "b", "c", "d", "a"], 2, 16)
