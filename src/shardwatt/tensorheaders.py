"""Names, types and shapes of the tensors in a file of weights, without torch and without their bytes.

What a file says of itself is compared with its size: a download that was cut shows here.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from shardwatt.checkpoints import ModelError

#: Largest header that is read: that of the safetensors format, and what pickled ones are far below.
HEADER_MAXIMUM_BYTES = 100_000_000

#: Types of the safetensors format (its documentation, section "Format"): name here, bytes of a number.
_SAFETENSORS_TYPES = {
    "F64": ("fp64", 8),
    "F32": ("fp32", 4),
    "F16": ("fp16", 2),
    "BF16": ("bf16", 2),
    "F8_E4M3": ("fp8", 1),
    "F8_E5M2": ("fp8", 1),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}

#: Classes by which torch names the type of a pickled tensor's numbers.
_STORAGES = {
    "DoubleStorage": ("fp64", 8),
    "FloatStorage": ("fp32", 4),
    "HalfStorage": ("fp16", 2),
    "BFloat16Storage": ("bf16", 2),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of a tensor.

    Attributes:
        dtype: type of its numbers: fp32, bf16, fp16, or another's name.
        shape: rows first.
        size_bytes: of its numbers.
    """

    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def tensor_headers(path: Path) -> dict[str, TensorHeader]:
    """The tensors of a file by name: of a .safetensors, or of what torch has saved (.pth).

    Raises:
        ModelError: the file is cut, damaged, or holds something else than tensors.
        OSError: it cannot be read.
    """
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, EOFError, RecursionError) as problem:
        words = " ".join(str(problem).split())
        raise _bad(path, f"is damaged or holds something else than tensors ({words})") from None


def saved_headers(path: Path) -> Mapping[str, TensorHeader]:
    """The same, read once a process as long as the file does not change.

    Raises:
        ModelError: the file is cut, damaged, or holds something else than tensors.
        OSError: it cannot be read.
    """
    status = path.stat()
    return _read_once(path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=512)
def _read_once(path: Path, *state: int) -> Mapping[str, TensorHeader]:
    return tensor_headers(path)


def _safetensors(path: Path) -> dict[str, TensorHeader]:
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(HEADER_MAXIMUM_BYTES, size - 8):
            raise _bad(path, f"is no safetensors file: {size} bytes, and a header of {length}")
        header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    found, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in _SAFETENSORS_TYPES:
            raise ValueError(f"{name} is of unknown type {entry['dtype']!r}")
        found[name] = _header(*_SAFETENSORS_TYPES[entry["dtype"]], entry["shape"])
        begin, end = (_count(offset) for offset in entry["data_offsets"])
        spans.append((begin, end))
        if end - begin != found[name].size_bytes:
            raise ValueError(f"{name} has {end - begin} bytes, and its shape {found[name].size_bytes}")
    last = 0
    for begin, end in sorted(spans):
        if begin != last:
            raise ValueError("its tensors do not follow each other")
        last = end
    if 8 + length + last != size:
        raise _bad(path, f"has {size} bytes, and its header speaks of {8 + length + last}")
    return found


def _pickled(path: Path) -> dict[str, TensorHeader]:
    """The tensors of what torch.save has written: a zip file with a pickle, which can make nothing here."""
    if not zipfile.is_zipfile(path):
        raise _bad(path, "is no file that torch 1.6 or later has saved, or it was cut")
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (entry for entry in archive.namelist() if entry.rpartition("/")[2] == "data.pkl")
            if archive.getinfo(name).file_size > HEADER_MAXIMUM_BYTES:
                raise ValueError("its list of tensors is too long")
            listed = archive.read(name)
    except zipfile.BadZipFile as problem:
        raise ValueError(problem) from None
    try:
        content = _Headers(io.BytesIO(listed)).load()
    except Exception as problem:  # bytes that are no pickle can raise any
        raise ValueError(problem) from None
    if not isinstance(content, Mapping):
        raise ValueError(f"expected tensors by name, found {type(content).__name__}")
    strangers = [name for name, value in content.items() if not isinstance(value, TensorHeader)]
    if strangers:
        raise ValueError(f"{strangers[0]!r} is no tensor")
    return {str(name): header for name, header in content.items()}


class _Type(NamedTuple):
    """In place of a class of torch that stands for a type of numbers."""

    dtype: str
    number_bytes: int


class _Headers(pickle.Unpickler):
    """Makes headers where torch would make tensors; every other class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _Type(*_STORAGES[name])
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
            ("torch._utils", "_rebuild_parameter"): _parameter,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        kind, storage = pid[0], pid[1]
        if kind != "storage" or not isinstance(storage, _Type):
            raise pickle.UnpicklingError("it refers to something else than a tensor's numbers")
        return storage


def _rebuilt(storage: _Type, offset: int, shape: Any, *more: object) -> TensorHeader:
    return _header(storage.dtype, storage.number_bytes, shape)


def _parameter(data: TensorHeader, *more: object) -> TensorHeader:
    return data


def _header(dtype: str, number_bytes: int, shape: Any) -> TensorHeader:
    sizes = tuple(_count(size) for size in shape)
    return TensorHeader(dtype, sizes, math.prod(sizes) * number_bytes)


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"found {value!r} where a size is expected")
    return value


def _bad(path: Path, problem: str) -> ModelError:
    return ModelError(f"{path}: {problem}; get a clean copy")
