"""What supervisor and ranks tell each other, as files in the cell's work folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from shardwatt.architectures import Architecture
from shardwatt.engine.protocol import Finish, PhaseName
from shardwatt.errors import Reason
from shardwatt.models import Checkpoint
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion, show
from shardwatt.records import CellRecord
from shardwatt.site import GpuType
from shardwatt.study import Constants

JOB_FILE = "job.json"
RUN_FILE = "run.json"
PROGRESS_FILE = "progress.json"
PARTIAL_FILE = "partial.json"

Stage = Literal["load", "idle", "warm-up", "run"]


class BatchPlan(RecordModel):
    """Prompts to be answered together; tokenised by the supervisor, outside the window."""

    prompt_ids: list[str]
    prompts: list[list[int]]
    """Token ids of each prompt, begin of sequence included."""
    positions: int
    """Positions T of the KV cache."""
    rows: int
    """Prompts that are answered at a time: fewer than there are, where places are filled anew."""


class Acting(RecordModel):
    """What the ranks of a simulated cell do, which run no model: hold power for a while."""

    window_s: float
    """How long their window lasts, in real s."""
    steps: list[tuple[float, float]]
    """From when, in real s after the window has opened, and what power of a rank's device from then on in W;
    empty where the plan knows no watts."""
    prompts: int
    generated_tokens: int
    """Of all batches, for the progress display: these ranks are told of no batch."""
    does_not_fit: str | None
    """What every rank is refused with in place of that, as by a device that is too small; None: nothing."""
    draw_file: Path | None
    """The file in which simulated GPUs are told what they draw; None: the ranks' watts are replayed."""


class JobSpec(RecordModel):
    """Everything that a rank needs to know: job.json."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    job_id: str
    cell: CellRecord
    constants: Constants
    architecture: Architecture
    checkpoint: Checkpoint | None
    """None where none is loaded: in a simulated cell."""
    vocab_size: int
    eos_ids: frozenset[int]
    gpu_type: GpuType
    threads_per_rank: int
    nodes: int
    ranks_per_node: int
    network_interface: str | None
    """The site's interface between the nodes."""
    staging: Path | None
    """Folder on each node's own disk for copies of checkpoint files."""
    start_timeout_s: float
    collective_timeout_s: float
    supervisor_pid: int
    supervisor_node: str
    launched_at_s: float
    """Wall clock, s since the epoch, when the ranks were started."""
    log_folder: Path
    """Folder of the rank logs, absolute."""
    batches: list[BatchPlan]
    """Empty in a simulated cell."""
    acting: Acting | None = None
    """What ranks do that run no model; None: they run it."""
    visible_devices: str | None = None
    """CUDA_VISIBLE_DEVICES of the supervisor, for ranks on its machine; None where it is not set."""
    idle: tuple[float, float] | None = None
    """For the baseline with the model loaded: time in s to settle, and to be read; None for no baseline."""
    gated: bool = False
    """Whether rank 0 asks the supervisor before it opens the window, and after it has closed it."""
    more: bool = False
    """Whether the ranks stay with the model loaded for another cell."""


class RankStart(RecordModel):
    """A rank has begun: rank-R.start.json."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    rank: int
    node: str
    pid: int
    device: str | None = None
    """The GPU that it is bound to, as CUDA_VISIBLE_DEVICES names it on its node."""


class RankEnd(RecordModel):
    """How a rank ended: rank-R.end.json. A rank that is killed leaves none."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    rank: int
    node: str
    ok: bool
    does_not_fit: bool = False
    reason: Reason | None = None
    message: str | None = None
    peak_memory_gib: float | None = None
    device_uuid: str | None = None
    """The GPU that computed, as the driver knows it; None for processors."""
    barrier_s: float | None = None
    """When it left the barrier that opens the window, in s of its node's `time.monotonic()`: the same
    moment on every node, within a message's time."""
    barrier_wall_s: float | None = None
    """The same by its node's wall clock, in s since the epoch."""
    closing_s: float | None = None
    """When it left the barrier that closes the window, in s of its node's `time.monotonic()`: likewise one
    moment, by which clocks that drifted meanwhile are brought together again."""


class PhaseTime(RecordModel):
    """A phase of a batch, in s of rank 0's `time.monotonic()`."""

    name: PhaseName
    start_s: float
    stop_s: float
    steps: int
    tokens: int
    attended: int


class BatchRun(RecordModel):
    """What a batch gave, and when."""

    start_s: float
    stop_s: float
    phases: list[PhaseTime]
    tokens: list[list[int]]
    finish: list[Finish]
    generated_tokens: int


class RunReport(RecordModel):
    """What rank 0 measured: run.json; times in s of its `time.monotonic()`."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    window_start_s: float
    window_stop_s: float
    rendezvous_s: float
    load_s: float
    warmup_s: float
    idle_loaded: tuple[float, float] | None
    """From when to when the ranks waited on the host with the model loaded, for the baseline, after they had
    settled; None where none was asked for."""
    gate_waits: list[tuple[float, float]] = []
    """From when to when the ranks waited beside the window for DCGM."""
    batches: list[BatchRun]
    versions: dict[str, str]
    """Versions of what rank 0 ran on."""
    engine_notes: dict[str, str]
    """How the engine ran on rank 0."""


class PartialRun(RecordModel):
    """The batches that rank 0 had finished when it was asked to end early: partial.json."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    batches: list[BatchRun]


class NextCell(RecordModel):
    """Which cell the ranks of a job run as their K-th: next-K.json in the folder that they share."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    work: Path
    """Work folder of the next cell, which holds its job.json."""


class Progress(RecordModel):
    """How far rank 0 is; replaced about once a second."""

    stage: Stage
    generated_tokens: int = 0
    prompts_done: int = 0
    since_s: float
    """When the stage began, in s of `time.monotonic()`."""


def next_file(session: Path, number: int) -> Path:
    return session / f"next-{number}.json"


def rank_start_file(work: Path, rank: int) -> Path:
    return work / f"rank-{rank}.start.json"


def rank_end_file(work: Path, rank: int) -> Path:
    return work / f"rank-{rank}.end.json"


def write_progress(work: Path, progress: Progress) -> None:
    """Replace the progress file."""
    show(progress, work / PROGRESS_FILE)


def read_progress(work: Path) -> Progress | None:
    """Read the progress file; None where it cannot be read, as before the first one: it is only shown."""
    try:
        return Progress.model_validate_json((work / PROGRESS_FILE).read_bytes())
    except (OSError, ValueError):
        return None
