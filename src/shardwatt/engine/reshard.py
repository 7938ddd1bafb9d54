"""Copies of checkpoints: in another number of shards, or in another layout.

A run needs none: each rank reads its slices of any checkpoint. A copy in as many shards as run saves each
of them from reading more than its own from a slow file system; one in the other layout is for other programs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from shardwatt.architectures import Architecture
from shardwatt.checkpoints import SUMS_FILE, Layout
from shardwatt.engine.halfmade import half_made, remove_abandoned
from shardwatt.engine.sums import manifest
from shardwatt.engine.weights import RankWeights, open_whole
from shardwatt.engine.weights.companions import companions, sequence_ids
from shardwatt.engine.weights.planned import PlannedFile, ReshardError, hugging_face_files, meta_files
from shardwatt.models import Checkpoint
from shardwatt.units import size_words

_CHUNK_BYTES = 4 * 2**20
#: Numbers that are looked at together.
_LOOKED_AT = 2**20

#: Called with the bytes that are done and all bytes to do: each is written once and read back once.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Resharded:
    """A copy that was made.

    Attributes:
        checkpoint: the copy.
        size_bytes: of its weights.
        duration_s: that it took, reading back included.
        non_finite: how many numbers of each tensor are infinite or none, where some are; by Meta's names.
    """

    checkpoint: Checkpoint
    size_bytes: int
    duration_s: float
    non_finite: dict[str, int] = field(default_factory=dict)


def reshard(
    source: Checkpoint,
    architecture: Architecture,
    target: Path,
    *,
    layout: Layout,
    shards: int = 1,
    bos_id: int | None = None,
    eos_ids: Collection[int] = (),
    allow_non_finite: bool = False,
    progress: Progress = lambda done, total: None,
) -> Resharded:
    """Write a copy of a checkpoint in another number of shards or another layout; bits stay as they are.

    Tensor by tensor, so that memory holds one at a time, and the source is read once. The folder appears
    whole or not at all, after every tensor was read back from the disk and found as it was written. What a
    killed copy to the same target has left on this node is removed first.

    `meta` is written as params.json and consolidated.NN.safetensors: the embedding split by width as in
    LLaMA 1 and 2, and a tied one once. Of LLaMA 3 such a copy in several shards is for this software alone:
    the code that Meta published with it expects the embedding split by vocabulary. `huggingface` is written
    as config.json and safetensors files of at most 5 GB, with an index where there are several. The tokenizer
    is copied into the folder, generation_config.json says which ids end a sequence, and SHA256SUMS holds the
    sums of all files. Sums that lie beside the source are not compared: `sum_problems` does that.

    Args:
        source: of any layout and any number of shards.
        architecture: its shape, as `shardwatt.models.read_architecture` reads it.
        target: the folder to be made; its parent is made where it is missing.
        layout: of the copy.
        shards: of the copy: for `meta` one of `architecture.allowed_shards()`; whole tensors are 1.
        bos_id: begin of sequence by the source's tokenizer, for where the source itself does not say it.
        eos_ids: ends of sequence, likewise.
        allow_non_finite: copy numbers that are infinite or none too, and count them.
        progress: is told how far it is, tensor by tensor.

    Raises:
        ReshardError: the target is there already, the disk has too little space or cannot be written, the
            shape does not split so or has no words in that layout, a number is infinite or none, or the disk
            gave back something else than was written.
        ModelError: what lies beside the weights cannot be read.
        CellFailure: BAD_CHECKPOINT or STORAGE, the source is not exactly right or cannot be read.
    """
    begin_s = time.monotonic()
    if os.path.lexists(target):
        raise ReshardError(f"{target} is there already; name a folder that is not, or remove it first")
    _check_parents(target)
    _check_shards(architecture, layout, shards)
    weights = open_whole(source, architecture)
    if layout == "meta":
        plan = meta_files(architecture, weights, shards)
    else:
        plan = hugging_face_files(architecture, weights)
    ids = sequence_ids(source, bos_id, eos_ids)
    small = companions(source, architecture, layout, plan, ids)
    size_bytes = sum(file.size_bytes for file in plan)
    tensors = _Tensors(weights, allow_non_finite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target)
        _check_space(target.parent, size_bytes)
        with half_made(target) as made:
            _fill(made, tensors, plan, small, _Told(progress, 2 * size_bytes))
            copy = Checkpoint(made, made / source.tokenizer.name, layout, tuple(file.name for file in plan))
            open_whole(copy, architecture)
            if sequence_ids(copy, bos_id, eos_ids).eos != ids.eos:
                raise ReshardError(
                    f"{target}: its files would name other ends of sequence than those of {source.folder}"
                )
            made.rename(target)
        _flush(target.parent)
    except OSError as problem:
        raise ReshardError(
            f"{problem.filename or target}: {problem.strerror}; expected a folder that can be written, with "
            f"{size_words(size_bytes)} of space; nothing is left of the copy"
        ) from problem
    checkpoint = replace(copy, folder=target, tokenizer=target / copy.tokenizer.name)
    return Resharded(checkpoint, size_bytes, time.monotonic() - begin_s, tensors.non_finite)


class _Told:
    """Tells how far a copy is."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, size_bytes: int) -> None:
        self._done += size_bytes
        self._progress(self._done, self._total)


