"""The folder in which an attempt writes, and the removal of those that killed attempts left behind."""

from __future__ import annotations

import fcntl
import platform
import shutil
import tempfile
from pathlib import Path
from typing import IO

from shardwatt.errors import CellFailure, storage_failure

#: Says on which node the attempt runs; locked for as long as its supervisor lives.
OWNER_FILE = "owner"

#: Bytes written to find out whether the disk is full.
_PROBE_BYTES = 64 * 1024


class WorkFolder:
    """A new folder of one attempt; the system lets go of its lock when the supervisor ends, however.

    Args:
        begin: its parent and the begin of its name; the rest makes it unique.

    Raises:
        OSError: the parent cannot be written.
    """

    def __init__(self, begin: Path) -> None:
        begin.parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"{begin.name}-", dir=begin.parent))
        try:
            # Locked before it has its name: one that has the name and no lock is abandoned.
            unnamed = self.path / f".{OWNER_FILE}"
            self._owner = unnamed.open("w", encoding="utf-8")
            self._owner.write(platform.node())
            self._owner.flush()
            _lock(self._owner)
            unnamed.rename(self.path / OWNER_FILE)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def empty(self) -> None:
        """Remove what is in the folder, but for the mark of its owner."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != OWNER_FILE:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        # Closed first: NFS keeps open files, and then their folder, alive.
        self._owner.close()
        shutil.rmtree(self.path, ignore_errors=True)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the work folders of this node whose supervisors are gone; those of other nodes stay.

    Locks of one node are reliable on any file system that has them; where there are none, nothing is
    removed.

    Returns:
        What was removed.
    """
    abandoned = [owner.parent for owner in parent.glob(f"*/{OWNER_FILE}") if _is_abandoned(owner)]
    for folder in abandoned:
        shutil.rmtree(folder, ignore_errors=True)
    return abandoned


def remove_of_job(parent: Path, job_id: str) -> list[Path]:
    """Remove the work folders of a job none of whose processes may write a result any more, on any node.

    Args:
        parent: where work folders lie.
        job_id: the job's; folders carry it before their last part.

    Returns:
        What was removed.
    """
    left = [
        folder
        for begin in ("ranks", "[0-9a-f]" * 16)
        for folder in sorted(parent.glob(f"{begin}-{job_id}-*"))
    ]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return left


def cannot_write(folder: Path) -> CellFailure | None:
    """Whether a program may have ended without a word because there is no space left for one."""
    probe = folder / "probe"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
        probe.unlink()
    except OSError as problem:
        return storage_failure(problem)
    return None


def _is_abandoned(owner: Path) -> bool:
    try:
        with owner.open("r+", encoding="utf-8") as stream:
            return stream.read() == platform.node() and _lock(stream)
    except OSError:
        return False  # its attempt has just ended and removed it, or it is another user's


def _lock(stream: IO[str]) -> bool:
    """Lock a file unless another process holds it; False if one does, or the file system has no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
