"""The log of a rank: one file for each start of a cell, which says at its top whose it is.

Two starts of one cell, on nodes that Slurm has parted, name their logs alike. The later one's takes the name,
and neither hears the other. A log that is lost, as by a file system that takes such a file away from under
the other node, ends no cell.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from shardwatt.run.step import own_file


def redirect_output(log: Path, work: Path) -> None:
    """Send everything that this process prints, libraries included, to a log of its own.

    Args:
        log: where; what is there gives way. If it cannot be written, words go where they went before.
        work: the work folder of the cell's start.
    """
    try:
        with own_file(log) as file:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                os.dup2(file.fileno(), stream.fileno())
    except OSError as problem:
        with contextlib.suppress(OSError):
            print(f"no log of this rank: {problem}", file=sys.stderr, flush=True)
        return
    say(_top(work))


def say(words: str) -> None:
    """Print, where that is possible."""
    with contextlib.suppress(OSError):
        print(words, flush=True)


def said_by_rank(log: Path, work: Path) -> str:
    """All that a rank of this start has printed; nothing if the log is another's, or cannot be read."""
    try:
        said = log.read_text(errors="replace")
    except OSError:
        return ""
    return said if said.partition("\n")[0] == _top(work) else ""


def _top(work: Path) -> str:
    return f"work folder: {work.name}"
