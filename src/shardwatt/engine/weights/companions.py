"""What lies beside the weights of a copy: shape, index, tokenizer, and which ids begin and end a sequence."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from shardwatt.architectures import Architecture, from_params
from shardwatt.checkpoints import GENERATION_FILE, INDEX_FILE, SHAPE_FILES, Layout, read_object
from shardwatt.engine.weights.planned import PlannedFile, ReshardError
from shardwatt.engine.weights.shapefile import config_of, params_of
from shardwatt.hfconfig import from_config
from shardwatt.models import Checkpoint, declared_eos_ids

#: Belong to a tokenizer, and mean the same in any layout.
_OF_TOKENIZERS = (
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
)


@dataclass(frozen=True, slots=True)
class SequenceIds:
    """Ids that begin and end a sequence.

    Attributes:
        bos: begins one; None where nothing says it.
        eos: end one; empty where nothing says them.
    """

    bos: int | None
    eos: frozenset[int]


def sequence_ids(checkpoint: Checkpoint, bos_id: int | None, eos_ids: Collection[int]) -> SequenceIds:
    """As runs take them: those that a checkpoint declares, otherwise its tokenizer's.

    Args:
        checkpoint: whose generation_config.json is looked at, then its shape's file.
        bos_id: the tokenizer's, where it is known.
        eos_ids: the tokenizer's, or none where they are not known.

    Raises:
        ModelError: one of the files cannot be read, or says something else than numbers.
    """
    declared = declared_eos_ids(checkpoint)
    for path in (checkpoint.folder / GENERATION_FILE, checkpoint.params):
        said = read_object(path).get("bos_token_id") if path.is_file() else None
        if type(said) is int:
            bos_id = said
            break
    return SequenceIds(bos_id, frozenset(eos_ids) if declared is None else declared)


def companions(
    source: Checkpoint, architecture: Architecture, layout: Layout, plan: list[PlannedFile], ids: SequenceIds
) -> dict[str, bytes]:
    """Contents of the files beside the weights of a copy, by name.

    Args:
        source: what is copied.
        architecture: its shape.
        layout: of the copy.
        plan: the copy's files of weights.
        ids: what begins and ends a sequence of the source; a copy says the same, also where the source's own
            files do not come along.

    Raises:
        ReshardError: the shape has no words in that layout, or a file cannot be read.
        ModelError: a file that says the shape or the ends cannot be read.
    """
    shape = _shape(source, architecture, layout, plan[0].tensors[0].dtype, ids)
    files = {SHAPE_FILES[layout]: _json(shape)}
    if layout == "huggingface" and len(plan) > 1:
        places = {tensor.name: file.name for file in plan for tensor in file.tensors}
        total = sum(tensor.size_bytes for file in plan for tensor in file.tensors)
        files[INDEX_FILE] = _json({"metadata": {"total_size": total}, "weight_map": places})
    beside = {name: source.folder / name for name in _OF_TOKENIZERS}
    beside |= {name: path for name in _OF_TOKENIZERS if (path := source.tokenizer.parent / name).is_file()}
    files |= {name: _read(path) for name, path in beside.items() if path.is_file()}
    files[source.tokenizer.name] = _read(source.tokenizer)
    generation = _generation(source, ids, is_said=layout == source.layout and _says_ends(shape))
    if generation is not None:
        files[GENERATION_FILE] = generation
    return files


def _generation(source: Checkpoint, ids: SequenceIds, *, is_said: bool) -> bytes | None:
    """The source's generation_config.json, and the ends where neither it nor another file says them.

    One that lies beside a tokenizer a folder up says nothing of this checkpoint.
    """
    path = source.folder / GENERATION_FILE
    content = read_object(path) if path.is_file() else None
    if is_said or not ids.eos or (content is not None and _says_ends(content)):
        return None if content is None else _read(path)
    said = {name: value for name, value in (content or {}).items() if value is not None}
    begin = {} if ids.bos is None else {"bos_token_id": ids.bos}
    return _json({**begin, **said, "eos_token_id": _one_or_all(ids.eos)})


def _says_ends(content: dict[str, Any]) -> bool:
    return content.get("eos_token_id") is not None


def _shape(
    source: Checkpoint, architecture: Architecture, layout: Layout, dtype: torch.dtype, ids: SequenceIds
) -> dict[str, Any]:
    """The file that says the shape: the source's own, or the shape in the other layout's words."""
    if layout == source.layout:
        return read_object(source.params)
    if layout == "meta":
        content = params_of(architecture)
        said = from_params(content)
    else:
        # Without the two, transformers would take LLaMA 1's.
        ends = _one_or_all(ids.eos) if ids.eos else None
        content = config_of(architecture, dtype) | {"bos_token_id": ids.bos, "eos_token_id": ends}
        said = from_config(content)
    lost = [
        field.name
        for field in fields(architecture)
        if getattr(said, field.name) != getattr(architecture, field.name)
    ]
    if lost:
        raise ReshardError(
            f"{SHAPE_FILES[layout]} has no words for this model's {', '.join(lost)}; "
            f"use layout {source.layout}, which it has now"
        )
    return content


def _one_or_all(ids: frozenset[int]) -> int | list[int]:
    """As transformers writes them."""
    one, *more = sorted(ids)
    return [one, *more] if more else one


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise ReshardError(f"{path}: cannot be read: {problem.strerror}") from problem


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()
