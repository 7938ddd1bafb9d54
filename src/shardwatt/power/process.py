"""Processes of this node told apart for certain: by their namespace, number and time of start."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")

#: Of a process that has ended and was not waited for.
_ENDED_TICKS = 0


def own_space() -> int:
    """The namespace of processes in which this one lives: numbers mean nothing across containers."""
    return (_PROC / "self" / "ns" / "pid").stat().st_ino


def start_ticks(pid: int) -> int | None:
    """When a process of this namespace began, in ticks since the node's start.

    Returns:
        None where it is not shown, 0 for a process that has ended and was not waited for.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # proc(5): pid (name) state ppid … with the start as field 22; a name may hold blanks and brackets.
    state, *rest = text.rpartition(")")[2].split()
    return _ENDED_TICKS if state in ("Z", "X") else int(rest[18])


def is_gone(pid: int, started_ticks: int, space: int) -> bool:
    """Whether a process has ended for certain; False for one that cannot be judged from here.

    That is one of another namespace, and one of another user where /proc does not show those (hidepid).

    Args:
        pid: its number.
        started_ticks: what `start_ticks` said of it.
        space: what `own_space` said in it.
    """
    if space != own_space():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # somebody's; it may have taken over the number
    now_ticks = start_ticks(pid)
    return now_ticks is not None and now_ticks != started_ticks
