"""Turns at what several processes write: one at a time, by locks that end with their processes.

Network file systems may not show locks to other nodes, so that it counts on which node one was taken.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: What a file system says that has no locks, or as NFS none for a file that is open for reading alone.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)

log = logging.getLogger(__name__)


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in a block of the same lock, and keep others out of this one.

    On a file system without locks it goes on without one, and says so.

    Args:
        lock: its file, which stays; its folder is made where it is missing.

    Raises:
        OSError: the file cannot be written.
    """
    # Who tidied the logs away while a cell ran has not asked for its result to be lost.
    lock.parent.mkdir(parents=True, exist_ok=True)
    with _opened(lock) as stream:
        try:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("waiting for another process, which holds %s", lock)
                fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as problem:
            if problem.errno not in NO_LOCKS:
                raise
            log.warning("%s: the file system has no locks; going on without", lock)
        yield


def _opened(lock: Path) -> IO[str]:
    """A lock's file; another user's, to be read alone, where it was made by one."""
    try:
        return lock.open("w", encoding="utf-8")
    except PermissionError:
        return lock.open(encoding="utf-8")


def try_lock(stream: IO[str]) -> bool:
    """Lock a file unless another process holds it; False if one does, or the file system has no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def boot_id() -> str:
    """The kernel's name for this start of the node: unlike a host's name, no other node has it."""
    return _BOOT_ID.read_text(encoding="ascii").strip()
