"""Guards that nodes are brought to one clock by the barrier they left together, whatever their clocks say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.run.clocks import node_clocks
from shardwatt.run.exchange import RankEnd


def end(
    rank: int,
    node: str,
    barrier_s: float | None,
    wall_s: float | None = 1e9,
    closing_s: float | None = None,
) -> RankEnd:
    return RankEnd(
        rank=rank, node=node, ok=True, barrier_s=barrier_s, barrier_wall_s=wall_s, closing_s=closing_s
    )


def test_the_barrier_is_one_moment_on_all_nodes() -> None:
    ends = [
        end(2, "b", 50.0, 1100.0), end(3, "b", 50.002, 1100.002),
        end(0, "a", 7000.0, 1000.0), end(1, "a", 7000.004, 1000.004),
    ]  # fmt: skip
    clocks = node_clocks(ends, 2)
    assert clocks is not None
    assert [clock.node for clock in clocks] == ["a", "b"]
    assert (clocks[0].offset_s, clocks[0].wall_ahead_s) == (0.0, 0.0)
    assert clocks[1].offset_s == pytest.approx(7000.002 - 50.001)
    assert clocks[1].wall_ahead_s == pytest.approx(99.999)


def test_a_rank_that_was_held_up_does_not_move_its_nodes_clock() -> None:
    ends = [end(rank, "a", 10.0) for rank in range(3)] + [
        end(3, "b", 30.0),
        end(4, "b", 30.0),
        end(5, "b", 34.0),
    ]
    clocks = node_clocks(ends, 3)
    assert clocks is not None
    assert clocks[1].offset_s == -20.0


def test_a_clock_that_runs_fast_between_the_barriers_is_slowed_down_there() -> None:
    """A node whose clock is 500 ppm fast: the most by which NTP slews it."""
    ends = [
        end(0, "a", 1000.0, closing_s=1100.0),
        end(1, "b", 5000.0, closing_s=5100.05),
        end(2, "b", 5000.0, closing_s=5100.05),
    ]  # fmt: skip
    clocks = node_clocks([ends[0], ends[0].model_copy(update={"rank": 1}), *(
        one.model_copy(update={"rank": one.rank + 1}) for one in ends[1:]
    )], 2)  # fmt: skip
    assert clocks is not None
    own, other = clocks
    assert own.on_rank0_s(np.array([0.0, 1050.0, 2000.0])) == pytest.approx([0.0, 1050.0, 2000.0])
    assert own.drift_s == 0
    assert other.drift_s == pytest.approx(-0.05)
    assert other.on_rank0_s(np.array([5000.0, 5050.025, 5100.05])) == pytest.approx([1000, 1050, 1100])
    # Beyond the barriers nothing is known of its speed.
    assert other.on_rank0_s(np.array([4000.0, 6000.0])) == pytest.approx([0.0, 1999.95])


def test_without_the_closing_barrier_of_one_rank_clocks_are_taken_to_run_alike() -> None:
    clocks = node_clocks([end(0, "a", 1.0, closing_s=11.0), end(1, "b", 50.0)], 1)
    assert clocks is not None
    assert [clock.drift_s for clock in clocks] == [None, None]
    assert clocks[1].on_rank0_s(np.array([50.0, 60.0])) == pytest.approx([1.0, 11.0])


def test_without_the_barrier_of_one_rank_there_are_none() -> None:
    assert node_clocks([end(0, "a", 1.0), end(1, "b", None)], 1) is None
    assert node_clocks([end(0, "a", 1.0), end(1, "b", 1.0, None)], 1) is None
    assert node_clocks([], 1) is None


def test_a_block_of_ranks_on_two_nodes_has_no_meters_name() -> None:
    clocks = node_clocks([end(0, "a", 1.0), end(1, "b", 1.0)], 2)
    assert clocks is not None
    assert [clock.node for clock in clocks] == ["a, b"]


@given(starts_s=st.lists(st.floats(0, 1e7), min_size=1, max_size=5), moment_s=st.floats(0, 1e6))
def test_offsets_take_every_nodes_barrier_to_rank_0s(starts_s: list[float], moment_s: float) -> None:
    ends = [end(rank, f"host{rank}", moment_s + start_s) for rank, start_s in enumerate(starts_s)]
    clocks = node_clocks(ends, 1)
    assert clocks is not None
    for rank, clock in enumerate(clocks):
        assert (ends[rank].barrier_s or 0.0) + clock.offset_s == pytest.approx(ends[0].barrier_s, abs=1e-6)
