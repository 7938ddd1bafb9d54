"""A copy that is broken off from outside leaves nothing, or what it leaves is named by the next."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_tiny import tiny
from shardwatt.engine.reshard import reshard, unfinished_copies
from tokenizers_tiny import sentencepiece_model


def test_what_killed_copies_left_is_named_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    assert unfinished_copies(target) == unfinished_copies(tmp_path / "no" / "copy") == []
    for name in (".copy-abc_0123/made", ".copy-abc_0123.old/made", ".copy-backup12/a", "copy-abc_0123/made"):
        (tmp_path / name).mkdir(parents=True)
    checkpoint, architecture = tiny(tmp_path / "source")
    seen: list[list[Path]] = []
    reshard(
        *(checkpoint, architecture, target),
        layout="meta",
        progress=lambda done, total: seen.append(unfinished_copies(target)),
    )
    # Those that are being written too: from elsewhere, the two look alike.
    assert len(seen[0]) == 2
    assert unfinished_copies(target) == [tmp_path / ".copy-abc_0123"]


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
