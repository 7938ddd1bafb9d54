"""The record of a cell, result.json, and what all records share: typed, versioned, validated."""

from __future__ import annotations

import json
import os
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shardwatt.cell import AXES, Cell, is_axis_value
from shardwatt.errors import RecordError
from shardwatt.mistakes import explain
from shardwatt.study import Constants

SCHEMA_VERSION: Literal[1] = 1

NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Outcome(StrEnum):
    """How a cell ended."""

    OK = "ok"
    DOES_NOT_FIT = "does_not_fit"
    FAILED = "failed"


class Method(StrEnum):
    """How joules were obtained."""

    NVML_COUNTER = "nvml_counter"
    DCGM_JOB = "dcgm_job"
    POWER_INTEGRAL = "power_integral"
    RAPL = "rapl"
    SLURM_NODE = "slurm_node"
    ESTIMATE = "estimate"


class Status(StrEnum):
    """What a reading is worth."""

    MEASURED = "measured"
    DERIVED = "derived"
    ESTIMATED = "estimated"
    UNAVAILABLE = "unavailable"
    UNSUPPORTED = "unsupported"
    PERMISSION_DENIED = "permission_denied"


class Scope(StrEnum):
    """Whose joules they are."""

    ALL_NODES = "all_nodes"
    RANK0_NODE_SCALED = "rank0_node_scaled"


class RecordModel(BaseModel):
    """Base of what is written to disk: nothing unknown is accepted when it is read back."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Device(RecordModel):
    """A device whose energy is in a reading."""

    node: str
    """Host name."""
    index: int
    """Position on its node."""
    name: str
    """Product name as the driver or the kernel gives it."""
    uuid: str | None = None
    """The driver's unique id; None for processors."""


class Coverage(RecordModel):
    """What a reading covers, and how densely it was sampled."""

    nodes: list[str]
    """Host names of the nodes that were read."""
    nodes_expected: int
    """Nodes of the job."""
    devices: list[Device]
    """Devices that were read."""
    devices_expected: int
    """Devices of the job."""
    samples: int
    """Samples of all devices inside the window."""
    period_s: float | None = None
    """Median time in s between samples of one device."""
    max_gap_s: float | None = None
    """Longest time in s between two samples of one device."""


class Reading(RecordModel):
    """Joules with what they are worth; never a bare number, and never zero for unknown."""

    joules: NonNegative | None
    """Energy in J; null where it is not known."""
    method: Method | None
    """How it was obtained; null where nothing was."""
    status: Status
    """What it is worth."""
    scope: Scope
    """Whose joules they are."""
    coverage: Coverage
    """Nodes and devices that were read, and how densely."""
    uncertainty_j: NonNegative | None = None
    """What the counter's tick leaves open at the borders, in J, where known."""
    detail: str | None = None
    """Constants of an estimate with their source, or why there are no joules."""

    @model_validator(mode="after")
    def _joules_match_status(self) -> Reading:
        known = self.status in (Status.MEASURED, Status.DERIVED, Status.ESTIMATED)
        if known != (self.joules is not None):
            raise ValueError(f"status {self.status} with joules {self.joules}")
        if known and self.method is None:
            raise ValueError("joules without a method")
        if (self.method is Method.ESTIMATE) != (self.status is Status.ESTIMATED):
            raise ValueError(f"method {self.method} with status {self.status}")
        return self


class Energy(RecordModel):
    """The energy of a cell: over its window, its phases and its whole job."""

    window: Reading
    """All nodes, over the inference window: the headline."""
    window_rank0_scaled: Reading
    """The paper's accounting: the rank-0 node times the number of nodes, over the same window."""
    prefill: Reading
    """All nodes, over the prefills of the window."""
    walk: Reading
    """All nodes, over the steps through longer prompts."""
    decode: Reading
    """All nodes, over the steps that sample new tokens for every row."""
    between: Reading
    """All nodes, over the rest of the window."""
    job: Reading
    """All nodes, from the start of the meters, before the ranks start, to the end of the last rank."""


class Timings(RecordModel):
    """When and how long, on rank 0; s."""

    started_at: datetime
    """Start of the attempt, UTC."""
    ended_at: datetime
    """End of the attempt, UTC."""
    duration_s: NonNegative
    """The inference window: barrier to barrier, after warm-up, work between batches included."""
    prefill_s: NonNegative
    walk_s: NonNegative
    decode_s: NonNegative
    between_s: NonNegative
    job_duration_s: NonNegative
    """From the start of the meters to the end of the last rank: what `energy.job` covers."""
    rendezvous_s: NonNegative
    """From starting the ranks until all have met."""
    load_s: NonNegative
    """Reading the checkpoint and building the model."""
    warmup_s: NonNegative


