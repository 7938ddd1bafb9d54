"""Readings of energy: joules with what they are worth, how they were obtained and what they cover."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from shardwatt.recordfiles import RecordModel

NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


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


#: With one of these joules come from a meter, and are no estimate.
METERED = frozenset({Status.MEASURED, Status.DERIVED})

#: With one of these there are joules.
KNOWN = METERED | {Status.ESTIMATED}


class PowerSource(StrEnum):
    """Where the sampled power of a device comes from."""

    INSTANT = "instant"
    """NVML's field 186: the sensor's latest value."""
    USAGE = "usage"
    """nvmlDeviceGetPowerUsage: a mean over 1 s on Ampere and newer but A100, the latest value before."""
    COUNTER = "counter"
    """RAPL: the rise of the energy counter since the sample before."""
    ESTIMATE = "estimate"
    """Thermal design power x utilisation."""


class Scope(StrEnum):
    """Whose joules they are."""

    ALL_NODES = "all_nodes"
    RANK0_NODE_SCALED = "rank0_node_scaled"


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
    asked_period_s: float | None = None
    """Time in s between samples that was asked for."""
    period_s: float | None = None
    """Median time in s between samples of one device."""
    jitter_s: float | None = None
    """95th percentile in s of how far the time between two samples is from the one that was asked for."""
    late_s: float | None = None
    """95th percentile in s of how late a sample was after its deadline, worst node."""
    missed: int | None = None
    """Times at which samples were due and none was taken, since the sampler or its node was held up; from
    its start to its end, worst node. None where its sampler was killed."""
    sampler_cpu_share: float | None = None
    """The sampler's own processor time over the time that it ran, worst node."""
    max_gap_s: float | None = None
    """Longest time in s between two samples of one device."""
    gaps: int | None = None
    """Times between samples of one device that are longer than ten periods."""
    tick_s: float | None = None
    """Longest time in s between steps of a device's energy counter, as measured in this run (median of
    each device); None without a counter."""
    clock_offset_s: float | None = None
    """Largest difference in s between a node's wall clock and that of rank 0's node, as seen when all
    ranks left the same barrier; times are brought to one clock by that barrier, not by wall clocks."""
    clock_drift_s: float | None = None
    """Largest time in s by which a node's monotonic clock and that of rank 0's node ran apart between the
    barriers that open and close the window; times are corrected for it."""
    counter_over_integral: float | None = None
    """Joules of the energy counters over the integral of sampled power, all devices that have both."""


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
    """What the meter's tick leaves open at the borders, in J, where known."""
    detail: str | None = None
    """Constants of an estimate with their source, or why there are no joules."""

    @model_validator(mode="after")
    def _joules_match_status(self) -> Reading:
        known = self.status in KNOWN
        if known != (self.joules is not None):
            raise ValueError(f"status {self.status} with joules {self.joules}")
        if known and self.method is None:
            raise ValueError("joules without a method")
        if (self.method is Method.ESTIMATE) != (self.status is Status.ESTIMATED):
            raise ValueError(f"method {self.method} with status {self.status}")
        return self


class Part(RecordModel):
    """Joules of one device over a part of the run."""

    joules: NonNegative | None
    """Energy in J; null where it is not known."""
    uncertainty_j: NonNegative | None = None
    """What the counter's tick leaves open at the borders, in J."""
    detail: str | None = None
    """Why there are no joules."""


class DriverLimits(RecordModel):
    """The power limit of a GPU as its driver told it when the meter was opened; null where it does not."""

    enforced_w: NonNegative | None
    """The limit that was enforced, in W."""
    default_w: NonNegative | None
    """The limit that it has by itself, in W."""


class DeviceEnergy(RecordModel):
    """The energy of one device, over the window and its phases."""

    device: Device
    method: Method | None
    """How its joules were obtained; null where nothing was."""
    status: Status
    """What its joules over the window are worth."""
    detail: str | None = None
    """Constants of an estimate, or why there is no energy."""
    window: Part
    prefill: Part
    walk: Part
    decode: Part
    between: Part
    job: Part
    integral_j: NonNegative | None = None
    """Sampled power integrated over the window, in J: the cross-check of a counter."""
    power_source: PowerSource | None = None
    """Where its sampled power comes from, and with it `integral_j`; null where it has none."""
    limits: DriverLimits | None = None
    """Its power limit when its meter was opened, which is after a cap was set; null for processors."""
    idle_unloaded_w: NonNegative | None = None
    """Its power in W before any rank had touched it."""
    idle_loaded_w: NonNegative | None = None
    """Its power in W with the model loaded and its rank waiting on the host."""


class Idle(RecordModel):
    """A baseline: what the devices of the job drew together while they had nothing to do."""

    power_w: NonNegative | None
    """Mean power of all devices of the job in W; null where it was not read."""
    uncertainty_w: NonNegative | None = None
    """What the meter's tick leaves open, in W."""
    status: Status
    """What it is worth."""
    settle_s: NonNegative | None = None
    """Time in s that the devices had been left alone before."""
    read_s: NonNegative | None = None
    """Time in s over which it was read."""
    net_j: float | None = None
    """Joules of the window less this power times its duration, in J: net of idle."""
    net_uncertainty_j: NonNegative | None = None
    """What the meter's tick leaves open in that, in J: of the window, and of this power over its duration."""
    detail: str | None = None
    """Why it was not read, or which cell of the job it was read before."""


