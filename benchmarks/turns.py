"""Processes that stay loaded and work in turns: each waits for a line of JSON and answers with one.

One that waits sleeps, so that only one computes at a time. This file imports nothing but the standard
library: the other side of a comparison may run it in an environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

#: What one asks another, and what comes back.
Message = dict[str, Any]


class Worker:
    """A process on the other end of two pipes.

    Attributes:
        name: as it is called in messages.
    """

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | dict(environment),
        )

    def tell(self, task: str, **what: object) -> None:
        """Hand over a task without waiting for its end; `hear` waits."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `hear` says that it has ended
            print(json.dumps({"task": task, **what}), file=self._process.stdin, flush=True)

    def hear(self) -> Message:
        """What came of the task.

        Raises:
            RuntimeError: it failed, or the process has ended.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended with {self._process.wait()}; see its words above")
        answer: Message = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, task: str, **what: object) -> Message:
        """Hand over a task and wait for what comes of it."""
        self.tell(task, **what)
        return self.hear()

    def close(self) -> None:
        """Let it end, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def worker(name: str, words: Sequence[str], environment: Mapping[str, str]) -> Iterator[Worker]:
    """A process for as long as this is entered."""
    started = Worker(name, words, environment)
    try:
        yield started
    finally:
        started.close()


def serve(tasks: Mapping[str, Callable[..., Message]]) -> None:
    """Answer tasks from standard input by name until it ends.

    What libraries print goes to standard error: standard output is for answers alone.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        what = json.loads(line)
        try:
            answer = tasks[what.pop("task")](**what)
        except Exception as problem:
            answer = {"error": f"{type(problem).__name__}: {problem}"}
        print(json.dumps(answer), file=answers)
