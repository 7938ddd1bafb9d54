"""Watching the ranks of a cell: progress shown, the first sign of trouble turned into an outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shardwatt.errors import CellFailure, DoesNotFit, Reason, RecordError, storage_failure
from shardwatt.records import read
from shardwatt.run.exchange import RankEnd, rank_end_file, rank_start_file
from shardwatt.run.launch import RankGroup, output_tail

#: Time in s between two looks at the ranks.
POLL_S = 0.1

#: Time in s that the other ranks get to say how they ended, once one has failed.
GRACE_S = 1.5

#: What a rank reports when another one went away or fell silent, the more telling first: a rank that
#: gives up waiting leaves, and the others then see a lost connection.
_CONSEQUENCES = (Reason.COLLECTIVE_TIMEOUT, Reason.RANK_DIED)

#: Bytes written to find out whether the disk is full.
_PROBE_BYTES = 64 * 1024


def attend(
    group: RankGroup,
    work: Path,
    *,
    ranks: int,
    start_timeout_s: float,
    each_look: Callable[[], None],
) -> list[RankEnd]:
    """Wait until every rank has ended well; ends the others within seconds if one does not.

    Args:
        group: the running ranks.
        work: the cell's work folder.
        ranks: how many there are.
        start_timeout_s: longest time until every rank has begun.
        each_look: called at every look, e.g. to show progress; what it raises ends the ranks too.

    Raises:
        CellFailure: a rank failed, was killed, or did not begin in time.
        DoesNotFit: a device ran out of memory.
    """
    started_s = time.monotonic()
    trouble_s: float | None = None
    silence_first = False
    try:
        while True:
            # In this order: a rank that has exited has written its end before.
            exited = group.exited()
            ends = _read_ends(work, ranks)
            silent = exited - ends.keys()
            if silent or not all(end.ok for end in ends.values()):
                if trouble_s is None:
                    trouble_s, silence_first = time.monotonic(), bool(silent)
                if len(exited) == ranks or time.monotonic() - trouble_s > GRACE_S:
                    running = set(range(ranks)) - exited - ends.keys()
                    raise _cause(work, ends, silent, running, silence_first=silence_first)
            elif len(ends) == ranks:
                return [ends[number] for number in range(ranks)]
            elif time.monotonic() - started_s > start_timeout_s:
                late = [n for n in range(ranks) if not rank_start_file(work, n).exists()]
                if late:
                    raise CellFailure(
                        Reason.START_TIMEOUT,
                        f"{_named(late)} of {ranks} did not begin within {start_timeout_s:g} s; "
                        "see whether the machine is overloaded, or raise the site's start_timeout_s",
                    )
            each_look()
            time.sleep(POLL_S)
    finally:
        group.kill()


def _read_ends(work: Path, ranks: int) -> dict[int, RankEnd]:
    ends = {}
    for number in range(ranks):
        try:
            ends[number] = read(RankEnd, rank_end_file(work, number))
        except FileNotFoundError:
            continue
        except RecordError as problem:
            raise CellFailure(Reason.INTERNAL_ERROR, str(problem), rank=number) from None
    return ends


def _cause(
    work: Path, ends: dict[int, RankEnd], silent: set[int], running: set[int], *, silence_first: bool
) -> CellFailure | DoesNotFit:
    """Tell what failed first: a stated cause, then a silent death, then what only follows from one.

    An unexpected error counts as stated, but for one that came no sooner than a silent death: it may
    be a lost connection in words that nobody knew.
    """
    failed = [end for end in ends.values() if not end.ok]
    for end in failed:
        if end.does_not_fit:
            return DoesNotFit(f"rank {end.rank} on {end.node}: {end.message}")
    unexpected = [end for end in failed if end.reason in (None, Reason.INTERNAL_ERROR)]
    for end in failed:
        if end.reason not in _CONSEQUENCES and end not in unexpected:
            return _failure(end)
    if unexpected and not silence_first:
        return _failure(unexpected[0])
    if silent:
        return _cannot_write(work) or _silent_death(work, min(silent))
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


def _silent_death(work: Path, rank: int) -> CellFailure:
    printed = output_tail(work).strip()
    return CellFailure(
        Reason.RANK_DIED,
        f"rank {rank} ended without a word: it was killed (SIGKILL), by hand or by the system for want of "
        "memory, or it crashed; see its log and the kernel's, or ask for more memory"
        + (f": {printed[-2000:]}" if printed else ""),
        rank=rank,
    )


def _cannot_write(work: Path) -> CellFailure | None:
    """Whether a rank may have ended without a word because there is no space left for one."""
    probe = work / "probe"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
        probe.unlink()
    except OSError as problem:
        return storage_failure(problem)
    return None


def _named(ranks: set[int] | list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
