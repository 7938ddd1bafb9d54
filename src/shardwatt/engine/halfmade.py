"""Hidden folders in which checkpoints are made before they get their name, and those of killed makers."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from shardwatt.locks import boot_id, try_lock

#: In a hidden folder beside the target: what becomes the target.
_MADE = "made"
#: There too, beside it: what a target was before, until it is removed.
REPLACED = "replaced"
#: Names the start of its maker's node; the system lets go of the lock on it when the maker ends, however.
_MAKER = "maker"

log = logging.getLogger(__name__)


@contextmanager
def half_made(target: Path) -> Iterator[Path]:
    """A new folder to be filled and renamed to a target beside it; what is left in the end is removed.

    Args:
        target: what is made; its parent is there.

    Raises:
        OSError: the parent cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as name:
        scratch = Path(name)
        unnamed = scratch / f".{_MAKER}"
        # Closed before it is removed: NFS keeps open files, and then their folder, alive.
        with unnamed.open("w", encoding="utf-8") as maker:
            maker.write(boot_id())
            maker.flush()
            # Locked before it has its name: one that has the name and no lock is abandoned.
            if try_lock(maker):
                unnamed.rename(scratch / _MAKER)
            made = scratch / _MADE
            made.mkdir()
            yield made


def remove_abandoned(target: Path) -> None:
    """Remove what this user's killed processes have left of a target since the node was started, and say so.

    What another node, or an earlier start of this one, may have left is named: not every file system shows
    locks to other nodes.
    """
    for scratch in _beside(target):
        match _state(scratch):
            case "abandoned":
                shutil.rmtree(scratch, ignore_errors=True)
                log.warning("%s: left by a process that was killed; removed", scratch)
            case "held":
                log.info("%s: another process makes %s there now", scratch, target.name)
            case "unknown":
                log.warning(
                    "%s: left by a process that was killed, or another node makes %s there now; remove it if "
                    "none does",
                    *(scratch, target.name),
                )


def _beside(target: Path) -> list[Path]:
    """Hidden folders of this user in which a target is made, or was."""
    named = re.compile(rf"\.{re.escape(target.name)}-[a-z0-9_]{{8}}")  # as tempfile names them
    with suppress(OSError):
        return sorted(
            folder
            for folder in target.parent.iterdir()
            if named.fullmatch(folder.name)
            and folder.lstat().st_uid == os.getuid()
            and any((folder / own).exists() for own in (_MADE, REPLACED, _MAKER))
        )
    return []


def _state(scratch: Path) -> Literal["abandoned", "held", "unknown"]:
    """Whether a maker of this node works there, or has ended; unknown of any other."""
    try:
        with (scratch / _MAKER).open("r+", encoding="utf-8") as maker:
            if maker.read() != boot_id():
                return "unknown"
            return "abandoned" if try_lock(maker) else "held"
    except OSError:
        return "unknown"
