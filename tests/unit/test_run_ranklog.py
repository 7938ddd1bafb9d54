"""Guards ranks' logs: each start's is its own, and one that is lost ends no rank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shardwatt.run.ranklog import said_by_rank

#: Takes a log, and goes on once its standard input ends.
PROGRAM = """
import os, sys
from pathlib import Path
from shardwatt.run.ranklog import redirect_output, say
print("before", flush=True)
redirect_output(Path(sys.argv[1]), Path(sys.argv[2]))
say(sys.argv[3])
print("ready", file=sys.stderr, flush=True)
if sys.argv[4:]:
    os.close(1)
    say("in vain")
"""


def run(log: Path, work: str, words: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(log), work, words, *more],
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_each_start_hears_its_own_ranks_alone(tmp_path: Path) -> None:
    log, first, second = tmp_path / "rank-0.log", tmp_path / "first", tmp_path / "second"
    done = run(log, str(first), "one")
    assert (done.returncode, done.stdout) == (0, "before\n")
    assert said_by_rank(log, first) == "work folder: first\none\nready\n"
    with log.open() as still_open:
        run(log, str(second), "two")
        assert "one" in still_open.read()
    assert said_by_rank(log, first) == ""
    assert said_by_rank(log, second) == "work folder: second\ntwo\nready\n"
    assert list(tmp_path.iterdir()) == [log]


def test_a_rank_goes_on_when_its_log_is_lost_or_cannot_be_made(tmp_path: Path) -> None:
    lost = run(tmp_path / "rank-0.log", "work", "one", "lose it")
    assert (lost.returncode, lost.stderr) == (0, "")
    none = run(tmp_path / "no folder" / "rank-0.log", "work", "one")
    assert none.returncode == 0
    assert none.stdout == "before\none\n"
    assert "no log of this rank" in none.stderr
    assert said_by_rank(tmp_path / "no folder" / "rank-0.log", Path("work")) == ""
