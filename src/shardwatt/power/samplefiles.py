"""The files that a node's sampler writes, and how they are read back: `meter-K.json`, `samples-K.csv`,
`power-now-K.json` for node K of the job."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from shardwatt.errors import RecordError
from shardwatt.power.protocol import Sample
from shardwatt.records import SCHEMA_VERSION, Device, Method, RecordModel, Status

#: Columns of `samples-K.csv`: the fields of a sample, in their order and units; empty for unknown.
COLUMNS = tuple(field.name for field in fields(Sample))


class MeterFile(RecordModel):
    """The contents of meter-K.json, written once the first sample is on disk."""

    schema_version: Literal[1] = SCHEMA_VERSION
    node: str
    """Host name."""
    method: Method | None
    status: Status
    detail: str | None
    devices: list[Device]
    period_s: Annotated[float, Field(gt=0)]
    """Time in s between samples that was asked for."""
    wall_minus_monotonic_s: float
    """The node's wall clock minus its monotonic clock, in s: brings nodes to one clock."""


class PowerNow(RecordModel):
    """The contents of power-now-K.json: what a node draws at the moment, for the progress display."""

    schema_version: Literal[1] = SCHEMA_VERSION
    t_s: float
    """`time.monotonic()` of the node."""
    power_w: float | None
    """Its devices' power together, in W; null where one is unknown."""


def meter_path(folder: Path, node_index: int) -> Path:
    return folder / f"meter-{node_index}.json"


def samples_path(folder: Path, node_index: int) -> Path:
    return folder / f"samples-{node_index}.csv"


def power_now_path(folder: Path, node_index: int) -> Path:
    return folder / f"power-now-{node_index}.json"


def sample_line(sample: Sample) -> str:
    """A sample as a line of `samples-K.csv`."""
    values = (getattr(sample, column) for column in COLUMNS)
    return ",".join("" if value is None else f"{value:.12g}" for value in values) + "\n"


def read_samples(path: Path) -> list[list[float]]:
    """Read a sampler's rows; NaN for unknown.

    A last line without its end, as a killed sampler leaves it, is dropped.

    Returns:
        [samples][columns of COLUMNS]

    Raises:
        RecordError: the file is missing, or a line is no sample.
    """
    try:
        text = path.read_bytes().decode("ascii")
    except (OSError, UnicodeDecodeError) as problem:
        raise RecordError(f"{path}: torn or unreadable: {problem}") from None
    whole, _, _ = text.rpartition("\n")
    lines = whole.split("\n")
    if lines[0] != ",".join(COLUMNS):
        raise RecordError(f"{path}: found the columns {lines[0] or 'of an empty file'}; expected {COLUMNS}")
    return [_values(path, number, line) for number, line in enumerate(lines[1:], start=2)]


def _values(path: Path, number: int, line: str) -> list[float]:
    try:
        values = [float(cell) if cell else math.nan for cell in line.split(",")]
    except ValueError:
        values = []
    if len(values) != len(COLUMNS) or not all(math.isfinite(value) for value in values[:2]):
        raise RecordError(f"{path}, line {number}: found {line[:80]!r}; expected {len(COLUMNS)} numbers")
    return values
