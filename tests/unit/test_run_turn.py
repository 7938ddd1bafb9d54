"""Guards the machine: one cell at a time, who waits is told for whom, and a signal ends the wait."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shardwatt.errors import CellFailure, Reason
from shardwatt.run.signals import Ended
from shardwatt.run.turn import Turn

#: Takes its turn, and keeps it until its standard input ends.
PROGRAM = """
import logging, sys
from shardwatt.run.signals import Ended, EndingSignals
from shardwatt.run.turn import Turn
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
with EndingSignals() as signals, Turn() as turn:
    try:
        waited = turn.take("process 4711, which runs a cell", signals.check)
    except Ended as problem:
        sys.exit(f"ended by {problem}")
    print("waited" if waited else "at once", flush=True)
    sys.stdin.read()
"""
TAKEN = "waiting: this machine is taken by process 4711, which runs a cell\n"


@pytest.fixture
def tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of those that it starts."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_the_second_waits_for_the_first_and_says_so_once(tmp: Path) -> None:
    first = start()
    assert line_of(first) == "at once\n"
    second = start()
    assert line_of(second) == TAKEN
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(2.5)
    assert first.communicate("", timeout=600)[1] == ""
    assert line_of(second) == "waited\n"
    second.communicate("", timeout=600)


def test_a_killed_ones_turn_is_over(tmp: Path) -> None:
    first = start()
    assert line_of(first) == "at once\n"
    first.kill()
    first.communicate()
    with Turn() as turn:
        assert not turn.take("this", lambda: None)


def test_a_signal_ends_the_wait(tmp: Path) -> None:
    with Turn() as turn:
        turn.take("process 4711, which runs a cell", lambda: None)
        second = start()
        assert line_of(second) == TAKEN
        second.send_signal(signal.SIGTERM)
        assert second.communicate(timeout=600)[1] == "ended by SIGTERM\n"


def test_what_a_look_raises_ends_the_wait_and_nothing_is_taken(tmp: Path) -> None:
    def ended() -> None:
        raise Ended("SIGTERM")

    with Turn() as first, Turn() as second:
        with pytest.raises(Ended):
            first.take("this", ended)
        assert not second.take("this", lambda: None)


def test_cells_of_one_job_keep_the_turn_and_each_is_named(tmp: Path) -> None:
    with Turn() as turn:
        turn.take("the first cell, whose name is long", lambda: None)
        assert not turn.take("process 4711, which runs a cell", lambda: None)
        second = start()
        assert line_of(second) == TAKEN
        second.kill()
        second.communicate()


def test_a_turn_that_cannot_be_told_of_is_taken_all_the_same(tmp: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Any byte in a file: the write fails as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with Turn() as turn:
            assert not turn.take("process 4711, which runs a cell", lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_without_locks_it_goes_on_and_says_so(
    tmp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with Turn() as turn:
        assert not turn.take("this", lambda: None)
    assert "the file system has no locks" in caplog.text


def test_a_folder_that_others_can_enter_is_refused(tmp: Path) -> None:
    mine = tmp / f"shardwatt-{os.getuid()}"
    mine.mkdir()
    mine.chmod(0o755)
    with Turn() as turn, pytest.raises(CellFailure, match=r"open to others \(mode 0755\).*TMPDIR") as raised:
        turn.take("this", lambda: None)
    assert raised.value.reason is Reason.STORAGE


def test_machines_that_share_a_folder_for_temporary_files_do_not_wait_for_each_other(
    tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start()
    assert line_of(first) == "at once\n"
    monkeypatch.setattr(platform, "node", lambda: "another-node")
    looks = iter([None])
    with Turn() as turn:
        assert not turn.take("this", lambda: next(looks))
    first.communicate("", timeout=600)
