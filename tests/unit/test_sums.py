"""Sums that lie beside a checkpoint are compared with its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from checkpoints_tiny import tiny
from shardwatt.engine.reshard import reshard
from shardwatt.engine.sums import sum_problems
from shardwatt.models import Checkpoint


@pytest.fixture
def copy(tmp_path: Path) -> Checkpoint:
    """A copy with its SHA256SUMS."""
    source, architecture = tiny(tmp_path / "source")
    return reshard(source, architecture, tmp_path / "copy", layout="meta", shards=2).checkpoint


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)


def test_a_copy_is_as_it_was_written(copy: Checkpoint) -> None:
    assert sum_problems(copy) == []


def test_no_sums_are_no_problem(tmp_path: Path) -> None:
    assert sum_problems(tiny(tmp_path / "model")[0]) == []


def test_a_flipped_bit_is_found_out(copy: Checkpoint) -> None:
    flip(copy.weight_files[1])
    (problem,) = sum_problems(copy)
    assert problem.startswith(f"{copy.weight_files[1]}: its sum is ")
    assert "SHA256SUMS says" in problem


def test_a_file_that_is_gone_is_named(copy: Checkpoint) -> None:
    copy.tokenizer.unlink()
    (problem,) = sum_problems(copy)
    assert problem.startswith(f"{copy.tokenizer} is not there, and SHA256SUMS lists it")


@pytest.mark.parametrize("mark", [" ", "*"])
def test_metas_own_sums_are_compared(tmp_path: Path, mark: str) -> None:
    checkpoint, _ = tiny(tmp_path / "model", shards=2)
    files = [checkpoint.params, *checkpoint.weight_files]
    lines = [f"{hashlib.md5(path.read_bytes()).hexdigest()} {mark}{path.name}\n" for path in files]
    absent = f"{'0' * 32} {mark}consolidated.02.pth\n"
    (checkpoint.folder / "checklist.chk").write_text("".join([*lines, absent]))
    assert sum_problems(checkpoint) == []
    flip(checkpoint.weight_files[0])
    (problem,) = sum_problems(checkpoint)
    assert str(checkpoint.weight_files[0]) in problem
    assert "checklist.chk says" in problem


def test_files_elsewhere_are_not_looked_at(copy: Checkpoint) -> None:
    list_ = copy.folder / "SHA256SUMS"
    list_.write_text(f"{'0' * 64}  ../source/params.json\n{'0' * 64}  /etc/passwd\n\n" + list_.read_text())
    assert sum_problems(copy) == []


@pytest.mark.parametrize(
    "line", ["SHA256 (params.json) = 00", f"{'0' * 32}  params.json", "x", "\N{SNOWMAN}"]
)
def test_what_is_no_sum_is_told(copy: Checkpoint, line: str) -> None:
    list_ = copy.folder / "SHA256SUMS"
    list_.write_text(f"{list_.read_text()}{line}\n", encoding="utf-8")
    (problem,) = sum_problems(copy)
    assert problem.startswith(f"{list_}: line ")
    assert repr(line) in problem
