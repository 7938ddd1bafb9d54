"""Guards copies of a checkpoint on a node's own disk: whole, renewed with their original, one copy a file."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from shardwatt.architectures import CATALOGUE
from shardwatt.checkpoints import INDEX_FILE
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import SHARD_FILE, Checkpoint
from shardwatt.run.staging import staged

SHAPE = CATALOGUE["llama-65b"]


def make(folder: Path, shards: int = 4) -> Checkpoint:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text("{}")
    names = tuple(SHARD_FILE.format(rank=rank) for rank in range(shards))
    for rank, name in enumerate(names):
        (folder / name).write_bytes(bytes([rank]) * 1000)
    return Checkpoint(folder, folder / "tokenizer.model", "meta", names)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return make(tmp_path / "models" / "tiny")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


def copied(checkpoint: Checkpoint) -> list[int]:
    """Numbers of the weight files that are copies, and no links."""
    return [n for n, path in enumerate(checkpoint.weight_files) if path.exists() and not path.is_symlink()]


def test_a_rank_reads_copies_of_the_shards_that_its_slices_lie_in(checkpoint: Checkpoint, disk: Path) -> None:
    copy = staged(checkpoint, SHAPE, disk, rank=1, ranks=2)
    assert copied(copy) == [2, 3]
    assert copy.tokenizer == checkpoint.tokenizer
    assert copy.folder.is_relative_to(disk)


def test_what_it_only_looks_at_is_read_where_it_lies(checkpoint: Checkpoint, disk: Path) -> None:
    """A checkpoint is checked as a whole, so every file must be there."""
    copy = staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    assert copied(copy) == [0]
    contents = [path.read_bytes() for path in copy.weight_files]
    assert contents == [path.read_bytes() for path in checkpoint.weight_files]
    assert copy.weight_files[3].resolve() == checkpoint.weight_files[3].resolve()
    assert copy.params.read_text() == "{}"


def test_links_that_other_ranks_made_give_way_to_copies_and_copies_stay(
    checkpoint: Checkpoint, disk: Path
) -> None:
    staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    second = staged(checkpoint, SHAPE, disk, rank=1, ranks=4)
    assert copied(second) == [0, 1]
    assert staged(checkpoint, SHAPE, disk, rank=0, ranks=4) == second
    assert copied(second) == [0, 1]


def test_ranks_of_a_node_at_once_end_with_one_whole_copy_of_each(checkpoint: Checkpoint, disk: Path) -> None:
    threads = [
        threading.Thread(target=staged, args=(checkpoint, SHAPE, disk), kwargs={"rank": rank, "ranks": 8})
        for rank in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    copy = staged(checkpoint, SHAPE, disk, rank=0, ranks=8)
    assert copied(copy) == [0, 1, 2, 3]
    assert [path.read_bytes() for path in copy.weight_files] == [bytes([n]) * 1000 for n in range(4)]


def test_hugging_faces_files_are_all_copied_and_their_index_is_found(tmp_path: Path, disk: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("config.json", INDEX_FILE, "a.safetensors", "b.safetensors"):
        (folder / name).write_text(name)
    whole = Checkpoint(folder, folder / "tokenizer.json", "huggingface", ("a.safetensors", "b.safetensors"))
    copy = staged(whole, SHAPE, disk, rank=3, ranks=4)
    assert copied(copy) == [0, 1]
    assert copy.params.read_text() == "config.json"
    assert (copy.folder / INDEX_FILE).read_text() == INDEX_FILE


def test_a_copy_that_is_there_is_not_made_again(checkpoint: Checkpoint, disk: Path) -> None:
    copy = staged(checkpoint, SHAPE, disk, rank=0, ranks=4).weight_files[0]
    before = copy.stat().st_ino
    assert staged(checkpoint, SHAPE, disk, rank=0, ranks=4).weight_files[0].stat().st_ino == before


def test_a_changed_original_is_copied_again(checkpoint: Checkpoint, disk: Path) -> None:
    staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    original = checkpoint.weight_files[0]
    original.write_bytes(b"x" * 1000)
    os.utime(original, (1, 1))
    copy = staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    assert copy.weight_files[0].read_bytes() == b"x" * 1000
    assert copied(copy) == [0]


def test_an_old_copy_is_not_looked_at_once_its_original_has_changed(
    checkpoint: Checkpoint, disk: Path
) -> None:
    staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    original = checkpoint.weight_files[0]
    original.write_bytes(b"new" * 1000)
    other = staged(checkpoint, SHAPE, disk, rank=1, ranks=4)
    assert other.weight_files[0].read_bytes() == b"new" * 1000
    assert copied(other) == [1]


def test_models_of_one_name_in_two_folders_are_two(
    checkpoint: Checkpoint, tmp_path: Path, disk: Path
) -> None:
    other = make(tmp_path / "other" / "tiny", 1)
    first = staged(checkpoint, SHAPE, disk, rank=0, ranks=1)
    second = staged(other, SHAPE, disk, rank=0, ranks=1)
    assert first.folder != second.folder


def test_a_copy_that_failed_leaves_nothing_under_its_name(checkpoint: Checkpoint, disk: Path) -> None:
    checkpoint.weight_files[0].unlink()
    with pytest.raises(FileNotFoundError):
        staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    assert not [path for path in disk.rglob("*") if path.suffix in (".pth", ".part")]


def mine(disk: Path) -> Path:
    """Where this user's copies go."""
    return disk / f"shardwatt-{os.getuid()}"


