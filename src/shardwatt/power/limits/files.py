"""The files that a node's guard of power limits writes: `limit-K.json` once they are set, and
`limit-end-K.json` once they are back, for node K of the job."""

from __future__ import annotations

from pathlib import Path

from shardwatt.readings import Device, NonNegative
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion


class LimitSet(RecordModel):
    """One GPU as a cell begins on it."""

    device: Device
    before_w: NonNegative
    """Enforced limit in W that was found."""
    enforced_w: NonNegative
    """Enforced limit in W under which the cell runs."""


class LimitFile(RecordModel):
    """The contents of limit-K.json."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    node: str
    """Host name."""
    limits: list[LimitSet]
    """The node's GPUs; empty where nothing could be read."""
    refusal: str | None = None
    """Why the cell must not run."""
    notes: list[str] = []
    """What was mended or is worth knowing, a line each."""


class LimitEnd(RecordModel):
    """One GPU as a cell has left it."""

    uuid: str
    after_w: NonNegative | None
    """Enforced limit in W after the run; null where it was not read."""
    restored_w: NonNegative | None
    """Enforced limit in W once it was set back; null where that was not to do, or it cannot be read."""


class LimitEndFile(RecordModel):
    """The contents of limit-end-K.json."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    limits: list[LimitEnd]
    signal: str | None = None
    """The signal upon which limits were set back before the run was over."""
    problem: str | None = None
    """Why limits are not what they were, and how to mend that."""


def limit_path(folder: Path, node_index: int) -> Path:
    return folder / f"limit-{node_index}.json"


def limit_end_path(folder: Path, node_index: int) -> Path:
    return folder / f"limit-end-{node_index}.json"
