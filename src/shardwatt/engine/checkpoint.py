"""Reading a checkpoint in Meta's layout, strictly: no tensor missing, none extra, every shape right."""

from __future__ import annotations

import ctypes
import mmap
import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from shardwatt.engine.failures import torch_failures
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Recomputed from the shape of the model, so not read.
DROPPED = frozenset({"rope.freqs"})

_EMBEDDING = "tok_embeddings.weight"
_SHOWN = 4


@torch_failures()
def load_weights(
    model: nn.Module,
    checkpoint: Checkpoint,
    *,
    rank: int,
    ranks: int,
    precision: str,
    device: str,
    vocab_size: int,
) -> None:
    """Give a model on the meta device this rank's weights.

    The shard file is mapped, and copied tensor by tensor into the wanted precision and place; pages
    that have been copied are given back, so that resident memory stays at about one shard.

    Args:
        model: its parameters say which tensors and shapes are expected.
        checkpoint: where the shard files lie.
        rank: this rank's model-parallel rank; it reads consolidated.RANK.pth.
        ranks: how many shards the run has.
        precision: `fp32`, `bf16` or `fp16`.
        device: `cpu` or `cuda:N`.
        vocab_size: pieces of the tokenizer.

    Raises:
        CellFailure: BAD_CHECKPOINT, or BAD_TOKENIZER where the embedding has another number of rows;
            names the file, the tensor, what was found and what was expected.
        DoesNotFit: the weights alone are too large for the device.
    """
    if checkpoint.shards != ranks:
        raise _bad(
            checkpoint.folder, f"is saved in {checkpoint.shards} shards, and the run has {ranks}; use as many"
        )
    path = checkpoint.shard_files[rank]
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = _map(path)
    _check_vocabulary(path, found, checkpoint.tokenizer, vocab_size)
    _check_tensors(path, found, expected)
    weights = {}
    for name in expected:
        source = found.pop(name)
        weights[name] = torch.empty(source.shape, dtype=DTYPES[precision], device=device).copy_(source)
        _give_back(source)
    model.load_state_dict(weights, strict=True, assign=True)
    model.requires_grad_(False)


def _map(path: Path) -> dict[str, Tensor]:
    """Map a shard file; its tensors without those that are recomputed.

    Only tensors and plain containers are unpickled (weights_only): a file cannot run code.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from error
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise _bad(
            path, "holds something other than tensors, and was not opened any further; get a clean copy"
        ) from error
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise _bad(path, f"is truncated or no checkpoint ({reason}); get a clean copy") from error
    if not isinstance(content, dict):
        raise _bad(path, f"expected tensors by name, found {type(content).__name__}")
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise _bad(path, f"expected tensors alone, found {_listed(strangers)} of another kind")
    return {name: tensor for name, tensor in content.items() if name not in DROPPED}


def _check_vocabulary(path: Path, found: dict[str, Tensor], tokenizer: Path, vocab_size: int) -> None:
    embedding = found.get(_EMBEDDING)
    if embedding is not None and embedding.dim() == 2 and embedding.shape[0] != vocab_size:
        raise CellFailure(
            Reason.BAD_TOKENIZER,
            f"{tokenizer}: has {vocab_size} pieces, and {_EMBEDDING} in {path} has "
            f"{embedding.shape[0]} rows; expected as many; put the model's own tokenizer there",
        )


def _check_tensors(path: Path, found: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if missing or extra:
        parts = [
            f"{_listed(names)} {words}"
            for names, words in ((missing, "missing"), (extra, "not expected"))
            if names
        ]
        raise _bad(path, f"{'; '.join(parts)}; expected the {len(expected)} tensors that params.json implies")
    for name, shape in expected.items():
        tensor = found[name]
        if tuple(tensor.shape) != shape:
            raise _bad(
                path, f"{name}: found shape {list(tensor.shape)}, expected {list(shape)} of this shard"
            )
        if not tensor.is_floating_point():
            raise _bad(path, f"{name}: found {tensor.dtype}, expected floating-point numbers")


def _give_back(tensor: Tensor) -> None:
    """Drop the mapped pages of a tensor that has been copied; the kernel would read them again if asked."""
    storage = tensor.untyped_storage()
    first = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = storage.data_ptr() + storage.nbytes() - first
    if size >= mmap.PAGESIZE:
        # Advice only: where it fails, the pages count as resident until the file is unmapped.
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), ctypes.c_int(mmap.MADV_DONTNEED))


def _bad(path: Path, problem: str) -> CellFailure:
    return CellFailure(Reason.BAD_CHECKPOINT, f"{path}: {problem}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
