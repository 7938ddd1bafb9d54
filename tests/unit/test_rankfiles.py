"""Guards which files a rank is given on its node's disk: those that its slices lie in, and hardly another."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardwatt.architectures import CATALOGUE, Architecture
from shardwatt.engine.weights.slices import Slice, slice_of, whole_shapes
from shardwatt.models import SHARD_FILE, Checkpoint
from shardwatt.rankfiles import files_of_rank


def saved(shards: int) -> Checkpoint:
    names = tuple(SHARD_FILE.format(rank=rank) for rank in range(shards))
    return Checkpoint(Path("/model"), Path("/model/tokenizer.model"), "meta", names)


def numbers(shards: int, rank: int, ranks: int, model: str = "llama-65b") -> list[int]:
    return [int(name.split(".")[1]) for name in files_of_rank(saved(shards), CATALOGUE[model], rank, ranks)]


def test_a_rank_reads_the_saved_shards_that_it_has_a_share_of() -> None:
    assert [numbers(8, rank, 4) for rank in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [numbers(8, rank, 8) for rank in range(8)] == [[rank] for rank in range(8)]
    assert [numbers(8, rank, 16) for rank in range(16)] == [[rank // 2] for rank in range(16)]
    assert numbers(8, 0, 1) == list(range(8))
    assert numbers(1, 31, 32) == [0]


def test_counts_that_do_not_divide_each_other_share_a_file() -> None:
    """LLaMA 30B has 52 heads: 13 and 4 are both allowed."""
    assert [numbers(4, rank, 13, "llama-30b") for rank in range(13)][3:5] == [[0, 1], [1]]
    assert numbers(13, 1, 4, "llama-30b") == [3, 4, 5, 6]


def test_whole_tensors_lie_in_any_file() -> None:
    whole = Checkpoint(Path("/model"), Path("/model/tokenizer.json"), "huggingface", ("a", "b"))
    assert files_of_rank(whole, CATALOGUE["tinyllama-1.1b"], 3, 4) == ("a", "b")


#: Several with fewer key and value heads than shards.
SHAPES = [
    Architecture(64, 1, 16, 16, 96, 480),
    Architecture(64, 1, 16, 4, 96, 480),
    Architecture(64, 1, 16, 2, 96, 480),
    Architecture(96, 1, 12, 1, 96, 480),
]


def overlap(one: Slice, other: Slice) -> bool:
    rows = range(max(one.rows.start, other.rows.start), min(one.rows.stop, other.rows.stop))
    columns = range(max(one.columns.start, other.columns.start), min(one.columns.stop, other.columns.stop))
    return bool(rows) and bool(columns)


@settings(deadline=None)
@given(st.sampled_from(SHAPES), st.data())
def test_every_slice_of_a_rank_lies_in_its_files(shape: Architecture, data: st.DataObject) -> None:
    counts = shape.allowed_shards()
    shards, ranks = data.draw(st.sampled_from(counts)), data.draw(st.sampled_from(counts))
    rank = data.draw(st.integers(0, ranks - 1))
    own = {int(name.split(".")[1]) for name in files_of_rank(saved(shards), shape, rank, ranks)}
    needed = set()
    for name, sizes in whole_shapes(shape).items():
        wanted = slice_of(shape, name, rank, ranks)
        holders = {s for s in range(shards) if overlap(slice_of(shape, name, s, shards), wanted)}
        if len(sizes) == 2:
            # Of shards that hold the same head any one will do.
            assert holders <= own, name
            needed |= holders
    assert own == needed


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16, 32])
def test_all_ranks_together_are_given_every_file(ranks: int) -> None:
    given_files = {number for rank in range(ranks) for number in numbers(8, rank, ranks)}
    assert given_files == set(range(8))
