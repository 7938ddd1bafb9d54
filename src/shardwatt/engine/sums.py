"""Sums of a checkpoint's files: what a copy lists, what Meta ships, and whether the files still have them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shardwatt.checkpoints import CHECKLIST_FILE, SUMS_FILE
from shardwatt.models import Checkpoint

#: A line of sha256sum and md5sum: the sum in hex, a blank, and one more or a star.
_LINE = re.compile(r"(?P<sum>[0-9a-fA-F]+) [ *](?P<name>.+)")
_SHOWN_CHARACTERS = 80


def manifest(sums: Mapping[str, str]) -> bytes:
    """The content of SHA256SUMS.

    Args:
        sums: SHA-256 in hex by name of file.
    """
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


def sum_problems(checkpoint: Checkpoint) -> list[str]:
    """Read every file that a list of sums beside the weights names, and tell which has another sum.

    The lists are SHA256SUMS, as copies have it, and checklist.chk, as Meta ships it (MD5). A file that
    SHA256SUMS names and that is not there is told too; of Meta's list some files are often left out. Files
    in other folders are not looked at.

    Returns:
        Nothing where all is as listed, or where no list is there.
    """
    return [
        problem
        for name, algorithm in ((SUMS_FILE, "sha256"), (CHECKLIST_FILE, "md5"))
        if (checkpoint.folder / name).is_file()
        for problem in _differing(checkpoint.folder / name, algorithm, all_expected=name == SUMS_FILE)
    ]


def _differing(path: Path, algorithm: str, *, all_expected: bool) -> Iterator[str]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as problem:
        yield f"{path}: cannot be read: {problem.strerror}"
        return
    for number, line in enumerate(filter(None, map(str.strip, lines)), start=1):
        match = _LINE.fullmatch(line)
        if (
            match is None
            or len(match["sum"]) != 2 * hashlib.new(algorithm, usedforsecurity=False).digest_size
        ):
            yield (
                f"{path}: line {number}: found {line[:_SHOWN_CHARACTERS]!r}, expected a sum of {algorithm} "
                "in hex and the name of a file; no further one was compared"
            )
            return
        file = path.parent / match["name"]
        if file.parent != path.parent:
            continue
        if not file.is_file():
            if all_expected:
                yield f"{file} is not there, and {path.name} lists it; get it, or a clean copy of all"
            continue
        try:
            found = _sum(file, algorithm)
        except OSError as problem:
            yield f"{file}: cannot be read: {problem.strerror}"
            continue
        if found != match["sum"].lower():
            yield (
                f"{file}: its sum is {found}, and {path.name} says {match['sum'].lower()}: "
                "it has changed since it was listed; get a clean copy"
            )


def _sum(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
