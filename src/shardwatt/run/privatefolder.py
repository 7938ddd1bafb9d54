"""A folder of this user's own where others may write too, as on a node's disk or below /tmp."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from shardwatt.errors import CellFailure, Reason

#: Permissions of a folder that its owner alone may look into.
PRIVATE = 0o700


def private_folder(parent: Path, remedy: str) -> Path:
    """This user's folder below one that others may share; made where it is missing.

    Args:
        parent: made where it is missing.
        remedy: what to do where somebody else's is there, beside removing it.

    Raises:
        OSError: the parent cannot be written.
        CellFailure: STORAGE, others may write to this user's folder there.
    """
    mine = parent / f"shardwatt-{os.getuid()}"
    parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        mine.mkdir(mode=PRIVATE)
    # Nobody else may put anything into it, or another in its place.
    found = mine.lstat()
    if not stat.S_ISDIR(found.st_mode):
        problem = "is no folder, or a link to one"
    elif found.st_uid != os.getuid():
        problem = "belongs to another user"
    elif stat.S_IMODE(found.st_mode) & 0o077:
        problem = f"is open to others (mode {stat.S_IMODE(found.st_mode):04o})"
    else:
        return mine
    raise CellFailure(
        Reason.STORAGE,
        f"{mine} {problem}; expected a folder of your own that nobody else can enter: remove it on this "
        f"node, or {remedy}",
    )
