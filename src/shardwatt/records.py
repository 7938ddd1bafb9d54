"""The record of a cell, result.json."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from shardwatt.cell import AXES, Cell, is_axis_value
from shardwatt.efficiency import Efficiency
from shardwatt.engines import ENGINES
from shardwatt.readings import Energy, NonNegative, PowerCap, Utilisation
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion
from shardwatt.study import Constants


class Outcome(StrEnum):
    """How a cell ended."""

    OK = "ok"
    DOES_NOT_FIT = "does_not_fit"
    FAILED = "failed"


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
    """From starting the ranks to the end of the last one, but for the waits for the loaded idle baseline and
    for DCGM: what `energy.job` covers."""
    rendezvous_s: NonNegative
    """From starting the ranks until all have met."""
    load_s: NonNegative
    """Copying to the staging disk, reading the checkpoint, building the model, allocating the cache; all
    ranks."""
    warmup_s: NonNegative
    """The warm-up of rank 0, after the loaded idle baseline."""
    cool_down_s: NonNegative | None = None
    """Waiting for the devices to cool to the study's `cool_down_c`; null without one."""


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


class Memory(RecordModel):
    """Peak memory."""

    peak_memory_gib: NonNegative | None
    """Largest over the ranks: allocated by torch on CUDA, the process's high-water mark on CPUs."""
    planned_memory_gib: NonNegative | None
    """What the memory model predicted for one device, the CUDA context included; null for processors, which
    it does not describe."""
    planned_allocated_gib: NonNegative | None
    """That without the CUDA context, which torch does not count: what `peak_memory_gib` is to be compared
    with."""


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
    prompt_order: Literal["sample", "length"]
    """How prompts were put into batches: as they were sampled, or the longest first."""
    engine: dict[str, str]
    """How the engine ran, in its own words: kernels, CUDA graphs or why none; empty where it did not."""


class Simulated(RecordModel):
    """How a cell was simulated: no model ran, and what it took is what the plan says that it takes."""

    engine: str
    """The engine that it stands for."""
    window_s: Annotated[float, Field(gt=0)] | None
    """Real time in s for which its ranks held the plan's power; null for `does_not_fit`."""
    time_lapse: Annotated[float, Field(gt=0)] | None
    """Planned time of the window over that: everything of the window is stretched by it, joules included."""
    watts: str
    """Where its watts come from, in words."""
    fits: bool | None
    """Whether the model fits into its devices by the plan; null where that is not known."""
    notes: list[str]
    """What the plan says of its own assumptions."""


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

    schema_version: SchemaVersion = SCHEMA_VERSION
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
    power_cap: PowerCap | None = None
    """The power cap and what the driver said of it; null where the cell has none."""
    utilisation: Utilisation | None = None
    efficiency: Efficiency | None = None
    memory: Memory
    simulated: Simulated | None = None
    """How it was simulated; null where its model ran."""
    inputs: Inputs
    provenance: Provenance

    @model_validator(mode="after")
    def _consistent(self) -> Record:
        if self.constants.hash != self.constants_hash:
            raise ValueError("constants_hash does not belong to the constants")
        facts = ENGINES.get(self.cell.engine)
        if facts is not None and (facts.simulates is None) != (self.simulated is None):
            found = "no" if self.simulated is None else "a"
            raise ValueError(f"engine {self.cell.engine} with {found} `simulated`")
        parts = (self.timings, self.counts, self.energy, self.utilisation, self.efficiency)
        if self.outcome is Outcome.OK and None in parts:
            raise ValueError("outcome ok without timings, counts, energy, utilisation or efficiency")
        if self.counts is not None and self.counts.responses != self.counts.prompts:
            raise ValueError(
                f"{self.counts.responses} responses to {self.counts.prompts} prompts; expected as many"
            )
        return self
