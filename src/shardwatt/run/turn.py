"""Turns of cells on a machine without a scheduler: what runs beside a cell is in its joules and seconds."""

from __future__ import annotations

import fcntl
import logging
import platform
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from shardwatt.locks import NO_LOCKS
from shardwatt.run.privatefolder import private_folder

#: Time in s between two looks at whether the machine is free.
_LOOK_S = 1.0

log = logging.getLogger(__name__)


class Turn:
    """This machine, kept from this user's other cells from `take` until this is left, or the process is gone.

    Snakemake lets nothing run beside a cell, but it knows of its own cells alone: not of another project's,
    and not of one that a killed Snakemake has left running.
    """

    def __init__(self) -> None:
        self._lock: IO[str] | None = None

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        if self._lock is not None:
            _tell(self._lock, "")
            with suppress(OSError):  # what could not be told
                self._lock.close()

    def take(self, holder: str, look: Callable[[], None]) -> bool:
        """Wait until no other cell runs here; whether there was one. Once taken, it stays so.

        On a file system without locks it goes on without one.

        Args:
            holder: what those who wait are to be told of this one.
            look: called at every look; what it raises ends the wait.

        Raises:
            OSError: the folder for temporary files cannot be written.
            CellFailure: STORAGE, others may write to this user's folder there.
        """
        if self._lock is not None:
            _tell(self._lock, holder)
            return False
        folder = private_folder(Path(tempfile.gettempdir()), "set TMPDIR to a folder of your own")
        # By its node: a folder that several share may hold it.
        lock = (folder / f"{platform.node()}.lock").open("a+", encoding="utf-8", errors="replace")
        try:
            waited = _wait(lock, look)
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        _tell(lock, holder)
        return waited


def _tell(lock: IO[str], holder: str) -> None:
    with suppress(OSError):  # it is only shown
        lock.truncate(0)
        lock.write(holder)
        lock.flush()


def _wait(lock: IO[str], look: Callable[[], None]) -> bool:
    waited = False
    while True:
        look()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return waited
        except BlockingIOError:
            if not waited:
                log.info("waiting: this machine is taken by %s", _holder(lock))
            waited = True
        except OSError as problem:
            if problem.errno not in NO_LOCKS:
                raise
            log.warning("%s: the file system has no locks; going on without", lock.name)
            return waited
        time.sleep(_LOOK_S)


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    return lock.read() or "another cell"