class _Tensors:
    """Reads whole tensors of the source, and looks for numbers that are infinite or none."""

    def __init__(self, weights: RankWeights, allow_non_finite: bool) -> None:
        self._weights, self._allows = weights, allow_non_finite
        self.names = weights.names
        self.non_finite: dict[str, int] = {}

    def read(self, name: str) -> Tensor:
        """A whole tensor as it is saved.

        Raises:
            ReshardError: a number is infinite or none, and none such is allowed.
        """
        whole = torch.empty(self._weights.shape(name), dtype=self._weights.dtype(name))
        self._weights.copy_to(name, whole)
        # Some at a time: looking takes memory of its own.
        finite = sum(int(some.isfinite().sum()) for some in torch.split(whole.view(-1), _LOOKED_AT))
        strange = whole.numel() - finite
        if strange and not self._allows:
            raise ReshardError(
                f"{name}: {strange} of {whole.numel()} numbers are infinite or none; expected a model that "
                "can run: get a clean copy of it, or copy them too with --allow-non-finite"
            )
        if strange:
            self.non_finite[name] = strange
        return whole


def _fill(
    folder: Path, source: _Tensors, plan: list[PlannedFile], small: dict[str, bytes], told: _Told
) -> None:
    """Write all files, read the weights back, and list the sums of all."""
    sums = {}
    for name, content in small.items():
        _write_small(folder / name, content)
        sums[name] = hashlib.sha256(content).hexdigest()
    written = _write(folder, source, plan, told)
    for file in plan:
        sums[file.name] = _read_back(folder / file.name, file, written[file.name], told)
    _write_small(folder / SUMS_FILE, manifest(sums))
    _flush(folder)


def _write(folder: Path, source: _Tensors, plan: list[PlannedFile], told: _Told) -> dict[str, list[bytes]]:
    """Write all files side by side and through to the disk, so that every tensor of the source is read once.

    Returns:
        SHA-256 of the header and of each tensor of each file, by the file's name.
    """
    sums: dict[str, list[bytes]] = {}
    with ExitStack() as stack:
        streams = [stack.enter_context((folder / file.name).open("xb", buffering=0)) for file in plan]
        for file, stream in zip(plan, streams, strict=True):
            sums[file.name] = [_write_bytes(stream, memoryview(file.header))]
            told.add(len(file.header))
        for name in source.names:
            _write_parts(name, source, list(zip(plan, streams, strict=True)), sums, told)
        for stream in streams:
            os.fsync(stream.fileno())
    return sums


def _write_parts(
    name: str,
    source: _Tensors,
    files: list[tuple[PlannedFile, FileIO]],
    sums: dict[str, list[bytes]],
    told: _Told,
) -> None:
    """Read a whole tensor and write what each file holds of it; it is forgotten before the next is read."""
    parts = [
        (file.name, tensor, stream)
        for file, stream in files
        for tensor in file.tensors
        if tensor.whole == name
    ]
    if not parts:
        return
    whole = source.read(name)
    for file_name, tensor, stream in parts:
        numbers = tensor.cut(whole).contiguous().view(-1).view(torch.uint8).numpy().data
        sums[file_name].append(_write_bytes(stream, numbers))
        told.add(tensor.size_bytes)


def _write_bytes(stream: FileIO, content: memoryview) -> bytes:
    """Write bytes, however many at a time; their SHA-256."""
    digest = hashlib.sha256(content).digest()
    while content:
        content = content[stream.write(content) :]
    return digest


def _read_back(path: Path, file: PlannedFile, written: list[bytes], told: _Told) -> str:
    """SHA-256 in hex of a file whose header and tensors the disk gives back as they were written.

    Raises:
        ReshardError: it does not.
    """
    names = ["its header", *(tensor.name for tensor in file.tensors)]
    sizes = [len(file.header), *(tensor.size_bytes for tensor in file.tensors)]
    whole = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        # What was written is on the disk; forget it in memory, so that the disk is read.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for name, size, sum_written in zip(names, sizes, written, strict=True):
            one = hashlib.sha256()
            left = size
            while left and (chunk := stream.read(min(left, _CHUNK_BYTES))):
                one.update(chunk)
                whole.update(chunk)
                left -= len(chunk)
            if one.digest() != sum_written:
                raise ReshardError(
                    f"{path.name}: {name}: the disk gave back other bytes than were written; "
                    "nothing is left of the copy: have the disk looked at, or use another"
                )
            told.add(size)
    return whole.hexdigest()


def _write_small(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _flush(folder: Path) -> None:
    """Make names in a folder last, where the file system knows how to."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_parents(target: Path) -> None:
    there = next(folder for folder in target.absolute().parents if os.path.lexists(folder))
    if not there.is_dir():
        raise ReshardError(f"{there} is no folder; expected one in which {target.name} can be made, or none")


def _check_shards(architecture: Architecture, layout: Layout, shards: int) -> None:
    if layout == "huggingface" and shards != 1:
        raise ReshardError(
            f"shards: {shards}: layout huggingface holds whole tensors, which any number of ranks reads; "
            "leave shards out"
        )
    allowed = architecture.allowed_shards()
    if shards not in allowed:
        raise ReshardError(
            f"shards: {shards}: the model does not split so; use one of {', '.join(map(str, allowed))}"
        )


def _check_space(folder: Path, size_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise ReshardError(
            f"{folder}: has {size_words(free)} of space, and the copy takes {size_words(size_bytes)}; "
            "free some, or name a folder on another disk"
        )