def make_open(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)


def test_copies_are_for_their_owner_alone(checkpoint: Checkpoint, disk: Path) -> None:
    copy = staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    assert [path.stat().st_mode & 0o777 for path in (copy.folder, mine(disk))] == [0o700, 0o700]


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: make_open(path, 0o750), r"is open to others \(mode 0750\)"),
        (lambda path: make_open(path, 0o702), r"is open to others \(mode 0702\)"),
        (lambda path: path.symlink_to(path.parent), "is no folder, or a link to one"),
        (lambda path: path.symlink_to("nowhere"), "is no folder, or a link to one"),
        (lambda path: path.touch(), "is no folder, or a link to one"),
    ],
)
def test_a_folder_that_others_may_change_is_refused(
    checkpoint: Checkpoint, disk: Path, harm: Callable[[Path], object], words: str
) -> None:
    disk.mkdir()
    harm(mine(disk))
    with pytest.raises(CellFailure, match=f"{mine(disk)} {words}; .*remove it") as caught:
        staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    assert caught.value.reason is Reason.STORAGE
    assert not list(disk.rglob("*.pth"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_folder_of_another_user_is_refused(checkpoint: Checkpoint, disk: Path) -> None:
    mine(disk).mkdir(mode=0o700, parents=True)
    os.chown(mine(disk), 12345, -1)
    with pytest.raises(CellFailure, match="belongs to another user"):
        staged(checkpoint, SHAPE, disk, rank=0, ranks=4)


@pytest.mark.parametrize("change", [b"x" * 1000, b"longer" * 1000, b""])
def test_an_original_that_changes_while_it_is_copied_is_not_taken(
    checkpoint: Checkpoint, disk: Path, monkeypatch: pytest.MonkeyPatch, change: bytes
) -> None:
    original = checkpoint.weight_files[0]
    os.utime(original, ns=(1, 1))
    really = shutil.copyfileobj

    def copy_and_change(source: IO[bytes], target: IO[bytes], length: int) -> None:
        really(source, target, length)
        original.write_bytes(change)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", copy_and_change)
        with pytest.raises(CellFailure, match="changed while it was copied") as caught:
            staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    assert caught.value.reason is Reason.STORAGE
    assert not [path for path in disk.rglob("*") if path.suffix in (".pth", ".part")]
    assert staged(checkpoint, SHAPE, disk, rank=0, ranks=4).weight_files[0].read_bytes() == change


def test_too_little_space_is_known_before_anything_is_copied(
    checkpoint: Checkpoint, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = shutil.disk_usage(checkpoint.folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: really._replace(free=999))
    words = r"has 0\.0 MB of space, and consolidated\.00\.pth takes 0\.0 MB; free some"
    with pytest.raises(CellFailure, match=words) as caught:
        staged(checkpoint, SHAPE, disk, rank=0, ranks=4)
    assert caught.value.reason is Reason.STORAGE
    assert not [path for path in disk.rglob("*") if path.suffix in (".pth", ".part")]
