"""Guards the warm-up: it touches the largest shapes of the run, and stays short."""

from __future__ import annotations

from shardwatt.run.batches import warm_up_requests
from shardwatt.run.exchange import BatchPlan


def plan(*sizes: int, positions: int = 100) -> BatchPlan:
    return BatchPlan(
        prompt_ids=[str(row) for row in range(len(sizes))],
        prompts=[list(range(size)) for size in sizes],
        positions=positions,
    )


def test_the_longest_prefill_of_each_number_of_rows_is_warmed_without_a_walk() -> None:
    requests = warm_up_requests([plan(5, 90), plan(20, 30), plan(8, 9), plan(7)], new_tokens=4)
    assert [[len(prompt) for prompt in request.prompts] for request in requests] == [[20, 20], [7]]
    assert [request.positions for request in requests] == [24, 11]
    assert all(request.length == 4 and request.index == -1 for request in requests)


def test_the_warm_up_stays_inside_the_cache() -> None:
    (request,) = warm_up_requests([plan(9, 8, positions=10)], new_tokens=16)
    assert request.positions == 10


def test_no_tokens_mean_no_warm_up() -> None:
    assert warm_up_requests([plan(5)], new_tokens=0) == []
