"""Which tensors a checkpoint should hold, in either layout, and what its files hold instead; without torch.

Only what the files say of themselves is read. `shardwatt.engine.weights` checks the same and more when ranks
open them; here it shows in the plan.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from shardwatt.architectures import Architecture
from shardwatt.checkpoints import INDEX_FILE, SHAPE_FILES, WHOLE_FILE, Checkpoint, ModelError, read_object
from shardwatt.tensorheaders import TensorHeader, saved_headers

EMBEDDING = "tok_embeddings.weight"
OUTPUT = "output.weight"

#: Computed from the shape and not read: of Meta's files, and of files of old versions of transformers.
_DROPPED = re.compile(r"rope\.freqs|model\.layers\.[0-9]+\.self_attn\.rotary_emb\.inv_freq")

#: Types that weights may be saved in.
_TYPES = ("fp64", "fp32", "fp16", "bf16")

#: Over what Meta's shards split a tensor: not at all, its first or its second dimension, or KV heads.
Split = Literal["none", "rows", "columns", "heads"]

_LISTED = 4

_Headers = Mapping[str, TensorHeader]


class WholeTensor(NamedTuple):
    """A tensor that a shape implies.

    Attributes:
        name: in Meta's layout.
        theirs: in transformers'.
        shape: unsplit: [outputs, inputs], or [dim] of a norm.
        split: over Meta's shards.
    """

    name: str
    theirs: str
    shape: tuple[int, ...]
    split: Split


def whole_tensors(architecture: Architecture) -> Iterator[WholeTensor]:
    """Every tensor of a model, in the order of a forward pass; the output layer also where it is tied."""
    dim, hidden, vocabulary = architecture.dim, architecture.hidden_dim, architecture.vocab_size
    queries, keys = architecture.q_dim, architecture.n_kv_heads * architecture.head_dim
    block: tuple[tuple[str, str, tuple[int, ...], Split], ...] = (
        ("attention_norm", "input_layernorm", (dim,), "none"),
        ("attention.wq", "self_attn.q_proj", (queries, dim), "rows"),
        ("attention.wk", "self_attn.k_proj", (keys, dim), "heads"),
        ("attention.wv", "self_attn.v_proj", (keys, dim), "heads"),
        ("attention.wo", "self_attn.o_proj", (dim, queries), "columns"),
        ("ffn_norm", "post_attention_layernorm", (dim,), "none"),
        ("feed_forward.w1", "mlp.gate_proj", (hidden, dim), "rows"),
        ("feed_forward.w3", "mlp.up_proj", (hidden, dim), "rows"),
        ("feed_forward.w2", "mlp.down_proj", (dim, hidden), "columns"),
    )
    yield WholeTensor(EMBEDDING, "model.embed_tokens.weight", (vocabulary, dim), "columns")
    for layer in range(architecture.n_layers):
        for name, theirs, shape, split in block:
            yield WholeTensor(
                f"layers.{layer}.{name}.weight", f"model.layers.{layer}.{theirs}.weight", shape, split
            )
    yield WholeTensor("norm.weight", "model.norm.weight", (dim,), "none")
    yield WholeTensor(OUTPUT, "lm_head.weight", (vocabulary, dim), "rows")


def shard_shape(
    architecture: Architecture, tensor: WholeTensor, shards: int, *, embedding_by_rows: bool = False
) -> tuple[int, ...]:
    """Shape of a tensor's part in each of so many shards of Meta's layout.

    Args:
        architecture: the model's shape.
        tensor: one of `whole_tensors`.
        shards: one of `architecture.allowed_shards()`; above the number of KV heads several hold the same.
        embedding_by_rows: split the embedding by vocabulary, as LLaMA 3 is saved, instead of by width.
    """
    split = "rows" if tensor.name == EMBEDDING and embedding_by_rows else tensor.split
    if split == "none":
        return tensor.shape
    rows, columns = tensor.shape
    if split == "heads":
        return architecture.kv_heads_per_shard(shards) * architecture.head_dim, columns
    return (rows // shards, columns) if split == "rows" else (rows, columns // shards)


def embedding_rows(weight_files: Collection[Path], dim: object) -> int | None:
    """Rows of the embedding in Meta's layout, from the first file's header; None where that cannot be had.

    Args:
        weight_files: all of the checkpoint's, since some shards split the rows.
        dim: width of the model.
    """
    try:
        embedding = saved_headers(next(iter(weight_files))).get(EMBEDDING)
    except (ModelError, OSError, StopIteration):
        return None
    if embedding is None or len(embedding.shape) != 2:
        return None
    rows, columns = embedding.shape
    return rows * len(weight_files) if columns == dim else rows


def tensor_problems(checkpoint: Checkpoint, architecture: Architecture | None) -> list[str]:
    """What is wrong with the names, shapes and types of a checkpoint's tensors; nothing where all is right.

    Args:
        checkpoint: its files; headers are read once a process while they do not change.
        architecture: the model's shape; None where it is not known, and files are only looked at for damage.
    """
    files: dict[Path, _Headers] = {}
    problems = []
    for path in checkpoint.weight_files:
        try:
            found = saved_headers(path)
        except ModelError as problem:
            problems.append(str(problem))
        except OSError as problem:
            problems.append(f"{path}: cannot be read: {problem.strerror}")
        else:
            files[path] = {name: header for name, header in found.items() if not _DROPPED.fullmatch(name)}
    if problems or architecture is None:
        return problems  # what the others should hold shows when all can be read
    check = _meta_problems if checkpoint.layout == "meta" else _hugging_face_problems
    return list(check(checkpoint, architecture, files))


def _meta_problems(
    checkpoint: Checkpoint, architecture: Architecture, files: Mapping[Path, _Headers]
) -> Iterator[str]:
    count, first = len(files), next(iter(files))
    if problem := _wrong_count(checkpoint, architecture, files[first]):
        yield problem
        return
    embedding = files[first].get(EMBEDDING)
    by_rows = count > 1 and embedding is not None and embedding.shape[1:] == (architecture.dim,)
    expected = {
        tensor.name: shard_shape(architecture, tensor, count, embedding_by_rows=by_rows)
        for tensor in whole_tensors(architecture)
    }
    if architecture.tied_embeddings and OUTPUT not in files[first]:
        del expected[OUTPUT]
    for path, found in files.items():
        yield from _name_problems(path, found, expected, checkpoint)
        yield from _shape_problems(path, found, expected, "of this shard")
        yield from _type_problems(path, found)
        differing = [
            f"{name}: found {found[name].dtype}, expected {header.dtype} as in {first.name}"
            for name, header in files[first].items()
            if name in found and found[name].dtype != header.dtype
        ]
        yield from _first_of(path, differing)


def _wrong_count(checkpoint: Checkpoint, architecture: Architecture, found: _Headers) -> str | None:
    """Too few files, or too many: two matrices of the first say of how many it is one."""
    count = len(checkpoint.weights)
    shares = {
        whole / found[name].shape[0] if name in found and found[name].shape[:1] > (0,) else None
        for name, whole in (
            ("layers.0.attention.wq.weight", architecture.q_dim),
            ("layers.0.feed_forward.w1.weight", architecture.hidden_dim),
        )
    }
    saved = shares.pop() if len(shares) == 1 else None
    allowed = architecture.allowed_shards()
    if saved is not None and saved != count and saved in allowed:
        words = (
            "the download is not complete: fetch what is missing"
            if count < saved
            else "take away those that are not this checkpoint's"
        )
        return (
            f"{checkpoint.folder}: found {count} file{'' if count == 1 else 's'} of weights, and the shapes "
            f"in {checkpoint.weights[0]} are those of one of {saved:.0f}; {words}"
        )
    if count not in allowed:
        return (
            f"{checkpoint.folder}: found {count} files of weights, and its shape splits over "
            f"{', '.join(map(str, allowed))}; expected the files of all its shards, and no others"
        )
    return None


def _hugging_face_problems(
    checkpoint: Checkpoint, architecture: Architecture, files: Mapping[Path, _Headers]
) -> Iterator[str]:
    places: dict[str, Path] = {}
    for path, found in files.items():
        if twice := sorted(places.keys() & found.keys()):
            yield f"{path}: {_named(twice)} found, and also in {places[twice[0]].name}; get a clean copy"
        places |= dict.fromkeys(found, path)
    wrong_places = list(_index_problems(checkpoint, files))
    yield from wrong_places
    if wrong_places:
        return
    expected = {tensor.theirs: tensor.shape for tensor in whole_tensors(architecture)}
    there = {name: header for found in files.values() for name, header in found.items()}
    if architecture.tied_embeddings and "lm_head.weight" not in there:
        del expected["lm_head.weight"]
    place = next(iter(files)) if len(files) == 1 else checkpoint.folder
    yield from _name_problems(place, there, expected, checkpoint)
    for path, found in files.items():
        yield from _shape_problems(path, found, expected, f"that {checkpoint.params.name} implies")
        yield from _type_problems(path, found)


def _index_problems(checkpoint: Checkpoint, files: Mapping[Path, _Headers]) -> Iterator[str]:
    """Tensors that lie in another file than the index says, where there is one."""
    path = checkpoint.folder / INDEX_FILE
    if checkpoint.weights == (WHOLE_FILE,) or not path.is_file():
        return
    places = read_object(path).get("weight_map")
    if not isinstance(places, dict):
        yield f"{path}: weight_map: expected the file of each tensor; get a clean copy"
        return
    for file, found in files.items():
        said = {name for name, place in places.items() if place == file.name and not _DROPPED.fullmatch(name)}
        if wrong := sorted(said ^ found.keys()):
            there = "not found" if wrong[0] in said else "found"
            yield f"{file}: {_named(wrong)} {there}, and {INDEX_FILE} says otherwise; get a clean copy"


def _name_problems(
    place: Path, found: _Headers, expected: Collection[str], checkpoint: Checkpoint
) -> Iterator[str]:
    missing = [name for name in expected if name not in found]
    extra = sorted(found.keys() - set(expected))
    parts = [
        f"{_named(names)} {words}"
        for names, words in ((missing, "missing"), (extra, "not expected"))
        if names
    ]
    if parts:
        shape_file = SHAPE_FILES[checkpoint.layout]
        yield f"{place}: {'; '.join(parts)}; expected the {len(expected)} tensors that {shape_file} implies"


def _shape_problems(
    path: Path, found: _Headers, expected: Mapping[str, tuple[int, ...]], of_what: str
) -> Iterator[str]:
    yield from _first_of(
        path,
        [
            f"{name}: found shape {list(header.shape)}, expected {list(expected[name])} {of_what}"
            for name, header in found.items()
            if name in expected and header.shape != expected[name]
        ],
    )


def _type_problems(path: Path, found: _Headers) -> Iterator[str]:
    yield from _first_of(
        path,
        [
            f"{name}: found numbers of type {header.dtype}, expected floating-point ones: {', '.join(_TYPES)}"
            for name, header in found.items()
            if header.dtype not in _TYPES
        ],
    )


def _first_of(path: Path, problems: list[str]) -> Iterator[str]:
    """The first of many alike, and how many there are."""
    if problems:
        more = f"; {len(problems) - 1} more tensors are like that" if len(problems) > 1 else ""
        yield f"{path}: {problems[0]}{more}"


def _named(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more
