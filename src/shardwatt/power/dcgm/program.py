"""The program `dcgmi`: one call of it, within a time, and what its failures mean."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Callable, Sequence
from typing import TypeVar

from shardwatt.power.dcgm.text import DcgmError, quote, status_of
from shardwatt.readings import Status

#: Longest time in s that one call of a clean-up takes: Slurm does not wait long for a job it ends.
_CLEAN_UP_TIMEOUT_S = 5.0

Kind = TypeVar("Kind")

_NOT_THERE = re.compile(r"group is not found|was not found", re.I)


class Dcgmi:
    """`dcgmi` on this node, in English whatever the node speaks.

    Args:
        command: the program's name or path.
        timeout_s: longest time in s for one call.

    Attributes:
        node: this host.
        environment: of each call.
        complaints: what failed in `attempt`.
    """

    def __init__(self, command: str, timeout_s: float) -> None:
        self.node = socket.gethostname()
        self.environment = os.environ | {"LC_ALL": "C"}
        self.complaints: list[str] = []
        self._command = command
        self._timeout_s = timeout_s
        self._hangs = False

    def words(self, *words: str) -> list[str]:
        """The words of a call, the program first."""
        return [self._command, *words]

    def ask(self, *words: str) -> str:
        """What a call prints.

        Raises:
            DcgmError: it fails, or does not end in time.
        """
        run = self.run(*words)
        self.check(run)
        return run.stdout

    def attempt(self, *words: str) -> None:
        """Make a call of a clean-up; what fails is kept in `complaints`. What is not there needs none."""
        if self._hangs:
            self.complaints.append(f"not run, since dcgmi hangs: dcgmi {' '.join(words)}")
            return
        try:
            run = self._run(words, min(self._timeout_s, _CLEAN_UP_TIMEOUT_S))
            if not _NOT_THERE.search(run.stdout):
                self.check(run)
        except DcgmError as problem:
            self.complaints.append(problem.message)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Make a call, whatever it says.

        Raises:
            DcgmError: the program is missing, or does not end in time.
        """
        return self._run(words, self._timeout_s)

    def check(self, run: subprocess.CompletedProcess[str]) -> None:
        """Make sure that a call went well.

        Raises:
            DcgmError: it did not.
        """
        # Errors go to standard output, and not all that fails ends with a code.
        if run.returncode == 0 and not re.search(r"^Error\b", run.stdout, re.M):
            return
        said = quote(run.stdout) or f"exit code {run.returncode}"
        if _NOT_THERE.search(said):
            said += (
                "; without a host engine (nv-hostengine) that outlasts its calls, dcgmi forgets everything"
            )
        raise self.error(status_of(said), f"dcgmi {' '.join(run.args[1:])}: {said}")

    def understand(self, parse: Callable[[str], Kind], text: str) -> Kind:
        """What a parser makes of the text of a call.

        Raises:
            DcgmError: the parser's, with this node's name before it.
        """
        try:
            return parse(text)
        except DcgmError as problem:
            raise self.error(problem.status, problem.message) from None

    def error(self, status: Status, message: str) -> DcgmError:
        """An error with this node's name before it."""
        return DcgmError(status, f"{self.node}: {message}")

    def _run(self, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                self.words(*words),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
                # Ctrl-C is for the supervisor, which wants its calls to end.
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            self._hangs = True
            raise self.error(
                Status.UNAVAILABLE,
                f"dcgmi {' '.join(words)}: no answer within {timeout_s:g} s; does its host engine "
                "(nv-hostengine) hang?",
            ) from None
        except FileNotFoundError:
            raise self.error(
                Status.UNAVAILABLE,
                f"no program '{self._command}'; install DCGM, or name it as the site's dcgm.command",
            ) from None
        except OSError as problem:
            raise self.error(Status.UNAVAILABLE, f"{self._command}: {problem.strerror}") from None
