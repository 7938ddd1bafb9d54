"""The safetensors format: a length, a JSON header that says where each tensor lies, and the bytes.

https://huggingface.co/docs/safetensors, section "Format". Nothing in such a file can run.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from shardwatt.engine.weights.dtypes import SAFETENSORS_DTYPES
from shardwatt.engine.weights.saved import SavedFile, SavedTensor, bad

_LENGTH = struct.Struct("<Q")
_METADATA = "__metadata__"

#: Longest header in bytes that the format allows.
_LONGEST_HEADER = 100_000_000

_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}

_Whole = Annotated[int, Field(ge=0, strict=True)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dtype: str
    shape: list[_Whole]
    data_offsets: tuple[_Whole, _Whole]


_ENTRIES = TypeAdapter(dict[str, _Entry])


def read_safetensors(path: Path) -> dict[str, SavedTensor]:
    """Tensors of a safetensors file by name; only its header is read.

    Raises:
        CellFailure: BAD_CHECKPOINT, it cannot be opened, is truncated, has another format, or holds a
            tensor of other numbers than weights; STORAGE, it cannot be read.
    """
    file = SavedFile(path)
    entries, start = _header(file)
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = SAFETENSORS_DTYPES.get(entry.dtype)
        if dtype is None:
            raise bad(
                path,
                f"{name}: found numbers of type {entry.dtype}, expected floating-point ones: "
                f"{', '.join(SAFETENSORS_DTYPES)}",
            )
        size = math.prod(entry.shape) * dtype.itemsize
        if entry.data_offsets != (end, end + size):
            raise bad(
                path,
                f"{name}: found bytes {list(entry.data_offsets)}, expected {[end, end + size]}, "
                "next to the tensor before; get a clean copy",
            )
        end += size
        tensors[name] = SavedTensor(file, name, dtype, tuple(entry.shape), start + entry.data_offsets[0])
    if file.size != start + end:
        raise bad(
            path, f"is truncated or damaged: has {file.size} bytes, expected {start + end}; get a clean copy"
        )
    return tensors


def header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """What a safetensors file begins with; the bytes of the tensors follow in the same order.

    Args:
        tensors: type of the numbers and shape, by name.
    """
    entries: dict[str, object] = {_METADATA: {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the bytes of the tensors are aligned
    return _LENGTH.pack(len(text)) + text


def _header(file: SavedFile) -> tuple[dict[str, _Entry], int]:
    """The entries of a file's header, and where the bytes of its tensors start."""
    path = file.path
    if file.size < _LENGTH.size:
        raise bad(path, f"is truncated or no checkpoint: has {file.size} bytes; get a clean copy")
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size, 0))
    start = _LENGTH.size + length
    if length > _LONGEST_HEADER or start > file.size:
        raise bad(
            path,
            f"is truncated or no checkpoint: its header is to have {length} bytes, and the file has "
            f"{file.size}; get a clean copy",
        )
    try:
        content = json.loads(file.read(length, _LENGTH.size))
        if isinstance(content, dict):
            content.pop(_METADATA, None)
        return _ENTRIES.validate_python(content), start
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        raise bad(
            path, f"is no checkpoint: its header is not that of a safetensors file ({_why(error)})"
        ) from (error)


def _why(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"
    return str(error)
