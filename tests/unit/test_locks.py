"""Guards what several processes write: only one at a time, and none is stopped where there are no locks."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shardwatt.locks import alone

SECOND = """
import logging, os, sys
from pathlib import Path
from shardwatt.locks import alone
if len(sys.argv) > 2:
    os.setuid(int(sys.argv[2]))
logging.basicConfig(stream=sys.stdout, format="%(message)s", level="INFO")
with alone(Path(sys.argv[1])):
    print("in", flush=True)
"""


def start_second(lock: Path, user: int | None = None) -> subprocess.Popen[str]:
    words = [str(lock), *([] if user is None else [str(user)])]
    return subprocess.Popen(
        [sys.executable, "-c", SECOND, *words], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )


def test_a_second_process_says_that_it_waits_and_comes_in_when_the_first_is_out(tmp_path: Path) -> None:
    lock = tmp_path / "commit.lock"
    with alone(lock):
        second = start_second(lock)
        assert second.stdout is not None
        assert second.stdout.readline() == f"waiting for another process, which holds {lock}\n"
        assert second.poll() is None
    assert second.communicate(timeout=120)[0] == "in\n"


def test_one_that_failed_keeps_nobody_out(tmp_path: Path) -> None:
    lock = tmp_path / "commit.lock"
    with pytest.raises(ValueError, match="inside"), alone(lock):
        raise ValueError("inside")
    assert start_second(lock).communicate(timeout=120)[0] == "in\n"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_users_lock_is_waited_for() -> None:
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        lock = Path(name) / ".shards-1.lock"
        with alone(lock):
            second = start_second(lock, user=65534)
            assert second.stdout is not None
            assert second.stdout.readline() == f"waiting for another process, which holds {lock}\n"
        assert second.communicate(timeout=120)[0] == "in\n"


def test_a_folder_that_was_tidied_away_is_made_again(tmp_path: Path) -> None:
    """Logs may be removed while a cell runs: that is not to cost its result."""
    with alone(tmp_path / "logs" / "cell" / "commit.lock"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_it_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuse(stream: object, how: int) -> None:
        raise OSError(number, "as some network file systems say")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone(tmp_path / "commit.lock"):
        assert "commit.lock: the file system has no locks; going on without" in caplog.text


def test_any_other_trouble_with_the_lock_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(stream: object, how: int) -> None:
        raise OSError(errno.EIO, "a broken disk")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="a broken disk"), alone(tmp_path / "commit.lock"):
        pytest.fail("it went on")
