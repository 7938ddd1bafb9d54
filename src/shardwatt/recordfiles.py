"""What all records share: typed, versioned, validated; read strictly and written atomically."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shardwatt.errors import RecordError
from shardwatt.mistakes import explain

#: Of every file that is written: 4 since a record says whether a model ran, or was simulated.
SchemaVersion = Literal[4]
SCHEMA_VERSION: SchemaVersion = 4


class RecordModel(BaseModel):
    """Base of what is written to disk: nothing unknown is accepted when it is read back."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=RecordModel)


def read(model: type[Kind], path: Path) -> Kind:
    """Read and validate a record.

    Raises:
        FileNotFoundError: there is none.
        RecordError: it is torn, of another schema version, or contradicts itself.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as problem:
        raise RecordError(f"{path}: torn or unreadable: {problem}") from None
    try:
        record = model.model_validate_json(text)
    except ValidationError as problem:
        raise RecordError(f"{path}: {_mistake(text, model, problem)}") from None
    if "schema_version" not in record.model_fields_set:
        raise RecordError(f"{path}: {_other_version(None)}")
    return record


def _mistake(text: bytes, model: type[RecordModel], problem: ValidationError) -> str:
    """What is wrong with a record that was refused, the likeliest cause first."""
    try:
        content = json.loads(text)
    except ValueError as torn:
        return f"torn or unreadable: {torn}"
    if isinstance(content, dict) and content.get("schema_version") != SCHEMA_VERSION:
        return _other_version(content.get("schema_version"))
    return explain(problem, model, content)


def _other_version(found: object) -> str:
    return f"schema version {found}; expected {SCHEMA_VERSION}"


def write(record: RecordModel, path: Path) -> None:
    """Write a record, whole or not at all.

    Raises:
        OSError: as of `replacing`.
    """
    write_whole(record.model_dump_json(indent=2) + "\n", path)


def write_whole(text: str, path: Path) -> None:
    """Write a text, whole or not at all.

    Raises:
        OSError: as of `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Let a file be written, whole or not at all: under the temporary name beside it that is yielded.

    When the block ends without an error, it is flushed to disk and renamed. Of several who write one file at
    a time, each has a temporary name of its own, and the last one's stays.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is as it was before.
    """
    # Numbers of processes would not do: containers and nodes have the same ones.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        yield temporary
        with temporary.open("rb+") as stream:  # whoever wrote it: what is flushed is the file's
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def show(record: RecordModel, path: Path) -> None:
    """Replace a file that is only looked at: never half written, but not flushed to disk.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(record.model_dump_json(), encoding="utf-8")
    temporary.replace(path)
