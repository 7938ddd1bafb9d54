"""What was measured of a cell beside its ranks, as it is handed over to be assembled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardwatt.power.curve import Interval
from shardwatt.power.host import HostTrace
from shardwatt.power.trace import Trace
from shardwatt.readings import DcgmDevice, Device, Idle, PowerCap, Reading, Status
from shardwatt.run.baseline import CoolDown


@dataclass(frozen=True, slots=True)
class DcgmRun:
    """A job in DCGM on rank 0's node, around the window.

    Attributes:
        node: host name.
        interval_ms: time in ms between the samples that DCGM kept.
        start_s: when the job had been started, in s of `time.monotonic()` on that node.
        stop_s: when it was about to be stopped, likewise.
        devices: what DCGM said of each of the cell's GPUs there; `nvml_j` is not known yet.
    """

    node: str
    interval_ms: int
    start_s: float
    stop_s: float
    devices: Sequence[DcgmDevice]


@dataclass(frozen=True, slots=True)
class DcgmMissing:
    """Why there is nothing of DCGM.

    Attributes:
        status: unavailable, unsupported or permission_denied.
        detail: in words.
    """

    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class Baseline:
    """Idle power that was read before one cell of a job, and holds for the next ones too.

    Attributes:
        cell: path of the cell before which it was read.
        idle: all devices together; net of it is each cell's own matter.
        device_w: power of each device in W; None where it is not known.
    """

    cell: str
    idle: Idle
    device_w: Mapping[Device, float | None]


@dataclass(frozen=True, slots=True)
class Measured:
    """What the meters and everything beside the ranks gave.

    Attributes:
        trace: the samples of the devices that the headline is about.
        host: those of the nodes' processors and memory.
        job_span: from before the ranks were started to after the last one ended, in s of
            `time.monotonic()` on rank 0's node, while the meters ran.
        unloaded: from when to when, on the same clock, the devices were idle before any rank had touched
            them; or what an earlier cell of the job hands on; None where it was not read.
        cool_down: the wait for cool devices; None where the study has no gate.
        power_cap: the cap and what the driver said of it; None without one.
        dcgm: DCGM's job statistics, or why there are none.
        slurm_node: Slurm's own count.
        has_whole_nodes: whether no other job can be on the nodes; None where nobody tells.
    """

    trace: Trace
    host: HostTrace
    job_span: Interval
    unloaded: Interval | Baseline | None
    cool_down: CoolDown | None
    power_cap: PowerCap | None
    dcgm: DcgmRun | DcgmMissing
    slurm_node: Reading
    has_whole_nodes: bool | None = None
