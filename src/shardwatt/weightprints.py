"""What tells one file of weights from another of the same size, without reading it whole.

A file of 16 GB takes some milliseconds: what it lists of its tensors, and samples of their bytes.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from shardwatt.tensorheaders import HEADER_MAXIMUM_BYTES

#: Places in a file that are read, at equal distances from its first byte to its last, and bytes of each. Of
#: a model of 8B in four files these are 128: training that changes a tenth of its bytes, as a merged adapter
#: of some projections, leaves all of them as they were in one of a million cases.
SAMPLES = 32
SAMPLE_BYTES = 16 * 1024


def weight_print(path: Path) -> str:
    """SHA-256 over what a file of weights is known by: its size, its header and samples of its content.

    Of a file of torch the header is the zip file's list, which has a CRC-32 of each tensor; of a safetensors
    file it is names, types and shapes. A file is looked at once a process as long as it does not change.

    Raises:
        OSError: the file cannot be read.
    """
    status = path.stat()
    return _print(path, status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=1024)
def _print(path: Path, size: int, *state: int) -> str:
    digest = hashlib.sha256(b"%d\n" % size)
    with path.open("rb") as stream:
        for part in (*_listed(path, stream, size), *_samples(stream, size)):
            digest.update(part)
    return digest.hexdigest()


def _listed(path: Path, stream: BinaryIO, size: int) -> Iterator[bytes]:
    """What the file says of its tensors; nothing of one that is damaged."""
    if path.suffix == ".safetensors":
        length = int.from_bytes(stream.read(8), "little")
        if length <= min(HEADER_MAXIMUM_BYTES, size - 8):
            yield stream.read(length)
        return
    try:
        with zipfile.ZipFile(stream) as archive:
            for member in archive.infolist():
                yield f"{member.filename} {member.file_size} {member.CRC:08x}\n".encode()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return


def _samples(stream: BinaryIO, size: int) -> Iterator[bytes]:
    whole = size <= SAMPLES * SAMPLE_BYTES
    places = [0] if whole else [(size - SAMPLE_BYTES) * n // (SAMPLES - 1) for n in range(SAMPLES)]
    for place in places:
        stream.seek(place)
        yield stream.read(size if whole else SAMPLE_BYTES)
