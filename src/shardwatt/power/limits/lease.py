"""Leases: small files on a node's own disk that remember power limits which have to be set back.

One is written before a GPU's limit is changed, and removed once it is back. What a killed job leaves is
mended from its leases: by the next cell on the node, or by an Epilog (power/limits/mend.py).

Anybody may write into the folder, so nothing in it is believed for its name: a lease is a regular file of
one name, no link, of strict content, and belongs to the user whom it names.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from shardwatt.locks import boot_id
from shardwatt.power.process import is_gone, own_space
from shardwatt.readings import NonNegative
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion

_MODE = 0o644
_FOLDER_MODE = 0o1777
_SUFFIX = ".lease"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,250}\.lease")

#: More is no lease.
_MOST_BYTES = 4096


_ROOT = 0

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$")]


class Lease(RecordModel):
    """A limit that a job has set, or is about to, on one GPU."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    node: Word
    """Host name: folders of several nodes may be one."""
    gpu: Annotated[str, Field(pattern=r"^GPU-[0-9a-fA-F-]{1,64}$")]
    """The GPU's UUID."""
    job_id: Word
    uid: int
    """User of the job."""
    pid: Annotated[int, Field(ge=1)]
    """Process that sets the limit back at the job's end."""
    started_ticks: int
    """When that process began, in ticks since the node's start: numbers of processes are used again."""
    pid_space: int
    """The namespace in which that process has its number: a container has one of its own."""
    boot_id: Annotated[str, Field(pattern=r"^[0-9a-f-]{36}$")]
    """The node's start: limits do not outlive it."""
    before_w: NonNegative
    """Limit that was set before, in W."""
    before_enforced_w: NonNegative
    """Limit that was enforced before, in W."""
    cap_w: NonNegative
    """Limit that the job sets, in W."""

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.node}.{self.gpu}.{self.job_id}{_SUFFIX}"

    @property
    def is_of_this_boot(self) -> bool:
        return self.boot_id == boot_id()

    @property
    def is_elsewhere(self) -> bool:
        """Whether its process, if it runs, cannot be seen from here: it was started in another container."""
        return self.is_of_this_boot and self.pid_space != own_space()

    @property
    def is_held(self) -> bool:
        """Whether the process that is to set the limit back still runs, as far as can be told."""
        return self.is_of_this_boot and not is_gone(self.pid, self.started_ticks, self.pid_space)


class LeaseError(Exception):
    """The folder of leases, or a file in it, cannot be used."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file in the folder that carries a lease's name.

    Attributes:
        name: the file's.
        owner: its owner's user id.
        lease: what it says; None where it is none.
    """

    name: str
    owner: int
    lease: Lease | None


class Leases:
    """The leases of a node, while `open_leases` is entered.

    Args:
        folder: where.
        descriptor: the opened folder: nobody can put another in its place meanwhile.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._descriptor = descriptor

    def complaint(self) -> str | None:
        """What is wrong with the folder itself; None where only root can remove other users' leases."""
        owner = os.fstat(self._descriptor).st_uid
        if owner == _ROOT:
            return None
        return (
            f"{self.folder}: the folder belongs to user {owner}, who can remove everybody's leases in it: "
            f"chown root {self.folder}"
        )

    def write(self, lease: Lease) -> None:
        """Put a lease on disk: whole, and there for good when this returns.

        Raises:
            LeaseError: the folder cannot be written.
        """
        unnamed = f".{secrets.token_hex(8)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            descriptor = os.open(unnamed, flags, _MODE, dir_fd=self._descriptor)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                os.fchmod(stream.fileno(), _MODE)
                stream.write(lease.model_dump_json() + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(unnamed, lease.name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
            os.fsync(self._descriptor)
        except OSError as problem:
            with contextlib.suppress(OSError):
                os.unlink(unnamed, dir_fd=self._descriptor)
            raise LeaseError(
                f"{self.folder}: the power limit before cannot be noted there: {problem.strerror}; nothing "
                "was changed; expected a folder on the node's own disk that every user can write (mode "
                "1777), see power_limits.leases"
            ) from None

    def remove(self, name: str) -> None:
        """Remove a lease; one that is gone, or another user's, is left alone."""
        with contextlib.suppress(FileNotFoundError, PermissionError):
            os.unlink(name, dir_fd=self._descriptor)

    def of_node(self, node: str) -> list[Found]:
        """What carries the name of a lease of this node, by name.

        Raises:
            LeaseError: the folder cannot be read.
        """
        try:
            names = sorted(os.listdir(self._descriptor))  # noqa: PTH208 - a descriptor is no path
        except OSError as problem:
            raise LeaseError(f"{self.folder}: cannot be read: {problem.strerror}") from None
        found = [self._read(name) for name in names if _NAME.fullmatch(name) and name.startswith(f"{node}.")]
        return [one for one in found if one is not None and (one.lease is None or one.lease.node == node)]

    def _read(self, name: str) -> Found | None:
        """A file as a lease; None where it has gone meanwhile."""
        # Without O_NONBLOCK a pipe of that name would be waited for, for ever.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            descriptor = os.open(name, flags, dir_fd=self._descriptor)
        except FileNotFoundError:
            return None
        except OSError:
            return self._no_lease(name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or status.st_size > _MOST_BYTES:
                return Found(name, status.st_uid, None)
            lease = Lease.model_validate_json(os.read(descriptor, _MOST_BYTES))
        except (ValidationError, OSError):
            return self._no_lease(name)
        finally:
            os.close(descriptor)
        is_its_own = lease.name == name and lease.uid == status.st_uid
        return Found(name, status.st_uid, lease if is_its_own else None)

    def _no_lease(self, name: str) -> Found | None:
        try:
            return Found(name, os.lstat(name, dir_fd=self._descriptor).st_uid, None)
        except OSError:
            return None


@contextmanager
def open_leases(folder: Path, *, make: bool = True) -> Iterator[Leases]:
    """Open the folder of leases.

    Args:
        folder: where.
        make: make it where there is none, for every user to write into.

    Raises:
        LeaseError: it is not there and cannot be made, or is no folder.
    """
    try:
        if make:
            _make(folder)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as problem:
        raise LeaseError(
            f"{folder}: {problem.strerror}; expected a folder on the node's own disk, no link, that every "
            "user can write (mode 1777), see power_limits.leases"
        ) from None
    try:
        status = os.fstat(descriptor)
        if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
            raise LeaseError(
                f"{folder}: every user can write it, and remove what others have written; set the sticky "
                f"bit: chmod 1777 {folder}"
            )
        yield Leases(folder, descriptor)
    finally:
        os.close(descriptor)


def _make(folder: Path) -> None:
    """Make the folder of leases: every user can write into it from its first moment on."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    # A chmod afterwards would be too late for another user's job that begins now, or never come.
    before = os.umask(0)
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(_FOLDER_MODE)
    finally:
        os.umask(before)
