"""Copies of checkpoint files on a node's own disk, so that many loads cost one read of the network."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from shardwatt.architectures import Architecture
from shardwatt.checkpoints import INDEX_FILE
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint
from shardwatt.rankfiles import files_of_rank
from shardwatt.run.privatefolder import PRIVATE, private_folder
from shardwatt.units import size_words

_CHUNK_BYTES = 4 * 2**20


def staged(
    checkpoint: Checkpoint, architecture: Architecture, folder: Path, *, rank: int, ranks: int
) -> Checkpoint:
    """The checkpoint as this rank reads it: the files that its slices lie in are on the node's disk.

    Each is copied there unless it is there; what else a checkpoint has, a rank looks at and reads little of:
    links lead to the originals. Each user has copies of their own: what another may change is not to be
    trusted. A copy is known by path, size and time of change of its original, and appears under its name
    only when it is whole; ranks of one node that want the same file wait for the one that copies it. Nothing
    is ever removed: the folder is the site's to clean.

    Args:
        checkpoint: the model's files.
        architecture: the model's shape.
        folder: on this node's own disk; made where it is missing.
        rank: whose slices.
        ranks: how many there are.

    Returns:
        A checkpoint whose folder holds copies of this rank's files, and links to the others.

    Raises:
        OSError: the folder cannot be written.
        CellFailure: STORAGE, others may write to this user's folder there, the disk has too little space, or
            an original changed while it was copied.
    """
    source = checkpoint.folder.resolve()
    mine = private_folder(folder, "change the site's `staging`")
    own = mine / f"{source.name}-{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}"
    own.mkdir(mode=PRIVATE, exist_ok=True)
    copied = files_of_rank(checkpoint, architecture, rank, ranks)
    for name in copied:
        _copy(source / name, own / name)
    for name in (checkpoint.params.name, INDEX_FILE, *checkpoint.weights):
        if name not in copied and (source / name).is_file():
            _link(source / name, own / name)
    return replace(checkpoint, folder=own)


def _copy(original: Path, copy: Path) -> None:
    with _alone(copy):
        if _is_copy(original, copy):
            return
        unfinished = copy.with_name(f".{copy.name}.part")
        try:
            with original.open("rb", buffering=0) as source, unfinished.open("wb") as target:
                before = os.fstat(source.fileno())
                _expect_space(copy, before.st_size)
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
                after = os.fstat(source.fileno())
            if _state(before) != _state(after) or unfinished.stat().st_size != before.st_size:
                raise CellFailure(
                    Reason.STORAGE,
                    f"{original} changed while it was copied to {copy.parent}; expected a checkpoint that "
                    "stays as it is: let what writes it end, and run again",
                )
            os.utime(unfinished, ns=(before.st_atime_ns, before.st_mtime_ns))
            unfinished.replace(copy)
        finally:
            unfinished.unlink(missing_ok=True)


def _expect_space(copy: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(copy.parent).free
    if free < size_bytes:
        raise CellFailure(
            Reason.STORAGE,
            f"{copy.parent} has {size_words(free)} of space, and {copy.name} takes {size_words(size_bytes)}; "
            "free some on this node (copies of other models are beside it), or change the site's `staging`",
        )


def _link(original: Path, link: Path) -> None:
    """Lead to the original, unless there is a good copy or the link already."""
    with _alone(link):
        if link.is_symlink() or _is_copy(original, link):
            return
        unfinished = link.with_name(f".{link.name}.part")
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(original)
        unfinished.replace(link)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one rank of the node at a time see to a file; two that wrote one copy would mix it.

    Raises:
        OSError: the disk has no locks, or cannot be written.
    """
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_copy(original: Path, copy: Path) -> bool:
    """Whether a copy is there and as its original is now."""
    try:
        found = copy.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return _state(found) == _state(original.stat())


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
