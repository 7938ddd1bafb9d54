"""Writing and reading a tidy table: NAME.parquet and NAME.csv of the same frame, under declared columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shardwatt.analysis.columns import Column, schema_of
from shardwatt.errors import RecordError
from shardwatt.recordfiles import replacing


def frame_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> pd.DataFrame:
    """Rows under their columns, in order; what a row does not have is null, what is no column is left out."""
    return pd.DataFrame(
        {
            column.name: pd.array([row.get(column.name) for row in rows], dtype=column.dtype)
            for column in columns
        }
    )


def write_tidy(frame: pd.DataFrame, columns: Sequence[Column], folder: Path, name: str) -> list[Path]:
    """Write NAME.parquet and NAME.csv, each whole or not at all, and return their paths.

    In the CSV a null is an empty field.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parquet, csv = folder / f"{name}.parquet", folder / f"{name}.csv"
    schema = schema_of(columns)
    table = pa.Table.from_pandas(frame, schema=schema, preserve_index=False).replace_schema_metadata(
        schema.metadata
    )
    with replacing(parquet) as path:
        pq.write_table(table, path, compression="zstd")
    with replacing(csv) as path:
        frame.to_csv(path, index=False, date_format="%Y-%m-%dT%H:%M:%SZ", lineterminator="\n")
    return [parquet, csv]


def read_tidy(path: Path, columns: Sequence[Column]) -> pd.DataFrame:
    """Read a Parquet file as `write_tidy` wrote it.

    Raises:
        RecordError: it is missing, torn, or of another schema.
    """
    try:
        table = pq.ParquetFile(path).read()
    except (OSError, pa.ArrowException) as problem:
        raise RecordError(f"{path}: missing, torn or unreadable: {problem}; aggregate again") from None
    if not table.schema.equals(schema_of(columns)):
        raise RecordError(f"{path}: made with other columns than this version's; aggregate again")
    frame = pd.DataFrame(
        {column.name: table.column(column.name).to_pylist() for column in columns}, dtype=object
    )
    return frame.astype({column.name: column.dtype for column in columns})
