"""Watching the ranks of a cell: progress shown, the first sign of trouble turned into an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shardwatt.errors import EXIT_CONFIGURATION, CellFailure, DoesNotFit, Reason, RecordError
from shardwatt.layout import listed
from shardwatt.recordfiles import read
from shardwatt.run.exchange import RankEnd, RankStart, rank_end_file, rank_start_file
from shardwatt.run.launch import RankExit, RankGroup
from shardwatt.run.ranklog import said_by_rank
from shardwatt.run.step import own_words
from shardwatt.run.workfolder import cannot_write

#: Time in s between two looks at the ranks.
POLL_S = 0.1

#: Time in s that the other ranks get to say how they ended, once one has failed.
GRACE_S = 1.5

#: What a rank reports when another one went away or fell silent, the more telling first: a rank that
#: gives up waiting leaves, and the others then see a lost connection.
_CONSEQUENCES = (Reason.COLLECTIVE_TIMEOUT, Reason.RANK_DIED)

#: What torch's ProcessGroupNCCL logs before it aborts a process whose collective takes too long.
_WATCHDOG = "Watchdog caught collective operation timeout"

#: What a rank reports that may follow from the death of another one.
_DOUBTFUL = (None, Reason.INTERNAL_ERROR, Reason.CANCELLED)


def attend(
    group: RankGroup,
    work: Path,
    logs: Path,
    *,
    ranks: int,
    start_timeout_s: float,
    each_look: Callable[[], None],
) -> list[RankEnd]:
    """Wait until every rank has ended its part well; whatever it raises, the ranks are left to the caller.

    Args:
        group: the running ranks.
        work: the cell's work folder.
        logs: where the ranks' logs are.
        ranks: how many there are.
        start_timeout_s: longest time until every rank has begun.
        each_look: called at every look, e.g. to show progress.

    Raises:
        CellFailure: a rank failed, was killed, or did not begin in time.
        DoesNotFit: a device ran out of memory.
    """
    started_s = time.monotonic()
    trouble_s: float | None = None
    silence_first = False
    while True:
        # In this order: a rank that has exited has written its end before.
        exits = group.exits()
        ends = _read_ends(work, ranks)
        silent = {number: end for number, end in exits.items() if number not in ends}
        if silent or not all(end.ok for end in ends.values()):
            if trouble_s is None:
                trouble_s, silence_first = time.monotonic(), bool(silent)
            if len(exits) == ranks or time.monotonic() - trouble_s > GRACE_S:
                running = set(range(ranks)) - exits.keys() - ends.keys()
                # srun names ranks in the order in which they went, and ends the others after the first.
                gone = [number for number, known in exits.items() if known.exit_code is not None]
                silence_first = gone[0] in silent if gone else silence_first
                raise _cause(work, logs, ends, silent, running, group.said(), silence_first=silence_first)
        elif len(ends) == ranks:
            return [ends[number] for number in range(ranks)]
        elif time.monotonic() - started_s > start_timeout_s:
            there = set(listed(work))
            late = [n for n in range(ranks) if rank_start_file(work, n).name not in there]
            if late:
                raise CellFailure(
                    Reason.START_TIMEOUT,
                    f"{_named(late)} of {ranks} did not begin within {start_timeout_s:g} s; "
                    "see whether the machine is overloaded, or raise the site's start_timeout_s",
                )
        each_look()
        time.sleep(POLL_S)


def _read_ends(work: Path, ranks: int) -> dict[int, RankEnd]:
    ends = {}
    there = set(listed(work))
    for number in range(ranks):
        if rank_end_file(work, number).name not in there:
            continue
        try:
            ends[number] = read(RankEnd, rank_end_file(work, number))
        except FileNotFoundError:
            continue
        except RecordError as problem:
            raise CellFailure(Reason.INTERNAL_ERROR, str(problem), rank=number) from None
    return ends


def _cause(
    work: Path,
    logs: Path,
    ends: dict[int, RankEnd],
    silent: dict[int, RankExit],
    running: set[int],
    said: str,
    *,
    silence_first: bool,
) -> CellFailure | DoesNotFit:
    """Tell what failed first: a stated cause, then a silent death, then what only follows from one.

    An unexpected error and being asked to end count as stated, but for those that came no sooner than a
    silent death: they may be a lost connection in words that nobody knew, or the launcher's clean-up.
    """
    failed = [end for end in ends.values() if not end.ok]
    for end in failed:
        if end.does_not_fit:
            return DoesNotFit(f"rank {end.rank} on {end.node}: {end.message}")
    doubtful = [end for end in failed if end.reason in _DOUBTFUL]
    for end in failed:
        if end.reason not in _CONSEQUENCES and end not in doubtful:
            return _failure(end)
    if doubtful and not silence_first:
        return _failure(doubtful[0])
    if silent:
        return cannot_write(work) or _silent_death(work, logs, silent, said)
    for reason in _CONSEQUENCES:
        for end in failed:
            if end.reason is reason:
                waiting = f"; {_named(running)} had not ended" if running else ""
                return _failure(end, waiting)
    return _failure(failed[0])


def _failure(end: RankEnd, more: str = "") -> CellFailure:
    return CellFailure(
        end.reason or Reason.INTERNAL_ERROR,
        (end.message or "the rank gave no message") + more,
        node=end.node,
        rank=end.rank,
    )


def _silent_death(work: Path, logs: Path, silent: dict[int, RankExit], said: str) -> CellFailure:
    """What is known of ranks that are gone without a word; those that the launcher tells of come first."""
    # Of several the one that went first: srun names them in that order, and ends the others after it.
    rank, known = min(
        silent.items(), key=lambda item: item[1].exit_code is None and not item[1].out_of_memory
    )
    quoted = f": {said[-2000:]}" if said else ""
    node = known.node or _node(work, rank)
    where = f"rank {rank}" + (f" on {node}" if node else "")
    if known.out_of_memory:
        return CellFailure(
            Reason.HOST_OOM,
            f"{where} was killed by the system for want of host memory; ask for more memory, "
            f"or use a smaller batch or more shards{quoted}",
            node=node,
            rank=rank,
            exit_code=known.exit_code,
        )
    if known.exit_code == EXIT_CONFIGURATION:
        return CellFailure(
            Reason.CONFIGURATION,
            f"{where} could not start: {own_words(said)}",
            node=node,
            rank=rank,
            exit_code=known.exit_code,
        )
    # It takes the process down, and raises nothing in the rank itself.
    if _WATCHDOG in said_by_rank(logs / f"rank-{rank}.log", work):
        return CellFailure(
            Reason.COLLECTIVE_TIMEOUT,
            f"{where}: another rank did not answer in time, and NCCL's watchdog ended it; see the other "
            "ranks' logs, or raise the site's collective_timeout_s",
            node=node,
            rank=rank,
            exit_code=known.exit_code,
        )
    return CellFailure(
        Reason.RANK_DIED,
        f"{where} ended without a word{_how(known.exit_code)}: it was killed (SIGKILL), by hand or by the "
        "system for want of memory, or it crashed; see its log and the kernel's, or ask for more "
        f"memory{quoted}",
        node=node,
        rank=rank,
        exit_code=known.exit_code,
    )


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    return f" (signal {-exit_code})" if exit_code < 0 else f" (exit code {exit_code})"


def _node(work: Path, rank: int) -> str | None:
    try:
        return read(RankStart, rank_start_file(work, rank)).node
    except (FileNotFoundError, RecordError):
        return None


def _named(ranks: set[int] | list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
