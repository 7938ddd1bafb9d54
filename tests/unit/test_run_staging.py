"""Guards copies of a checkpoint on a node's own disk: whole, renewed with their original, one copy a file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardwatt.models import Checkpoint
from shardwatt.run.staging import staged


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    folder = tmp_path / "models" / "tiny"
    folder.mkdir(parents=True)
    for rank in range(2):
        (folder / f"consolidated.{rank:02d}.pth").write_bytes(bytes([rank]) * 1000)
    return Checkpoint(folder, folder / "tokenizer.model", 2)


def test_a_rank_reads_a_copy_of_its_own_shard_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = staged(checkpoint, tmp_path / "disk", 1)
    assert copy.shard_files[1].read_bytes() == bytes([1]) * 1000
    assert not copy.shard_files[0].exists()
    assert copy.tokenizer == checkpoint.tokenizer


def test_a_copy_that_is_there_is_not_made_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = staged(checkpoint, tmp_path / "disk", 0).shard_files[0]
    before = copy.stat().st_ino
    assert staged(checkpoint, tmp_path / "disk", 0).shard_files[0].stat().st_ino == before


def test_a_changed_original_is_copied_again(checkpoint: Checkpoint, tmp_path: Path) -> None:
    staged(checkpoint, tmp_path / "disk", 0)
    original = checkpoint.shard_files[0]
    original.write_bytes(b"x" * 1000)
    os.utime(original, (1, 1))
    assert staged(checkpoint, tmp_path / "disk", 0).shard_files[0].read_bytes() == b"x" * 1000


def test_models_of_one_name_in_two_folders_are_two(checkpoint: Checkpoint, tmp_path: Path) -> None:
    other = tmp_path / "other" / "tiny"
    other.mkdir(parents=True)
    (other / "consolidated.00.pth").write_bytes(b"other")
    first = staged(checkpoint, tmp_path / "disk", 0)
    second = staged(Checkpoint(other, other / "tokenizer.model", 1), tmp_path / "disk", 0)
    assert first.folder != second.folder


def test_a_copy_that_failed_leaves_nothing_under_its_name(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.shard_files[0].unlink()
    with pytest.raises(FileNotFoundError):
        staged(checkpoint, tmp_path / "disk", 0)
    assert not [path for path in (tmp_path / "disk").rglob("*") if path.suffix in (".pth", ".part")]
