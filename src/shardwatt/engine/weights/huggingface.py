"""The layout of transformers: whole tensors in safetensors files, and an index where they are several."""

from __future__ import annotations

import re

from shardwatt.architectures import Architecture
from shardwatt.checkpoints import INDEX_FILE, WHOLE_FILE, ModelError, read_object
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights.safetensorsfile import read_safetensors
from shardwatt.engine.weights.saved import Part, SavedTensor, bad, listed
from shardwatt.engine.weights.slices import EMBEDDING, OUTPUT, Slice, tensors_of
from shardwatt.engine.weights.strict import check_names, check_shape, check_vocabulary
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint

#: Saved by old versions of transformers, and recomputed from the shape of the model.
_DROPPED = re.compile(r"model\.layers\.[0-9]+\.self_attn\.rotary_emb\.inv_freq")


def rotated_heads(architecture: Architecture, name: str) -> int | None:
    """Heads of a tensor whose rows transformers orders otherwise; None where the order is the same.

    Rotary embeddings turn pairs of rows: Meta has pair j of a head in rows 2j and 2j + 1, transformers in
    rows j and D/2 + j (its convert_llama_weights_to_hf.py).
    """
    part = name.removesuffix(".weight").rpartition(".")[2]
    return {"wq": architecture.n_heads, "wk": architecture.n_kv_heads}.get(part)


def hugging_face_parts(model: ModelOnRank) -> dict[str, list[Part]]:
    """Where the parts of each tensor lie, after every tensor of every file was accounted for.

    Raises:
        CellFailure: BAD_CHECKPOINT, BAD_TOKENIZER or STORAGE.
    """
    architecture, checkpoint = model.architecture, model.checkpoint
    found = _read(checkpoint)
    tensors = tensors_of(architecture)
    embedding = found.get(tensors[EMBEDDING].theirs)
    if embedding is not None and len(embedding.shape) == 2:
        check_vocabulary(checkpoint, embedding, embedding.shape[0], model.vocab_size)

    expected = {tensor.theirs: tensor for tensor in tensors.values()}
    if architecture.tied_embeddings and tensors[OUTPUT].theirs not in found:
        del expected[tensors[OUTPUT].theirs]
    place = checkpoint.weight_files[0] if len(checkpoint.weights) == 1 else checkpoint.folder
    check_names(place, found, expected, checkpoint.params)
    parts = {}
    for theirs, (name, _, shape, _) in expected.items():
        check_shape(found[theirs], shape, f"that {checkpoint.params.name} implies")
        parts[name] = _parts(found[theirs], rotated_heads(architecture, name))
    return parts


def _parts(tensor: SavedTensor, heads: int | None) -> list[Part]:
    """A whole tensor, or each half of each head whose pairs of rows are apart."""
    columns = range(tensor.shape[-1])
    rows = range(tensor.shape[0] if len(tensor.shape) == 2 else 1)
    if heads is None:
        return [Part(tensor, 0, Slice(rows, columns))]
    size = len(rows) // heads
    return [
        Part(tensor, start + half * size // 2, Slice(rows[start + half : start + size : 2], columns))
        for start in range(0, len(rows), size)
        for half in (0, 1)
    ]


def _read(checkpoint: Checkpoint) -> dict[str, SavedTensor]:
    """Tensors of all files; each is in one file, and in the one that the index says."""
    index = _index(checkpoint)
    tensors: dict[str, SavedTensor] = {}
    for path in checkpoint.weight_files:
        found = {
            name: tensor for name, tensor in read_safetensors(path).items() if not _DROPPED.fullmatch(name)
        }
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise bad(path, f"{listed(twice)} found, and also in {tensors[twice[0]].file.path.name}")
        tensors |= found
        if index is not None:
            said = {name for name, file in index.items() if file == path.name}
            wrong = sorted(said ^ found.keys())
            if wrong:
                there = "not found" if wrong[0] in said else "found"
                raise bad(path, f"{listed(wrong)} {there}, and {INDEX_FILE} says otherwise; get a clean copy")
    return tensors


def _index(checkpoint: Checkpoint) -> dict[str, str] | None:
    """The file of each tensor, where an index says so; the checkpoint's files were found by it."""
    path = checkpoint.folder / INDEX_FILE
    if checkpoint.weights == (WHOLE_FILE,) or not path.is_file():
        return None
    try:
        places = read_object(path).get("weight_map")
    except ModelError as problem:
        raise CellFailure(Reason.BAD_CHECKPOINT, str(problem)) from problem
    if not isinstance(places, dict):
        raise bad(path, "expected `weight_map`: the name of a file for the name of each tensor")
    other = sorted(set(map(str, places.values())) ^ set(checkpoint.weights))
    if other:
        raise bad(
            path,
            f"does not agree with the files that were found, on "
            f"{listed([*map(repr, other)])}: it has changed since; let what changes the checkpoint end, "
            "and run again",
        )
    return {name: file for name, file in places.items() if not _DROPPED.fullmatch(name)}