class DcgmDevice(RecordModel):
    """What DCGM's job statistics say of one GPU; null for what they do not say."""

    uuid: str
    energy_j: NonNegative | None
    """`Energy Consumed`, whole joules, cut off."""
    power_mean_w: NonNegative | None = None
    """`Power Usage (Watts)`, average."""
    power_max_w: NonNegative | None = None
    sm_utilisation: Share | None = None
    """`SM Utilization`, average: share of time in which a kernel ran (field 203)."""
    memory_activity: Share | None = None
    """`Memory Utilization`, average: share of time in which device memory was busy (field 204)."""
    sm_active: Share | None = None
    """Share of cycles in which a warp was on a multiprocessor (field 1002), where the site samples it."""
    tensor_active: Share | None = None
    """Share of cycles in which tensor cores worked (field 1004), likewise."""
    dram_active: Share | None = None
    """Share of cycles in which device memory moved data (field 1005), likewise."""
    nvml_j: NonNegative | None = None
    """NVML's counter of the same GPU between DCGM's start and stop, in J."""
    detail: str | None = None
    """Why there is no energy, or no profiling field, in DCGM's words where it gave some."""


class DcgmJob(RecordModel):
    """DCGM's job statistics of the rank-0 node: the paper's way to measure."""

    node: str
    interval_ms: int
    """Time in ms between the samples that DCGM kept."""
    start_s: float
    """When the job was started in DCGM, in s after the window's start: negative."""
    stop_s: float
    """When it was stopped, in s after the window's start."""
    devices: list[DcgmDevice]


class Violation(RecordModel):
    """A rule that a reading must obey, and does not: the number stands, with this beside it."""

    code: str
    """Which rule; listed in docs/energy-method.md."""
    message: str
    """What was found and what was expected."""


class Energy(RecordModel):
    """The energy of a cell: over its window, its phases and its whole job."""

    window: Reading
    """All nodes, over the inference window: the headline."""
    window_rank0_scaled: Reading
    """The rank-0 node's devices times the number of nodes, by the same meters, over the same window."""
    window_dcgm: Reading
    """By the paper's meter, DCGM's job statistics on the rank-0 node times the number of nodes; from one
    interval before the window to one after it, where the paper has the whole job."""
    prefill: Reading
    """All nodes, over the prefills of the window."""
    walk: Reading
    """All nodes, over the steps through longer prompts."""
    decode: Reading
    """All nodes, over the steps that sample new tokens for every row."""
    between: Reading
    """All nodes, over the rest of the window."""
    job: Reading
    """All nodes, from starting the ranks to the end of the last one, but for the waits for the loaded idle
    baseline and for DCGM."""
    devices: list[DeviceEnergy]
    """Every device of the job that was read."""
    idle_unloaded: Idle
    """Before any rank had made a CUDA context."""
    idle_loaded: Idle
    """With the model loaded and the ranks waiting on the host."""
    scope_ratio: NonNegative | None
    """`window_rank0_scaled` over `window`: what it would have cost to look at one node only."""
    method_ratio: NonNegative | None
    """DCGM over NVML, of the same GPUs of the rank-0 node over DCGM's own time."""
    dcgm: DcgmJob | None
    """What DCGM said; null where it was not asked or said nothing."""
    cpu: Reading
    """RAPL's packages of all nodes over the window; beside, never in a sum with GPUs."""
    dram: Reading
    """RAPL's memory of all nodes over the window; likewise."""
    slurm_node: Reading
    """Slurm's own count for whole nodes (ConsumedEnergyRaw) over the step of the ranks; likewise."""
    violations: list[Violation]
    """Rules that these readings break; empty where all hold."""


class Mean(RecordModel):
    """Mean and maximum over the samples of the window, all devices together; null where unknown."""

    mean: float | None
    max: float | None


class Utilisation(RecordModel):
    """How busy and in what state the devices were in the window."""

    sm_utilisation: Mean
    """Share of time in which a kernel ran (NVML utilisation.gpu); null for processors."""
    memory_activity: Mean
    """Share of time in which device memory was read or written (NVML utilisation.memory)."""
    memory_filled: Mean
    """Share of the device's memory that was in use; for processors, of the machine's."""
    cpu_utilisation: Mean
    """Share of time in which the nodes' processors were busy, other processes included."""
    clock_sm_mhz: Mean
    """Clock of the multiprocessors in MHz."""
    clock_memory_mhz: Mean
    """Clock of the device's memory in MHz."""
    temperature_c: Mean
    """Temperature of the devices in degrees Celsius."""
    throttled: dict[str, Share]
    """Share of samples in which the clocks were held back, by reason (docs/energy-method.md); a reason
    that never stood is left out; empty also where no device tells."""


class LimitOfDevice(RecordModel):
    """The power limit of one GPU, as the driver gave it back each time; W."""

    device: Device
    before_w: NonNegative | None
    """Limit before the cell, to which it was set back."""
    enforced_w: NonNegative | None
    """Enforced limit once it was set, before loading."""
    after_w: NonNegative | None
    """Enforced limit after the last rank had ended."""
    restored_w: NonNegative | None
    """Limit once it was set back; null where that is not this cell's to do."""


class PowerCap(RecordModel):
    """The power cap under which a cell ran."""

    asked_w: NonNegative
    set_by: str
    """`nvml`, `command` or `prolog`: the site's way."""
    devices: list[LimitOfDevice]
