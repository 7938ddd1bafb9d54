"""The Parquet files of a cell: one declared schema each, with units, checked when written and read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from shardwatt.errors import RecordError
from shardwatt.recordfiles import SCHEMA_VERSION


def _field(name: str, kind: pa.DataType, unit: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"unit": unit})


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": str(SCHEMA_VERSION)})


RESPONSES = _schema(
    _field("prompt_id", pa.string(), "dataset-position"),
    _field("batch", pa.int32(), "index"),
    _field("prompt_tokens", pa.int32(), "tokens"),
    _field("output_tokens", pa.int32(), "tokens"),
    _field("words", pa.int32(), "words"),
    _field("finish", pa.string(), "eos, length or context"),
    _field("text", pa.string(), "text"),
)
"""responses.parquet: a row a prompt, in the order in which they were answered."""

BATCHES = _schema(
    _field("batch", pa.int32(), "index"),
    _field("rows", pa.int32(), "prompts"),
    _field("start_s", pa.float64(), "s since the window began"),
    _field("stop_s", pa.float64(), "s since the window began"),
    _field("prefill_s", pa.float64(), "s"),
    _field("walk_s", pa.float64(), "s"),
    _field("decode_s", pa.float64(), "s"),
    _field("prompt_tokens", pa.int64(), "tokens"),
    _field("output_tokens", pa.int64(), "tokens"),
    _field("generated_tokens", pa.int64(), "tokens"),
    _field("words", pa.int64(), "words"),
    _field("energy_j", pa.float64(), "J", nullable=True),
    _field("prefill_j", pa.float64(), "J", nullable=True),
    _field("walk_j", pa.float64(), "J", nullable=True),
    _field("decode_j", pa.float64(), "J", nullable=True),
)
"""batches.parquet: a row a batch; joules are null where energy is unknown, and where the batch or the
phase is shorter than the meter can resolve."""

POWER = _schema(
    _field("t_s", pa.float64(), "s since the window began; negative before it"),
    _field("node", pa.string(), "host name"),
    _field("device", pa.int32(), "index on its node"),
    _field("uuid", pa.string(), "id", nullable=True),
    _field("power_w", pa.float64(), "W", nullable=True),
    _field("power_average_w", pa.float64(), "W over the driver's own averaging time", nullable=True),
    _field("counter_j", pa.float64(), "J since the counter's own zero", nullable=True),
    _field("sm_utilisation", pa.float64(), "share", nullable=True),
    _field("memory_activity", pa.float64(), "share", nullable=True),
    _field("memory_filled", pa.float64(), "share", nullable=True),
    _field("cpu_utilisation", pa.float64(), "share", nullable=True),
    _field("clock_sm_mhz", pa.float64(), "MHz", nullable=True),
    _field("clock_memory_mhz", pa.float64(), "MHz", nullable=True),
    _field("temperature_c", pa.float64(), "degrees Celsius", nullable=True),
    _field("throttle_reasons", pa.int64(), "NVML's bits", nullable=True),
)
"""power.parquet: a row a sample and device, over the whole job."""

SCHEMAS = {
    "responses.parquet": RESPONSES,
    "batches.parquet": BATCHES,
    "power.parquet": POWER,
}

#: A column of a part: [rows], or one value for all of them.
Column = npt.NDArray[np.float64] | str | int | None


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], form: str | None = None) -> None:
    """Write rows under the schema that belongs to the file's name, or to the one whose form it has.

    Raises:
        pyarrow.ArrowInvalid: a row does not fit the schema; a defect of the caller.
        OSError: the disk is full or the folder cannot be written.
    """
    schema = SCHEMAS[form or path.name]
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise pa.ArrowInvalid(f"{path.name} has no columns {', '.join(sorted(unknown))}")
    table = pa.Table.from_pylist(list(rows), schema=schema)
    table.validate(full=True)
    pq.write_table(table, path, compression="zstd")


def write_columns(path: Path, parts: Iterable[Mapping[str, Column]]) -> None:
    """Write columns under the schema that belongs to the file's name, part after part: what is in memory
    beside the caller's own arrays is one part.

    Args:
        path: where to.
        parts: a column's name -> [rows], NaN for unknown, or one value for all rows of the part; every
            column of the schema, and at least one array.

    Raises:
        pyarrow.ArrowInvalid: a part does not fit the schema; a defect of the caller.
        OSError: the disk is full or the folder cannot be written.
    """
    schema = SCHEMAS[path.name]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in parts:
            if set(part) != set(schema.names):
                differing = ", ".join(sorted(set(part) ^ set(schema.names)))
                raise pa.ArrowInvalid(f"{path.name} and its columns differ in {differing}")
            (rows,) = {len(column) for column in part.values() if isinstance(column, np.ndarray)}
            columns = [_array(part[field.name], field.type, rows) for field in schema]
            writer.write_table(pa.table(columns, schema=schema))


def _array(column: Column, kind: pa.DataType, rows: int) -> pa.Array:
    if isinstance(column, np.ndarray):
        return pa.array(column, from_pandas=True).cast(kind)
    return pa.repeat(pa.scalar(column, kind), rows)


def read_table(path: Path) -> pa.Table:
    """Read a cell's Parquet file.

    Raises:
        RecordError: it is missing, torn, or of another schema.
    """
    expected = SCHEMAS[path.name]
    try:
        # In a thread of its own, a small file takes longer.
        table = pq.ParquetFile(path).read(use_threads=False)
    except (OSError, pa.ArrowException) as problem:
        raise RecordError(f"{path}: torn or unreadable: {problem}") from None
    version = (table.schema.metadata or {}).get(b"schema_version", b"none").decode(errors="replace")
    if version != str(SCHEMA_VERSION):
        raise RecordError(f"{path}: schema version {version}; expected {SCHEMA_VERSION}")
    if not table.schema.equals(expected):
        raise RecordError(f"{path}: {_differences(table.schema, expected)}")
    return table


def _differences(found: pa.Schema, expected: pa.Schema) -> str:
    """What tells two schemas apart, in words."""
    there, wanted = ([_declared(field) for field in schema] for schema in (found, expected))
    unexpected = ", ".join(column for column in there if column not in wanted)
    missing = ", ".join(column for column in wanted if column not in there)
    if not unexpected and not missing:
        return f"columns in the order {', '.join(found.names)}; expected {', '.join(expected.names)}"
    return f"unexpected columns: {unexpected or 'none'}; missing columns: {missing or 'none'}"


def _declared(field: pa.Field) -> str:
    return f"{field.name} {field.type}{' or null' if field.nullable else ''}"
