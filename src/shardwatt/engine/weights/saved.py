"""Tensors as they lie in a file, and reading parts of them with little memory.

Files are read with pread(2) into one small buffer rather than mapped: nothing of them becomes resident, a
network file system gets few large requests, and a read error is an error instead of a signal.
"""

from __future__ import annotations

import os
import stat
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from shardwatt.engine.weights.slices import Slice
from shardwatt.errors import CellFailure, Reason

#: Bytes that are read at a time. Of 256 KiB to 16 MiB, those from 1 MiB on took equally little time.
CHUNK_BYTES = 2 * 2**20

#: The least number that fp16 rounds to infinity: halfway from its largest, 65504, to the next power of two.
_HALF_END = 65520.0

_SHOWN = 4


class SavedFile:
    """A file that stays open for reading as long as something refers to it.

    Raises:
        CellFailure: BAD_CHECKPOINT, it cannot be opened, or is a folder, a pipe or a device.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Without waiting: a named pipe would wait for somebody who writes to it.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise bad(path, f"cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise bad(path, "is no regular file; expected a file of weights, or a link to one")
        self.size = found.st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill a buffer with the bytes from an offset on.

        Raises:
            CellFailure: BAD_CHECKPOINT, the file ends before; STORAGE, it cannot be read there.
        """
        while buffer:
            try:
                count = os.preadv(self._descriptor, [buffer], offset)
            except OSError as error:
                raise CellFailure(
                    Reason.STORAGE,
                    f"{self.path}: cannot be read at byte {offset}: {error.strerror}; "
                    "expected a file system that answers: look at the node's log, and run again",
                ) from error
            if count == 0:
                raise bad(self.path, f"ends at byte {offset}, before its tensors do; get a clean copy")
            buffer, offset = buffer[count:], offset + count

    def read(self, count: int, offset: int) -> bytes:
        """So many bytes from an offset on; raises as `read_into` does."""
        content = bytearray(count)
        self.read_into(memoryview(content), offset)
        return bytes(content)


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor of a file, row after row.

    Attributes:
        file: which holds it.
        name: as the file has it.
        dtype: of its numbers, little-endian.
        shape: [rows, columns], or [columns].
        offset: of its first byte in the file.
    """

    file: SavedFile
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a saved tensor that follow each other, and where they belong in the whole tensor.

    Attributes:
        tensor: as it is saved.
        first: its first row that belongs to the part.
        place: of the part in the whole tensor; as wide as the saved tensor.
    """

    tensor: SavedTensor
    first: int
    place: Slice


class Reader:
    """Copies slices of whole tensors from the parts that are saved, through one buffer."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def copy(self, parts: list[Part], wanted: Slice, destination: Tensor) -> None:
        """Fill a destination from all parts that overlap with what is wanted; they overlap nowhere else.

        Args:
            parts: of one whole tensor.
            wanted: what of it.
            destination: [rows, columns] of it; any dtype, device and strides.

        Raises:
            CellFailure: BAD_CHECKPOINT, a file has become shorter, or the destination is fp16 and a number
                too large for it; STORAGE, a file cannot be read.
        """
        copied = 0
        for part in parts:
            rows = _overlap(part.place.rows, wanted.rows)
            columns = _overlap(part.place.columns, wanted.columns)
            if rows and columns:
                top, left = rows.start - wanted.rows.start, columns.start - wanted.columns.start
                bottom = rows[-1] - wanted.rows.start + 1
                view = destination[top : bottom : rows.step, left : left + len(columns)]
                first = part.first + part.place.rows.index(rows.start)
                self._copy_rows(part.tensor, first, columns.start - part.place.columns.start, view)
                copied += view.numel()
        assert copied == len(wanted.rows) * len(wanted.columns), "the parts make up the whole"

    def _copy_rows(self, tensor: SavedTensor, first: int, left: int, destination: Tensor) -> None:
        """Copy rows from the first one on, and as many columns from `left` on as the destination has.

        Whole rows are read, also for some of their columns: those are seldom wider than what a file system
        reads anyway, and ranks on one node read them from its page cache.
        """
        count, width = destination.shape
        row_bytes = tensor.shape[-1] * tensor.dtype.itemsize
        at_once = max(1, CHUNK_BYTES // row_bytes)
        self._make_room(min(at_once, count) * row_bytes, destination.device)
        memory = self._buffer.numpy().data
        narrows = destination.dtype == torch.float16 and tensor.dtype != torch.float16
        for begin in range(0, count, at_once):
            rows = min(at_once, count - begin)
            size = rows * row_bytes
            tensor.file.read_into(memory[:size], tensor.offset + (first + begin) * row_bytes)
            values = self._buffer[:size].view(tensor.dtype).view(rows, -1)[:, left : left + width]
            if narrows:
                _expect_half(tensor, values)
            destination[begin : begin + rows].copy_(values)

    def _make_room(self, size: int, device: torch.device) -> None:
        if self._buffer.numel() < size:
            # A GPU copies from page-locked memory without another copy on the way.
            self._buffer = torch.empty(
                max(size, CHUNK_BYTES), dtype=torch.uint8, pin_memory=device.type == "cuda"
            )


def bad(path: Path, problem: str) -> CellFailure:
    """What ends a cell whose checkpoint cannot be used."""
    return CellFailure(Reason.BAD_CHECKPOINT, f"{path}: {problem}")


def listed(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _expect_half(tensor: SavedTensor, values: Tensor) -> None:
    """Numbers of other types stay finite in fp16; they are looked at on the host, where they were read."""
    least, most = (float(value) for value in values.aminmax())
    found = most if most > -least else least
    if not abs(found) < _HALF_END:  # nor is it a number at all
        raise bad(
            tensor.file.path,
            f"{tensor.name}: found {found:g}, and fp16 ends at 65504; expected numbers that it holds: "
            "run this model in bf16 or fp32",
        )


def _overlap(part: range, wanted: range) -> range:
    """What of a part lies in a range without gaps."""
    # Index of the first row of the part that is not before a row: rounded up.
    begin, end = (
        min(max(-(-(border - part.start) // part.step), 0), len(part))
        for border in (wanted.start, wanted.stop)
    )
    return part[begin:end]
