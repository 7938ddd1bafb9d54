"""A program beside the supervisor that ends when its standard input does: srun, or a sampler here."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from shardwatt.errors import CellFailure, Reason
from shardwatt.slurm import environment

#: Time in s that a program gets to end once it was told to; Slurm kills what is left with the job.
_KILL_S = 10.0

#: Lines of a program's output that a message quotes.
_QUOTED_LINES = 3


class Step:
    """A running program, srun or another; it sees the end of its standard input when it is to end, or we
    are gone.

    srun passes standard input, and its end, to every task on every node.

    Args:
        words: the program and its arguments.
        log: what it, and tasks without a log of their own, print.

    Raises:
        CellFailure: CONFIGURATION, there is no such program.
    """

    def __init__(self, words: Sequence[str], log: Path) -> None:
        self._output = own_file(log)
        self._said = b""
        self._by_itself: bool | None = None
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                env=environment(),
                # A Ctrl-C at the terminal is the supervisor's to answer.
                start_new_session=True,
            )
        except FileNotFoundError:
            self._output.close()
            raise CellFailure(
                Reason.CONFIGURATION,
                f"{words[0]} is not on PATH; a site with launcher `slurm` runs its cells in Slurm jobs",
            ) from None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, of srun the highest of its tasks'; None while it runs."""
        return self._process.poll()

    def said(self) -> str:
        """All that it and its tasks printed; what was known before, where the log is lost."""
        if not self._output.closed:
            descriptor = self._output.fileno()
            # A network file system may take it away: that ends no cell, least of all one that is measured.
            with contextlib.suppress(OSError):
                # By its position: the program writes at the one that belongs to the open file.
                self._said = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        return self._said.decode(errors="replace").strip()

    def end(self, ask_s: float) -> bool:
        """End it: close its standard input, wait for so long, then kill it; whether it ended by itself.

        Asked again, it says what it said first.
        """
        if self._by_itself is not None:
            return self._by_itself
        by_itself = self._by_itself = self._end(ask_s)
        try:
            self.said()
        finally:
            with contextlib.suppress(OSError):
                self._output.close()
        return by_itself

    def _end(self, ask_s: float) -> bool:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(ask_s)
            return True
        except subprocess.TimeoutExpired:
            pass
        # srun kills its tasks when it is told to end.
        self._process.terminate()
        try:
            self._process.wait(_KILL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return False


def own_file(log: Path) -> BinaryIO:
    """A new file in the place of `log`: another supervisor of the same cell may begin its own there, and
    neither is to hear the other's program.

    Raises:
        OSError: the folder cannot be written.
    """
    new = log.with_name(f".{log.name}.{secrets.token_hex(8)}")
    stream = new.open("x+b")
    try:
        new.replace(log)
    except BaseException:
        stream.close()
        new.unlink(missing_ok=True)
        raise
    return stream


def own_words(said: str) -> str:
    """The last lines that a program printed, without srun's news of its tasks."""
    own = [line.strip() for line in said.splitlines() if line.strip() and "srun: " not in line]
    return "; ".join(own[-_QUOTED_LINES:])
