"""What is expected of a checkpoint's tensors; whatever is wrong is named in one message."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from shardwatt.engine.weights.saved import SavedTensor, bad, listed
from shardwatt.engine.weights.slices import EMBEDDING
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint


def check_names(path: Path, found: Iterable[str], expected: Collection[str], shape_file: Path) -> None:
    """Every name is expected, and every expected name is there.

    Args:
        path: the file, or the folder of several files that make up one.
        found: names in it.
        expected: names that should be in it.
        shape_file: what implies the expected ones.

    Raises:
        CellFailure: BAD_CHECKPOINT.
    """
    there = set(found)
    missing = [name for name in expected if name not in there]
    extra = sorted(there.difference(expected))
    if missing or extra:
        parts = [
            f"{listed(names)} {words}"
            for names, words in ((missing, "missing"), (extra, "not expected"))
            if names
        ]
        raise bad(
            path, f"{'; '.join(parts)}; expected the {len(expected)} tensors that {shape_file.name} implies"
        )


def check_shape(tensor: SavedTensor, expected: tuple[int, ...], of_what: str) -> None:
    """A tensor has the shape that is expected.

    Raises:
        CellFailure: BAD_CHECKPOINT.
    """
    if tensor.shape != expected:
        raise bad(
            tensor.file.path,
            f"{tensor.name}: found shape {list(tensor.shape)}, expected {list(expected)} {of_what}",
        )


def check_vocabulary(checkpoint: Checkpoint, embedding: SavedTensor, rows: int, pieces: int) -> None:
    """The embedding has a row for each piece of the tokenizer.

    Whether it may have more was decided with the tokenizer itself, before the run.

    Args:
        checkpoint: which has the tokenizer.
        embedding: any file's part of it.
        rows: of the whole embedding.
        pieces: of the tokenizer.

    Raises:
        CellFailure: BAD_TOKENIZER.
    """
    if rows >= pieces:
        return
    raise CellFailure(
        Reason.BAD_TOKENIZER,
        f"{checkpoint.tokenizer}: has {pieces} pieces, and {EMBEDDING} in {embedding.file.path} has "
        f"{rows} rows; expected no fewer rows: put the model's own tokenizer there",
    )
