"""Meta's layout: a file for each shard that a checkpoint was saved in, under Meta's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights.copies import expect_same
from shardwatt.engine.weights.safetensorsfile import read_safetensors
from shardwatt.engine.weights.saved import Part, SavedTensor, bad
from shardwatt.engine.weights.slices import EMBEDDING, OUTPUT, ROPE_FREQUENCIES, slice_of, whole_shapes
from shardwatt.engine.weights.strict import check_names, check_shape, check_vocabulary
from shardwatt.engine.weights.torchfile import read_torch

_READERS: dict[str, Callable[[Path], dict[str, SavedTensor]]] = {
    ".pth": read_torch,
    ".safetensors": read_safetensors,
}


def meta_parts(model: ModelOnRank) -> dict[str, list[Part]]:
    """Where the parts of each tensor lie, after every tensor of every file was accounted for.

    Every shard holds the norms, and where there are more of them than key and value heads, several hold the
    same head: such parts have the same place. Norms are compared: each rank reads its share of the copies.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER or STORAGE.
    """
    architecture, checkpoint = model.architecture, model.checkpoint
    files, count = checkpoint.weight_files, len(checkpoint.weights)
    allowed = architecture.allowed_shards()
    if count not in allowed:
        raise bad(
            checkpoint.folder,
            f"is saved in {count} shards, and its shape splits over {', '.join(map(str, allowed))}; "
            "expected the files of all its shards, and no others",
        )
    shards = [_read(path) for path in files]
    embedding = shards[0].get(EMBEDDING)
    by_rows = False
    if embedding is not None and len(embedding.shape) == 2:
        # LLaMA 3 splits the embedding by vocabulary, the others by width.
        by_rows = count > 1 and embedding.shape[1] == architecture.dim
        rows = embedding.shape[0] * (count if by_rows else 1)
        check_vocabulary(checkpoint, embedding, rows, model.vocab_size)

    expected = whole_shapes(architecture)
    if architecture.tied_embeddings and OUTPUT not in shards[0]:
        del expected[OUTPUT]
    parts: dict[str, list[Part]] = {name: [] for name in expected}
    for shard, (path, found) in enumerate(zip(files, shards, strict=True)):
        check_names(path, found, expected, checkpoint.params)
        for name, tensor in found.items():
            place = slice_of(architecture, name, shard, count, embedding_by_rows=by_rows)
            shape = (len(place.rows), len(place.columns))[2 - len(expected[name]) :]
            check_shape(tensor, shape, "of this shard")
            first = shards[0][name]
            if tensor.dtype != first.dtype:
                raise bad(
                    path, f"{name}: found {tensor.dtype}, expected {first.dtype} as in {first.file.path.name}"
                )
            parts[name].append(Part(tensor, 0, place))
    for name, copies in parts.items():
        if len(expected[name]) == 1:
            expect_same(part.tensor for part in [copies[0], *copies[1 + model.rank :: model.ranks]])
    return parts


def _read(path: Path) -> dict[str, SavedTensor]:
    """Tensors of a shard file, without those that are recomputed."""
    read = _READERS.get(path.suffix)
    if read is None:
        raise bad(path, f"expected a file whose name ends in {' or '.join(_READERS)}")
    return {name: tensor for name, tensor in read(path).items() if name != ROPE_FREQUENCIES}
