"""Steps of a Slurm job: srun's words, its processes, and what it says of its tasks."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from shardwatt.errors import EXIT_CONFIGURATION
from shardwatt.jobshape import JobShape
from shardwatt.run.launch import ASK_S, RankExit
from shardwatt.run.step import Step

#: srun of Slurm 22.05 to 24.05: `srun: error: v100-0: tasks 0-1,3: Exited with exit code 1`.
_TASKS_ENDED = re.compile(
    r"^(?:\d+: )?srun: error: (?P<node>[\w.-]+): tasks? (?P<tasks>[\d,-]+): (?P<how>.+)$", re.M
)
_EXIT_CODE = re.compile(r"exit code (\d+)")

#: How srun names the signals that end tasks: strsignal's words in English.
_SIGNALS = {
    "Killed": -9,
    "Terminated": -15,
    "Aborted": -6,
    "Segmentation fault": -11,
    "Bus error": -7,
    "Floating point exception": -8,
    "Illegal instruction": -4,
}
_OUT_OF_MEMORY = re.compile(r"out of memory|oom-kill|exceeded memory limit", re.I)


#: What the step of the ranks is called in Slurm's accounting.
RANKS_STEP = "shardwatt-ranks"


def rank_words(shape: JobShape, cpus_per_rank: int | None) -> list[str]:
    """srun's words for the ranks of a cell, without the program.

    Every one is given: inside a job most of Slurm's variables are gone, and srun would guess.
    A rank sees all GPUs of its node that are the job's, and takes its own by its number there: NCCL
    reaches its neighbours directly only if it sees them.

    Args:
        shape: nodes and ranks on each.
        cpus_per_rank: None gives the ranks all CPUs of the job, where a number would bind each to as many.
    """
    return [
        "srun",
        f"--job-name={RANKS_STEP}",
        f"--nodes={shape.nodes}",
        f"--ntasks={shape.ranks}",
        f"--ntasks-per-node={shape.ranks_per_node}",
        *([] if cpus_per_rank is None else [f"--cpus-per-task={cpus_per_rank}"]),
        "--distribution=block",
        "--kill-on-bad-exit=1",
        *_SHARED,
    ]


def node_words(shape: JobShape) -> list[str]:
    """srun's words for one helper on each node, beside the ranks, without the program.

    One that ends, well or not, ends no other: slurm.conf may say so of steps (WaitTime, KillOnBadExit), and
    each has something to put in order at its end.
    """
    return [
        "srun",
        f"--nodes={shape.nodes}",
        f"--ntasks={shape.nodes}",
        "--ntasks-per-node=1",
        "--wait=0",
        "--kill-on-bad-exit=0",
        *_SHARED,
    ]


#: Ranks and helpers use the same memory and GPUs, all of the job's (--overlap, since Slurm 22.05).
_SHARED = ("--overlap", "--mem=0", "--mpi=none", "--unbuffered", "--export=ALL")


#: A batch job passes through /bin/sh, which drops the shell function that `module` mostly is.
_MODULES = """\
if ! type module >/dev/null 2>&1 && [ -r /etc/profile ]; then
    before=$PATH; . /etc/profile; PATH=$before:$PATH
fi
"""


def with_environment(lines: Sequence[str], script: Path, program: Sequence[str]) -> list[str]:
    """The words that start a Python program on a node, after the site's environment lines.

    Args:
        lines: shell, from the site file; none: this interpreter is used as it is.
        script: file to write them to, which every node reads.
        program: Python's arguments.

    A line that fails ends it: whichever Python came first would run otherwise.
    """
    if not lines:
        return [sys.executable, *program]
    content = _MODULES if any(line.split()[:1] in (["module"], ["ml"]) for line in lines) else ""
    for number, line in enumerate(lines, start=1):
        failed = f'echo "environment line {number} failed" >&2; exit {EXIT_CONFIGURATION}'
        content += f"{line}\n[ $? -eq 0 ] || {{ {failed}; }}\n"
    script.write_text(content + 'exec python "$@"\n', encoding="utf-8")
    return ["/bin/bash", str(script), *program]


class SlurmRanks:
    """Ranks as tasks of one srun."""

    def __init__(self, step: Step, ranks: int) -> None:
        self._step = step
        self._ranks = ranks

    def exits(self) -> dict[int, RankExit]:
        known = task_exits(self._step.said())
        if self._step.exit_code is None:
            return known
        return known | {rank: RankExit() for rank in range(self._ranks) if rank not in known}

    def said(self) -> str:
        return self._step.said()

    def end(self) -> None:
        self._step.end(ASK_S)


def launch_slurm(
    session: Path, *, shape: JobShape, cpus_per_rank: int | None, lines: Sequence[str], log: Path
) -> SlurmRanks:
    """Start the ranks of a cell on the nodes of this job.

    Args:
        session: the folder that the ranks share; its next-0.json says where the first cell is.
        shape: nodes and ranks on each.
        cpus_per_rank: CPUs of each, if the site says so.
        lines: the site's environment lines.
        log: where srun's words go.

    Raises:
        CellFailure: CONFIGURATION, srun is not there.
    """
    program = with_environment(lines, session / "ranks.sh", ["-m", "shardwatt.run.rank", str(session)])
    return SlurmRanks(Step([*rank_words(shape, cpus_per_rank), *program], log), shape.ranks)


def task_exits(text: str) -> dict[int, RankExit]:
    """What srun said of tasks that are gone, in its order; those that ended well are not named."""
    exits: dict[int, RankExit] = {}
    for match in _TASKS_ENDED.finditer(text):
        how = match["how"]
        code = _EXIT_CODE.search(how)
        exit_code = int(code[1]) if code else _SIGNALS.get(how.partition(" (")[0])
        known = RankExit(match["node"], exit_code, bool(_OUT_OF_MEMORY.search(how)))
        for rank in _numbers(match["tasks"]):
            exits.setdefault(rank, known)
    if _OUT_OF_MEMORY.search(text):
        # slurmstepd tells it in a line of its own.
        exits = {
            rank: RankExit(known.node, known.exit_code, known.exit_code == -9 or known.out_of_memory)
            for rank, known in exits.items()
        }
    return exits


def _numbers(ranges: str) -> list[int]:
    """`0-2,5` as numbers."""
    numbers: list[int] = []
    for part in ranges.split(","):
        first, _, last = part.partition("-")
        if first:
            numbers += range(int(first), int(last or first) + 1)
    return numbers
