"""Files of torch.save: which tensors they hold, and where the bytes lie."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from shardwatt.engine.weights.dtypes import SAFETENSORS_DTYPES
from shardwatt.engine.weights.saved import SavedFile, SavedTensor, bad, listed

#: Of a zip file's header before a member (APPNOTE.TXT of PKWARE, section 4.3.7): its size without name and
#: extra field, whose lengths are its last two numbers.
_MEMBER = struct.Struct("<26xHH")

#: The number, pickled, that files of torch before 1.6 begin with.
_OLD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_torch(path: Path) -> dict[str, SavedTensor]:
    """Tensors of a file of torch.save by name; the bytes of the tensors are not read.

    Only tensors and plain containers are unpickled (weights_only): a file cannot run code.

    Raises:
        CellFailure: BAD_CHECKPOINT, it cannot be opened, is truncated, holds something else than tensors, or
            a tensor of other numbers than weights; STORAGE, it cannot be read.
    """
    file = SavedFile(path)
    if file.size > len(_OLD) and file.read(len(_OLD), 0) == _OLD:
        raise bad(
            path,
            "is in the format of torch before 1.6, which cannot be read in parts; load it and save it again "
            "with torch 1.6 or newer",
        )
    content = _unpickled(path)
    strangers = [
        str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))
    ]
    if strangers:
        raise bad(path, f"expected tensors alone, found {listed(strangers)} of another kind")
    for name, tensor in content.items():
        if tensor.dtype not in SAFETENSORS_DTYPES.values():
            raise bad(path, f"{name}: found {tensor.dtype}, expected floating-point numbers")
        if tensor.layout != torch.strided or not tensor.is_contiguous():
            raise bad(path, f"{name}: is not saved row after row; save a contiguous copy of it")
    try:
        offsets = _offsets(file, list(content.values()))
    except zipfile.BadZipFile as error:
        raise bad(path, f"is truncated or no checkpoint ({error}); get a clean copy") from error
    return {
        name: SavedTensor(
            file,
            name,
            tensor.dtype,
            tuple(tensor.shape),
            offsets.get(tensor.untyped_storage().data_ptr(), 0)
            + int(tensor.storage_offset()) * tensor.itemsize,
        )
        for name, tensor in content.items()
    }


def _unpickled(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise bad(
            path, "holds something other than tensors, and was not opened any further; get a clean copy"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise bad(path, f"is truncated or no checkpoint ({reason}); get a clean copy") from error
    if not isinstance(content, dict):
        raise bad(path, f"expected tensors by name, found {type(content).__name__}")
    return content


def _offsets(file: SavedFile, tensors: list[Tensor]) -> dict[int, int]:
    """Offset in the file of each storage, by its address.

    torch maps the file as a whole, so storages lie in memory as the members of the zip file that hold them
    lie in the file. That they are as many, as large and as far apart is checked, not supposed.
    """
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    addresses = sorted(address for address, size in storages.items() if size)
    members = _members(file)
    in_memory = [(address - addresses[0], storages[address]) for address in addresses]
    in_file = [(offset - members[0][0], size) for offset, size in members]
    if in_memory != in_file:
        raise bad(
            file.path,
            f"its tensors use {len(addresses)} pieces of memory, and it holds {len(members)}, or others; "
            "save the tensors alone",
        )
    return {address: offset for address, (offset, _) in zip(addresses, members, strict=True)}


def _members(file: SavedFile) -> list[tuple[int, int]]:
    """Offset and size of each piece of memory in a file of torch.save, in the file's order."""
    found = []
    with zipfile.ZipFile(file.path) as archive:
        for member in archive.infolist():
            folder, _, name = member.filename.partition("/")
            if name == "byteorder" and archive.read(member) != b"little":
                raise bad(file.path, f"{folder} was saved on a big-endian machine; expected little-endian")
            if name.startswith("data/") and member.file_size:
                if member.compress_type != zipfile.ZIP_STORED:
                    raise bad(file.path, f"{member.filename} is compressed; expected a file of torch.save")
                header = file.read(_MEMBER.size, member.header_offset)
                start = member.header_offset + _MEMBER.size + sum(_MEMBER.unpack(header))
                found.append((start, member.file_size))
    return sorted(found)
