"""Files that come from outside: downloaded from a pinned address, and never used unchecked."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from shardwatt.datasets import PinnedFile
from shardwatt.errors import ShardwattError
from shardwatt.recordfiles import replacing

#: Longest silence in s of a server before a download is given up.
TIMEOUT_S = 60.0


class DataError(ShardwattError):
    """A data file that is missing, cannot be had, or is not what it should be."""


def read_verified(pinned: PinnedFile, path: Path) -> bytes:
    """Read a file whole and check it against its pinned hashes.

    Args:
        pinned: what is expected of it; a file of the project itself may have no hash.
        path: where it lies.

    Raises:
        DataError: it is missing, unreadable, or of another content.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: is not there; {_by_hand(pinned, path)}") from None
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror}") from None
    wrong = _mismatch(pinned, content)
    if wrong:
        raise DataError(
            f"{path}: has {wrong}; it is damaged or of another version: "
            f"move it away and let it be fetched again, or {_by_hand(pinned, path)}"
        )
    return content


def verify(pinned: PinnedFile, path: Path) -> str:
    """Check a file against its pinned hashes, and return the SHA-256 of its content in hex.

    Raises:
        DataError: it is missing, unreadable, or of another content.
    """
    return hashlib.sha256(read_verified(pinned, path)).hexdigest()


def fetch(pinned: PinnedFile, path: Path) -> None:
    """Make sure that a file is there and right; download it from its pinned address if it is missing.

    Raises:
        DataError: it is of another content, no address is known, or it cannot be downloaded or written.
    """
    if path.exists():
        verify(pinned, path)
    elif pinned.url is None:
        raise DataError(f"{path}: is not there, and no address is known for it; {_by_hand(pinned, path)}")
    else:
        download(pinned.url, pinned, path)


def download(url: str, pinned: PinnedFile, path: Path) -> None:
    """Download a file; it gets its name only after its hash was found right.

    Args:
        url: where from.
        pinned: what is expected of it.
        path: where to; its folder is made.

    Raises:
        DataError: the server or the network fails, the content is another, or it cannot be written.
    """
    import pooch  # here, since only a download needs its network stack, and every rank imports this module

    stream = io.BytesIO()
    try:
        pooch.HTTPDownloader(timeout=TIMEOUT_S)(url, stream, None)
    except (OSError, ValueError) as problem:  # requests' errors are OSErrors; a malformed URL is a ValueError
        raise DataError(
            f"{path}: is not there and cannot be downloaded ({problem}); {_by_hand(pinned, path)}"
        ) from None
    content = stream.getvalue()
    wrong = _mismatch(pinned, content)
    if wrong:
        raise DataError(
            f"{path}: not written: what {url} offers has {wrong}; a proxy or the server may have "
            f"sent something else: {_by_hand(pinned, path)}"
        )
    place(content, path)


def place(content: bytes, path: Path) -> None:
    """Write a file, whole or not at all; its folder is made where it is missing.

    Several processes, on several nodes, may place the same file at the same time.

    Raises:
        DataError: the folder cannot be written or the disk is full; `path` is as it was before.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as problem:
        raise DataError(
            f"{path}: cannot be written: {problem.strerror}; free space, or let the site's folders "
            "point to one that can be written"
        ) from None


def _mismatch(pinned: PinnedFile, content: bytes) -> str:
    """Say which hash was found where another was expected; empty where all agree."""
    blob = b"blob %d\0" % len(content) + content
    checks = (
        ("SHA-256", pinned.sha256, hashlib.sha256(content)),
        ("git blob id", pinned.git_blob, hashlib.sha1(blob, usedforsecurity=False)),
    )
    return ", and ".join(
        f"{name} {found.hexdigest()} where {expected} was expected"
        for name, expected, found in checks
        if expected is not None and found.hexdigest() != expected
    )


def _by_hand(pinned: PinnedFile, path: Path) -> str:
    """Say how to put a file in place by hand."""
    if pinned.folder is not None:
        return f"{pinned.file} is part of the project: restore it from there, e.g. `git checkout -- {path}`"
    source = f" from {pinned.url}" if pinned.url else ""
    return (
        f"put {pinned.file}{source} into {path.parent} by hand, "
        "or set SHARDWATT_DATA to the folder that has it"
    )
