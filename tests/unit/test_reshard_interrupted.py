"""A copy that is broken off from outside leaves nothing, or what it leaves goes before the next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_tiny import tiny
from shardwatt.engine.reshard import reshard
from tokenizers_tiny import sentencepiece_model

#: The command, in the midst of whose work a signal comes; its last word is the signal's number.
_SIGNALLED = """
import os, sys
from shardwatt.cli import main
number = int(sys.argv.pop())
def progress(target):
    return lambda done, total: os.kill(os.getpid(), number) if done > total // 3 else None
sys.modules["shardwatt.cli.model"]._progress = progress
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_command_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    checkpoint, _ = tiny(tmp_path / "source", "llama3")
    checkpoint.tokenizer.write_bytes(sentencepiece_model(512))
    words = ("model", "reshard", str(checkpoint.folder), str(tmp_path / "copy"), str(int(number)))
    run = subprocess.run([sys.executable, "-c", _SIGNALLED, *words], capture_output=True, text=True)
    assert run.returncode == 130, run.stderr
    assert "interrupted" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_what_a_killed_copy_leaves_goes_before_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint, architecture = tiny(tmp_path / "source", "llama3")
    checkpoint.tokenizer.write_bytes(sentencepiece_model(512))
    words = ("model", "reshard", str(checkpoint.folder), str(tmp_path / "copy"), str(int(signal.SIGKILL)))
    assert subprocess.run([sys.executable, "-c", _SIGNALLED, *words]).returncode == -signal.SIGKILL
    (left,) = tmp_path.glob(".copy-*")
    reshard(checkpoint, architecture, tmp_path / "copy", layout="meta")
    assert caplog.messages == [f"{left}: left by a process that was killed; removed"]
    assert {path.name for path in tmp_path.iterdir()} == {"source", "copy"}