class Counts(RecordModel):
    """What was computed; definitions in docs/results.md."""

    prompts: Annotated[int, Field(ge=1)]
    prompt_tokens: Annotated[int, Field(ge=1)]
    output_tokens: Annotated[int, Field(ge=0)]
    """Sampled ids before the end of sequence; prompt and end of sequence excluded."""
    generated_tokens: Annotated[int, Field(ge=0)]
    """Rows x steps actually computed."""
    output_tokens_reencoded: Annotated[int, Field(ge=0)]
    """The text through the tokenizer again: the paper's count."""
    words: Annotated[int, Field(ge=0)]
    responses: Annotated[int, Field(ge=0)]
    batches: Annotated[int, Field(ge=1)]


class Mean(RecordModel):
    """Mean and maximum over the samples of the window, all devices together; null where unknown."""

    mean: float | None
    max: float | None


class Utilisation(RecordModel):
    """How busy the devices were in the window."""

    sm_utilisation: Mean
    """Share of time in which a kernel ran (NVML utilisation.gpu); null for processors."""
    memory_activity: Mean
    """Share of time in which device memory was read or written (NVML utilisation.memory)."""
    memory_filled: Mean
    """Share of the device's memory that was in use; for processors, of the machine's."""
    cpu_utilisation: Mean
    """Share of time in which the nodes' processors were busy, other processes included."""


class Memory(RecordModel):
    """Peak memory."""

    peak_memory_gib: NonNegative | None
    """Largest over the ranks: allocated by torch on CUDA, the process's high-water mark on CPUs."""
    planned_memory_gib: NonNegative | None
    """What the memory model predicted for one device."""


class Inputs(RecordModel):
    """Identity of what the cell was run on."""

    model_fingerprint: str
    dataset_sha256: str
    prompt_ids_sha256: str
    """Over the ids of the sampled prompts, in order."""


class Provenance(RecordModel):
    """Where a record comes from."""

    job_id: str
    site: str
    launcher: str
    nodes: list[str]
    ranks_per_node: int
    threads_per_rank: int
    was_loaded: bool = False
    """Whether the ranks had run another cell before: `load_s` may then be about 0."""
    device_names: list[str]
    commit: str | None
    """The project's git commit; None outside a checkout."""
    commit_dirty: bool | None
    versions: dict[str, str]
    """Versions of shardwatt, python, torch, fairscale, …."""


class CellRecord(RecordModel):
    """The axes of a cell, as written into its record."""

    engine: str
    model: str
    precision: str
    gpu: str
    shards: int
    batch: int
    length: int
    dataset: str
    cap: str
    repeat: int

    @model_validator(mode="after")
    def _strict_axes(self) -> CellRecord:
        for axis in AXES:
            if not is_axis_value(axis, str(getattr(self, axis))):
                raise ValueError(f"{axis}: {getattr(self, axis)!r} is no value of this axis")
        return self

    @classmethod
    def of(cls, cell: Cell) -> CellRecord:
        return cls(**{axis: getattr(cell, axis) for axis in cls.model_fields})

    def to_cell(self) -> Cell:
        return Cell(**self.model_dump())


class Record(RecordModel):
    """The contents of result.json: a cell that ended `ok` or `does_not_fit`."""

    schema_version: Literal[1] = SCHEMA_VERSION
    study: str
    cell: CellRecord
    constants: Constants
    constants_hash: str
    outcome: Literal[Outcome.OK, Outcome.DOES_NOT_FIT]
    reason: str | None = None
    """For `does_not_fit`: which rank ran out of memory, and what it asked for."""
    nodes: Annotated[int, Field(ge=1)]
    timings: Timings | None = None
    counts: Counts | None = None
    energy: Energy | None = None
    utilisation: Utilisation | None = None
    memory: Memory
    inputs: Inputs
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.constants.hash != self.constants_hash:
            raise ValueError("constants_hash does not belong to the constants")
        parts = (self.timings, self.counts, self.energy, self.utilisation)
        if self.outcome is Outcome.OK and None in parts:
            raise ValueError("outcome ok without timings, counts, energy or utilisation")
        if self.counts is not None and self.counts.responses != self.counts.prompts:
            raise ValueError(
                f"{self.counts.responses} responses to {self.counts.prompts} prompts; expected as many"
            )
        return self


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
    """Write a record atomically: a temporary name beside it, flushed to disk, then renamed.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is as it was before.
    """
    text = record.model_dump_json(indent=2) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
