"""Names of DCGM groups and jobs that tell whose they are: what a killed process left behind is told by them.

The host engine keeps groups until it ends, at most 64 of them, and knows nothing of processes.
"""

from __future__ import annotations

import itertools
import os
import re

from shardwatt.power.process import is_gone, own_space, start_ticks

_NAME = re.compile(r"shardwatt-[A-Za-z0-9]*-(?P<space>\d+)-(?P<pid>\d+)-(?P<start>\d+)-\d+")

#: DCGM takes job ids of up to 63 characters (a field of 64).
_LONGEST_LABEL = 16

_numbers = itertools.count()
#: Names in use by this very process.
_own: set[str] = set()


def take(label: str) -> str:
    """A name for a group and its job that nobody else has, on this node until it is booted again.

    Args:
        label: for people, e.g. Slurm's job id; other than letters and digits are left out.
    """
    label = re.sub(r"[^A-Za-z0-9]", "", label)[-_LONGEST_LABEL:]
    name = f"shardwatt-{label}-{own_space()}-{os.getpid()}-{start_ticks(os.getpid())}-{next(_numbers)}"
    _own.add(name)
    return name


def give_back(name: str) -> None:
    """Say that a name of this process is no longer in use."""
    _own.discard(name)


def is_left_behind(name: str) -> bool:
    """Whether a group is ours and its process is gone for certain; False for what others made.

    A process is known by number and time of start. Numbers mean nothing across containers, so a name from
    another namespace of processes is never taken for dead.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    pid, started_ticks, space = (int(match[part]) for part in ("pid", "start", "space"))
    if (pid, started_ticks, space) == (os.getpid(), start_ticks(os.getpid()), own_space()):
        return name not in _own
    return is_gone(pid, started_ticks, space)
