"""What processes leave that are killed while they make a checkpoint goes before the next is made."""

from __future__ import annotations

import fcntl
import logging
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import engine_tiny
from shardwatt.engine.halfmade import REPLACED, half_made, remove_abandoned

#: Makes a target half, and is killed.
_KILLED = """
import os, signal, sys
from pathlib import Path
from shardwatt.engine.halfmade import half_made
with half_made(Path(sys.argv[1])) as made:
    (made / "weights").write_bytes(bytes(4096))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def leave(target: Path) -> Path:
    """The folder that a killed maker has left beside a target."""
    before = set(target.parent.iterdir())
    run = subprocess.run([sys.executable, "-c", _KILLED, str(target)])
    assert run.returncode == -signal.SIGKILL
    (left,) = set(target.parent.iterdir()) - before
    assert (left / "made" / "weights").stat().st_size == 4096
    return left


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "shardwatt")
    return caplog


def test_what_a_killed_maker_left_is_removed_and_named(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    left = leave(tmp_path / "shards-1")
    others = leave(tmp_path / "shards-2")
    engine_tiny.make(tmp_path / "shards-1")
    assert said.messages == [f"{left}: left by a process that was killed; removed"]
    assert {path.name for path in tmp_path.iterdir()} == {"shards-1", others.name}


def test_what_was_replaced_goes_too_where_its_removal_was_cut_short(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    left = leave(tmp_path / "copy")
    (left / "made").rename(left / REPLACED)
    remove_abandoned(tmp_path / "copy")
    assert said.messages == [f"{left}: left by a process that was killed; removed"]
    unmarked = leave(tmp_path / "copy")
    (unmarked / "made").rename(unmarked / REPLACED)
    (unmarked / "maker").unlink()
    remove_abandoned(tmp_path / "copy")
    assert str(unmarked) in said.messages[1]


def test_what_is_being_made_stays(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    target = tmp_path / "copy"
    with half_made(target) as made:
        remove_abandoned(target)
        assert said.messages == [f"{made.parent}: another process makes copy there now"]
        made.rename(target)
    assert list(tmp_path.iterdir()) == [target]


def test_of_another_node_and_without_a_mark_it_is_named_alone(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    elsewhere, unmarked = leave(tmp_path / "copy"), leave(tmp_path / "copy")
    (elsewhere / "maker").write_text("another-node")
    (unmarked / "maker").unlink()
    remove_abandoned(tmp_path / "copy")
    assert sorted(said.messages) == sorted(
        f"{left}: left by a process that was killed, or another node makes copy there now; remove it if none "
        "does"
        for left in (elsewhere, unmarked)
    )
    assert set(tmp_path.iterdir()) == {elsewhere, unmarked}


def test_where_there_are_no_locks_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: pytest.LogCaptureFixture
) -> None:
    def refuse(stream: object, how: int) -> None:
        raise OSError("as some network file systems say")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with half_made(tmp_path / "copy") as made:
        remove_abandoned(tmp_path / "copy")
        assert made.is_dir()
    assert "remove it if none does" in said.text


def test_folders_that_only_look_alike_are_nobodys(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    for name in (".copy-abc_0123.old/made", ".copy-backup12/a", "copy-abc_0123/made", ".other-abc_0123/made"):
        (tmp_path / name).mkdir(parents=True)
    remove_abandoned(tmp_path / "copy")
    remove_abandoned(tmp_path / "no" / "copy")
    assert said.messages == []
