"""The files that a node's sampler writes, for node K of the job; `sampletable` reads the samples back.

`meter-K.json` and `samples-K.csv` hold the devices that the headline is about; `host-meter-K.json` and
`host-samples-K.csv`, in the same form, the node's processors and memory, beside it. `power-now-K.json` is
what is drawn at the moment, `sampler-K.json` how well the sampler kept its time.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

from pydantic import Field

from shardwatt.power.protocol import Sample
from shardwatt.readings import Device, DriverLimits, Method, NonNegative, PowerSource, Status
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion

#: Columns of `samples-K.csv`: the fields of a sample, in their order and units; empty for unknown.
COLUMNS = tuple(field.name for field in fields(Sample))


class MeterFile(RecordModel):
    """The contents of meter-K.json and host-meter-K.json, written once the first sample is on disk."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    node: str
    """Host name."""
    method: Method | None
    status: Status
    detail: str | None
    devices: list[Device]
    limits: list[DriverLimits | None] = []
    """Power limit of each device, in their order; empty where none was asked."""
    power_sources: list[PowerSource | None] = []
    """Where the `power_w` of each device comes from, in the order of `devices`; null where it has none."""
    period_s: Annotated[float, Field(gt=0)]
    """Time in s between samples that was asked for."""
    wall_minus_monotonic_s: float
    """The node's wall clock minus its monotonic clock, in s: brings nodes to one clock."""


class PowerNow(RecordModel):
    """The contents of power-now-K.json: what a node draws at the moment, for the progress display and for
    whoever waits for devices to cool down."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    t_s: float
    """`time.monotonic()` of the node."""
    power_w: float | None
    """Its devices' power together, in W; null where one is unknown."""
    temperature_c: float | None = None
    """Temperature of its hottest device in degrees Celsius; null where one is unknown."""


class SamplerFile(RecordModel):
    """The contents of sampler-K.json, written when the sampler ends: how well it kept its time, what it
    cost, and what failed on the way."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    node: str
    """Host name."""
    period_s: Annotated[float, Field(gt=0)]
    """Time in s between samples that was asked for."""
    deadlines: int
    """Times at which a sample was due, one a period from the first on."""
    samples: int
    """Deadlines at which every device was sampled."""
    missed: int
    """Deadlines at which none was, since the sample before took until after them, or the node was busy."""
    late_median_s: NonNegative | None
    """How long after its deadline a sample began, in s: median. Null without samples."""
    late_p95_s: NonNegative | None
    """Likewise, 95th percentile."""
    late_max_s: NonNegative | None
    """Likewise, the longest."""
    cpu_s: NonNegative
    """The sampler's own processor time in s, user and system, from its first sample to its last."""
    wall_s: NonNegative
    """Time in s from its first sample to its last."""
    failures: list[str]
    """First reason of each sensor of each device that failed on the way; its samples lack a value since."""
    strangers: list[str] = []
    """Devices of the headline on which processes that are not of this job computed at the end, with their
    pids: one that had begun before is refused by the meter."""


def meter_path(folder: Path, node_index: int) -> Path:
    return folder / f"meter-{node_index}.json"


def samples_path(folder: Path, node_index: int) -> Path:
    return folder / f"samples-{node_index}.csv"


def host_meter_path(folder: Path, node_index: int) -> Path:
    return folder / f"host-meter-{node_index}.json"


def host_samples_path(folder: Path, node_index: int) -> Path:
    return folder / f"host-samples-{node_index}.csv"


def sampler_path(folder: Path, node_index: int) -> Path:
    return folder / f"sampler-{node_index}.json"


def power_now_path(folder: Path, node_index: int) -> Path:
    return folder / f"power-now-{node_index}.json"


def sample_line(sample: Sample) -> str:
    """A sample as a line of `samples-K.csv`."""
    values = (getattr(sample, column) for column in COLUMNS)
    return ",".join("" if value is None else f"{value:.12g}" for value in values) + "\n"
