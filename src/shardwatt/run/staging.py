"""Copies of checkpoint files on a node's own disk, so that many loads cost one read of the network."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint


def staged(checkpoint: Checkpoint, folder: Path, rank: int) -> Checkpoint:
    """The checkpoint as this rank reads it: its own shard copied to the node's disk, unless it is there.

    Each user has copies of their own: what another may change is not to be trusted. A copy is known by
    path, size and time of change of its original, and appears under its name only when it is whole; ranks
    of one node that want the same file wait for the one that copies it. Nothing is ever removed: the
    folder is the site's to clean.

    Args:
        checkpoint: the model's files.
        folder: on this node's own disk; made where it is missing.
        rank: whose shard.

    Returns:
        A checkpoint whose folder holds this rank's shard.

    Raises:
        OSError: the folder cannot be written, or is full.
        CellFailure: STORAGE, somebody else has made this user's folder there.
    """
    source = checkpoint.folder.resolve()
    mine = folder / f"shardwatt-{os.getuid()}"
    mine.mkdir(mode=0o700, parents=True, exist_ok=True)
    if mine.stat().st_uid != os.getuid():
        raise CellFailure(
            Reason.STORAGE,
            f"{mine} belongs to another user; expected a folder of your own: remove it, or change the site's "
            "`staging`",
        )
    own = mine / f"{source.name}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}"
    own.mkdir(parents=True, exist_ok=True)
    shard = checkpoint.shard_files[rank]
    _copy(shard, own / shard.name)
    return replace(checkpoint, folder=own)


def _copy(original: Path, copy: Path) -> None:
    with copy.with_name(f".{copy.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_copy(original, copy):
            return
        unfinished = copy.with_name(f".{copy.name}.part")
        try:
            shutil.copy2(original, unfinished)
            unfinished.replace(copy)
        finally:
            unfinished.unlink(missing_ok=True)


def _is_copy(original: Path, copy: Path) -> bool:
    try:
        found = copy.stat()
    except FileNotFoundError:
        return False
    wanted = original.stat()
    return (found.st_size, found.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns)
