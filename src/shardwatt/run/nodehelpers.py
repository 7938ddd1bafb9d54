"""Programs beside the ranks of a cell, one on each node, that say by a file that they are ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardwatt.errors import EXIT_CONFIGURATION, CellFailure, Reason
from shardwatt.layout import is_there
from shardwatt.run.srun import task_exits
from shardwatt.run.step import Step, own_words
from shardwatt.run.workfolder import cannot_write

_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Kind:
    """What helpers are, for messages.

    Attributes:
        name: of one.
        purpose: what a node is to be ready for.
        lost: why a cell fails that loses one.
        loss: what is lost with it.
    """

    name: str
    purpose: str
    lost: Reason
    loss: str


class NodeHelpers:
    """The helpers of a cell's nodes, started together; they are to end when their standard input does.

    Args:
        words: what starts them all.
        kind: what they are.
        work: the cell's work folder.
        nodes: how many there are.
        log: where their complaints go.
        ready: the file by which that of a node, given by number, says that it is ready.

    Raises:
        CellFailure: CONFIGURATION, there is no such program.
    """

    def __init__(
        self,
        words: Sequence[str],
        kind: Kind,
        *,
        work: Path,
        nodes: int,
        log: Path,
        ready: Callable[[Path, int], Path],
    ) -> None:
        self._kind = kind
        self._work = work
        self._nodes = nodes
        self._log = log
        self._ready = ready
        self._step = Step(words, log)

    def await_ready(self, timeout_s: float) -> None:
        """Wait until all are ready; one that has ended well may have been so before.

        Raises:
            CellFailure: as `check` for one that has ended badly; the kind's reason if one is not ready
                within so long, in s.
        """
        deadline_s = time.monotonic() + timeout_s
        while silent := [k for k in range(self._nodes) if not is_there(self._ready(self._work, k))]:
            if self._step.exit_code != 0:
                self.check()
            if time.monotonic() > deadline_s:
                nodes = ", ".join(map(str, silent))
                raise CellFailure(
                    self._kind.lost,
                    f"the {self._kind.name} of node {nodes} of {self._nodes} said nothing within "
                    f"{timeout_s:g} s: does nvidia-smi answer there? See {self._log}, or raise the site's "
                    "start_timeout_s",
                )
            time.sleep(_LOOK_S)

    def check(self) -> None:
        """Make sure that all still run.

        Raises:
            CellFailure: one has ended; CONFIGURATION if that was for an environment line, or too few GPUs;
                STORAGE if it had no space to write into; otherwise the kind's reason, with its node.
        """
        # srun waits for the others.
        for task, known in task_exits(self._step.said()).items():
            how = "how is not known" if known.exit_code is None else f"exit code {known.exit_code}"
            raise self._failure(f"of node {task} ended by itself ({how})", known.exit_code, known.node)
        code = self._step.exit_code
        if code is not None:
            raise self._failure(f"ended by itself with exit code {code}", code, None)

    def _failure(self, how: str, code: int | None, node: str | None) -> CellFailure:
        said = own_words(self._step.said())
        if code == EXIT_CONFIGURATION:
            what = f"a node is not ready for its {self._kind.purpose}: {said}"
            return CellFailure(Reason.CONFIGURATION, what, node=node)
        return cannot_write(self._work) or CellFailure(
            self._kind.lost,
            f"the {self._kind.name} {how}, {self._kind.loss}; see {self._log}"
            + (f": {said}" if said else ""),
            node=node,
        )

    def end(self, ask_s: float) -> bool:
        """End them: ask, wait for so long in s, then kill; whether they ended by themselves."""
        return self._step.end(ask_s)
