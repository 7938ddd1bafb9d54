"""The folder in which an attempt writes, and the removal of those that killed attempts left behind."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from pathlib import Path

from pydantic import ValidationError

from shardwatt.errors import CellFailure, storage_failure
from shardwatt.layout import listed
from shardwatt.locks import boot_id, try_lock
from shardwatt.power.process import is_gone, own_space, start_ticks
from shardwatt.recordfiles import RecordModel
from shardwatt.slurm import own_cluster

#: Says whose the folder is; locked for as long as its supervisor lives.
OWNER_FILE = "owner"

#: Time in s without a change in a folder after which nobody works there: samplers write every second.
_SILENT_S = 600.0

#: Bytes written to find out whether the disk is full.
_PROBE_BYTES = 64 * 1024


class Owner(RecordModel):
    """The supervisor of an attempt, told apart from any other for certain."""

    node: str
    boot_id: str
    """The node's start: another host of the same name has another."""
    pid: int
    started_ticks: int | None
    pid_space: int
    cluster: str | None = None
    """Slurm's name of the cluster in whose job it runs: two that share a folder count their jobs apart."""

    @classmethod
    def this(cls) -> Owner:
        pid = os.getpid()
        return cls(
            node=platform.node(),
            boot_id=boot_id(),
            pid=pid,
            started_ticks=start_ticks(pid),
            pid_space=own_space(),
            cluster=own_cluster(),
        )

    @property
    def lives(self) -> bool | None:
        """Whether it still runs; None where that cannot be told from here."""
        if self.boot_id != boot_id() or self.pid_space != own_space() or self.started_ticks is None:
            return None
        return not is_gone(self.pid, self.started_ticks, self.pid_space)


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
            self._owner.write(Owner.this().model_dump_json())
            self._owner.flush()
            try_lock(self._owner)
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


def owner_of(folder: Path) -> Owner | None:
    """Whose a work folder is; None where it does not tell, as when its attempt has just ended."""
    try:
        return Owner.model_validate_json((folder / OWNER_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove the work folders of this node whose supervisors are gone; those of other nodes stay.

    A lock alone is not believed: network file systems lose some, and hosts of one name may not see each
    other's. So the process must be gone as well or, where that cannot be told, as after the node was started
    anew, nothing have changed in the folder for ten minutes. Where there are no locks, nothing is removed.

    Returns:
        What was removed.
    """
    abandoned = [owner.parent for owner in parent.glob(f"*/{OWNER_FILE}") if _is_abandoned(owner)]
    for folder in abandoned:
        shutil.rmtree(folder, ignore_errors=True)
    return abandoned


def remove_of_job(parent: Path, job_id: str, cluster: str | None) -> list[Path]:
    """Remove the work folders of a job none of whose processes may write a result any more, on any node.

    Those of processes that live on this node stay: one allocation may run several supervisors. So do those
    that name another cluster.

    Args:
        parent: where work folders lie.
        job_id: the job's; folders carry it before their last part.
        cluster: Slurm's name of the job's cluster; None: not known.

    Returns:
        What was removed.
    """
    left = [folder for folder in _of_job(parent, job_id) if not _is_kept(folder / OWNER_FILE, cluster)]
    for folder in left:
        shutil.rmtree(folder, ignore_errors=True)
    return left


def is_worked_in(parent: Path, job_id: str) -> bool:
    """Whether something has changed in a job's work folders within ten minutes, on whichever node.

    Args:
        parent: where work folders lie.
        job_id: the job's.
    """
    return any(_has_changed_lately(folder) for folder in _of_job(parent, job_id))


def jobs_with_folders(parent: Path) -> set[str]:
    """Numbers of the jobs of which work folders are there.

    Args:
        parent: where work folders lie.
    """
    return {name.partition("-")[2].rpartition("-")[0] for name in listed(parent)}


def _of_job(parent: Path, job_id: str) -> list[Path]:
    begins = ("ranks", "[0-9a-f]" * 16)
    return [folder for begin in begins for folder in sorted(parent.glob(f"{begin}-{job_id}-*"))]


def _has_changed_lately(folder: Path) -> bool:
    try:
        return time.time() - folder.stat().st_mtime < _SILENT_S
    except OSError:
        return False


def cannot_write(folder: Path) -> CellFailure | None:
    """Whether a program may have ended without a word because there is no space left for one."""
    probe = folder / "probe"
    try:
        probe.write_bytes(bytes(_PROBE_BYTES))
        probe.unlink()
    except OSError as problem:
        return storage_failure(problem)
    return None


def _is_abandoned(file: Path) -> bool:
    try:
        with file.open("r+", encoding="utf-8") as stream:
            owner = Owner.model_validate_json(stream.read())
            if owner.node != platform.node() or owner.lives or not try_lock(stream):
                return False
            return owner.lives is False or not _has_changed_lately(file.parent)
    except (OSError, ValidationError):
        return False  # its attempt has just ended and removed it, or it is another user's


def _is_kept(file: Path, cluster: str | None) -> bool:
    """Whether an owner is of another cluster than a job's, or holds its folder on this node."""
    try:
        with file.open("r+", encoding="utf-8") as stream:
            owner = Owner.model_validate_json(stream.read())
            if owner.cluster not in (None, cluster):
                return True
            return owner.node == platform.node() and (owner.lives or not try_lock(stream))
    except (OSError, ValidationError):
        return False
