"""Programs beside the ranks of a cell, one on each node, that say by a file that they are ready."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from shardwatt.errors import EXIT_CONFIGURATION, CellFailure, Reason
from shardwatt.jobshape import JobShape
from shardwatt.layout import is_there
from shardwatt.run.srun import node_words, task_exits, with_environment
from shardwatt.run.step import Step, own_words
from shardwatt.run.workfolder import cannot_write
from shardwatt.site import Site

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Kind:
    """What helpers are, for messages.

    Attributes:
        name: of one.
        purpose: what a node is to be ready for.
        lost: why a cell fails that loses one.
        loss: what is lost with it.
        ready: the file in a work folder by which that of a node, given by number, says that it is ready.
        end_timeout_s: longest time in s from when they are to end until they have.
    """

    name: str
    purpose: str
    lost: Reason
    loss: str
    ready: Callable[[Path, int], Path]
    end_timeout_s: float


class NodeHelpers(ABC):
    """The helpers of a cell's nodes while this is entered; they are to end when their standard input does.

    Args:
        kind: what they are.
        words: what starts them all; none: there are no helpers.
        work: the cell's work folder.
        nodes: how many there are.
        log: where their complaints go.
        start_timeout_s: longest time in s until all are ready.
    """

    def __init__(
        self,
        kind: Kind,
        words: Sequence[str],
        work: Path,
        nodes: int,
        log: Path,
        *,
        start_timeout_s: float,
    ) -> None:
        self._kind = kind
        self._words = words
        self._work = work
        self._nodes = nodes
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._step: Step | None = None

    def __enter__(self) -> Self:
        """Start them and wait until all are ready.

        Raises:
            CellFailure: as `check` for one that has ended badly; the kind's reason if one is not ready in
                time; CONFIGURATION, there is no such program.
        """
        if self._words:
            try:
                self._step = Step(self._words, self._log)
                self._await_ready()
                self._take_up()
            except BaseException:
                self._stop()
                raise
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._stop()

    @abstractmethod
    def _take_up(self) -> None:
        """Take up what they have said, now that all are ready."""

    def _await_ready(self) -> None:
        """Wait until all are ready; one that has ended well may have been so before."""
        assert self._step is not None, "before it was started"
        deadline_s = time.monotonic() + self._start_timeout_s
        while silent := [k for k in range(self._nodes) if not is_there(self._kind.ready(self._work, k))]:
            if self._step.exit_code != 0:
                # Also of a kind that may end early, once all have been ready.
                NodeHelpers.check(self)
            if time.monotonic() > deadline_s:
                nodes = ", ".join(map(str, silent))
                raise CellFailure(
                    self._kind.lost,
                    f"the {self._kind.name} of node {nodes} of {self._nodes} said nothing within "
                    f"{self._start_timeout_s:g} s: does nvidia-smi answer there? See {self._log}, or raise "
                    "the site's start_timeout_s",
                )
            time.sleep(_LOOK_S)

    def check(self) -> None:
        """Make sure that all still run.

        Raises:
            CellFailure: one has ended; CONFIGURATION if that was for an environment line, or too few GPUs;
                STORAGE if it had no space to write into; otherwise the kind's reason, with its node.
        """
        if self._step is None:
            return
        # srun waits for the others.
        for task, known in task_exits(self._step.said()).items():
            how = "how is not known" if known.exit_code is None else f"exit code {known.exit_code}"
            raise self._failure(
                self._step, f"of node {task} ended by itself ({how})", known.exit_code, known.node
            )
        code = self._step.exit_code
        if code is not None:
            raise self._failure(self._step, f"ended by itself with exit code {code}", code, None)

    def _failure(self, step: Step, how: str, code: int | None, node: str | None) -> CellFailure:
        if code == EXIT_CONFIGURATION:
            # srun may tell of an end before the last words that came with it: at its own all are there.
            step.end(self._kind.end_timeout_s)
            what = f"a node is not ready for its {self._kind.purpose}: {own_words(step.said())}"
            return CellFailure(Reason.CONFIGURATION, what, node=node)
        said = own_words(step.said())
        return cannot_write(self._work) or CellFailure(
            self._kind.lost,
            f"the {self._kind.name} {how}, {self._kind.loss}; see {self._log}"
            + (f": {said}" if said else ""),
            node=node,
        )

    def _stop(self) -> bool:
        """End them, if they run: ask, wait, then kill; whether they ended by themselves."""
        return self._step is None or self._step.end(self._kind.end_timeout_s)


def helper_words(site: Site, gpu: str, shape: JobShape, script: Path, program: Sequence[str]) -> list[str]:
    """What starts a helper on each node of a cell.

    Args:
        site: where it runs.
        gpu: the site's GPU type.
        shape: nodes, and ranks on each.
        script: file for the type's environment lines, which every node reads.
        program: Python's arguments.
    """
    if site.launcher == "local":
        return [sys.executable, *program]
    return [*node_words(shape), *with_environment(site.gpus[gpu].environment, script, program)]
