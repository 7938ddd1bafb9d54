"""The energy of a made-up cell, by simple laws; for tests and benchmarks.

A device of the n-th node, from 0, draws `power_w` x (1 + n x `skew`) all the time, and each node has two.
So the rank-0 node times the number of nodes is wrong by an amount that can be worked out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from shardwatt.cell import Cell
from shardwatt.readings import (
    Coverage,
    DcgmDevice,
    DcgmJob,
    Device,
    DeviceEnergy,
    DriverLimits,
    Energy,
    Idle,
    LimitOfDevice,
    Mean,
    Method,
    Part,
    PowerCap,
    PowerSource,
    Reading,
    Scope,
    Status,
    Utilisation,
    Violation,
)

DEVICES_PER_NODE = 2
INTERVAL_S = 0.1
NO_METER = "no meter on this machine"
ESTIMATE = "65 W TDP (data sheet) x CPU utilisation"


@dataclass(frozen=True)
class EnergyNumbers:
    """What the meters of a made-up cell say.

    Attributes:
        power_w: power of each device of the first node in W; None where energy is unknown.
        skew: share by which each further node's devices draw more than those of the node before it.
        method: how joules were obtained, where they are not estimated.
        status: what the joules are worth; of an estimate there is no baseline, and no DCGM beside it.
        idle_unloaded_w: power of each device before a CUDA context; None where it was not read.
        idle_loaded_w: power of each device with its rank waiting; None likewise.
        dcgm_share: what DCGM counts of the true joules; None where DCGM is not there.
        cpu_w: power of each node's processors; None where RAPL may not be read.
        dram_w: power of each node's memory; None likewise.
        slurm_w: power of each whole node; None where Slurm does not count.
        gpus: beginning of the GPUs' ids: cells of other letters ran on other GPUs.
        limit_before_w: power limit that a cell found, and to which a cap was set back.
        limit_default_w: power limit that a device has by itself.
        utilisation: how busy and in what state the devices were.
        violations: rules that the readings break.
    """

    power_w: float | None = 100.0
    skew: float = 0.0
    method: Method = Method.NVML_COUNTER
    status: Status = Status.MEASURED
    idle_unloaded_w: float | None = 20.0
    idle_loaded_w: float | None = 40.0
    dcgm_share: float | None = 0.98
    cpu_w: float | None = 50.0
    dram_w: float | None = 5.0
    slurm_w: float | None = None
    gpus: str = "GPU"
    limit_before_w: float = 300.0
    limit_default_w: float = 300.0
    utilisation: Utilisation = field(
        default_factory=lambda: Utilisation(
            sm_utilisation=Mean(mean=0.95, max=1.0),
            memory_activity=Mean(mean=0.24, max=0.4),
            memory_filled=Mean(mean=0.41, max=0.43),
            cpu_utilisation=Mean(mean=None, max=None),
            clock_sm_mhz=Mean(mean=1380.0, max=1530.0),
            clock_memory_mhz=Mean(mean=877.0, max=877.0),
            temperature_c=Mean(mean=61.0, max=70.0),
            throttled={},
        )
    )
    violations: Sequence[Violation] = ()

    @property
    def is_metered(self) -> bool:
        """Whether a real meter read the devices."""
        return self.power_w is not None and self.status is not Status.ESTIMATED


def node_names(cell: Cell) -> list[str]:
    """Host names of a cell's nodes."""
    return [f"node{index:03d}" for index in range(math.ceil(cell.shards / DEVICES_PER_NODE))]


def devices_of(cell: Cell, numbers: EnergyNumbers) -> list[Device]:
    """A cell's devices, two to a node."""
    nodes = node_names(cell)
    return [
        Device(
            node=nodes[rank // DEVICES_PER_NODE],
            index=rank % DEVICES_PER_NODE,
            name="Tesla V100",
            uuid=f"{numbers.gpus}-{rank}",
        )
        for rank in range(cell.shards)
    ]


def device_power_w(cell: Cell, numbers: EnergyNumbers) -> list[float] | None:
    """Power of each device in W; None where it is unknown."""
    if numbers.power_w is None:
        return None
    return [numbers.power_w * (1 + numbers.skew * (rank // DEVICES_PER_NODE)) for rank in range(cell.shards)]


def coverage(cell: Cell, numbers: EnergyNumbers, duration_s: float) -> Coverage:
    """All devices of a cell, read every 0.1 s."""
    nodes = node_names(cell)
    has_counter = numbers.is_metered and numbers.method is Method.NVML_COUNTER
    return Coverage(
        nodes=nodes,
        nodes_expected=len(nodes),
        devices=devices_of(cell, numbers),
        devices_expected=cell.shards,
        samples=round(duration_s / INTERVAL_S) * cell.shards,
        asked_period_s=INTERVAL_S,
        period_s=INTERVAL_S,
        jitter_s=0.002,
        late_s=0.001,
        missed=3,
        sampler_cpu_share=0.004,
        max_gap_s=0.3,
        gaps=0,
        tick_s=0.1 if has_counter else None,
        clock_offset_s=0.004 if len(nodes) > 1 else 0.0,
        clock_drift_s=0.002 if len(nodes) > 1 else 0.0,
        counter_over_integral=1.01 if has_counter else None,
    )


def reading(
    joules: float | None,
    numbers: EnergyNumbers,
    cell: Cell,
    scope: Scope = Scope.ALL_NODES,
    duration_s: float = 10.0,
) -> Reading:
    """A reading over all devices of a cell; unavailable where joules are None."""
    over = coverage(cell, numbers, duration_s)
    if joules is None:
        return _unknown(over, NO_METER, scope)
    estimated = numbers.status is Status.ESTIMATED
    return Reading(
        joules=joules,
        method=Method.ESTIMATE if estimated else numbers.method,
        status=numbers.status,
        scope=scope,
        coverage=over,
        uncertainty_j=None if estimated else 10.0,
        detail=ESTIMATE if estimated else None,
    )


def energy_of(cell: Cell, numbers: EnergyNumbers, *, batches_s: float, between_s: float) -> Energy:
    """The energy of a cell whose window holds batches and a rest, and whose job is 1.5 windows long.

    A tenth of the batches' time is prefill, two tenths are walk, the rest is decode.
    """
    duration_s = batches_s + between_s
    spans_s = {
        "window": duration_s,
        "prefill": 0.1 * batches_s,
        "walk": 0.2 * batches_s,
        "decode": 0.7 * batches_s,
        "between": between_s,
        "job": 1.5 * duration_s,
    }
    powers_w = device_power_w(cell, numbers)
    total_w = None if powers_w is None else sum(powers_w)

    def joules(power_w: float | None, span_s: float) -> float | None:
        return None if power_w is None else power_w * span_s

    readings = {
        name: reading(joules(total_w, span_s), numbers, cell, duration_s=duration_s)
        for name, span_s in spans_s.items()
    }
    scaled_w = None
    if powers_w is not None:
        scaled_w = sum(powers_w[:DEVICES_PER_NODE]) * len(node_names(cell))
    rank0 = reading(joules(scaled_w, duration_s), numbers, cell, Scope.RANK0_NODE_SCALED, duration_s)
    dcgm = _dcgm(cell, numbers, duration_s)
    return Energy(
        **readings,
        window_rank0_scaled=rank0,
        window_dcgm=_window_dcgm(cell, dcgm),
        devices=[
            DeviceEnergy(
                device=device,
                method=readings["window"].method,
                status=readings["window"].status,
                detail=readings["window"].detail,
                **{
                    name: Part(
                        joules=joules(powers_w[rank] if powers_w else None, span_s),
                        uncertainty_j=10.0 / cell.shards if numbers.is_metered else None,
                        detail=None if powers_w else NO_METER,
                    )
                    for name, span_s in spans_s.items()
                },
                integral_j=(
                    joules(powers_w[rank] / 1.01, duration_s) if powers_w and numbers.is_metered else None
                ),
                power_source=_power_source(numbers),
                limits=DriverLimits(
                    enforced_w=numbers.limit_before_w if cell.cap_w is None else cell.cap_w,
                    default_w=numbers.limit_default_w,
                )
                if numbers.is_metered
                else None,
                idle_unloaded_w=numbers.idle_unloaded_w if numbers.is_metered else None,
                idle_loaded_w=numbers.idle_loaded_w if numbers.is_metered else None,
            )
            for rank, device in enumerate(devices_of(cell, numbers))
        ],
        idle_unloaded=_idle(cell, numbers, numbers.idle_unloaded_w, total_w, duration_s),
        idle_loaded=_idle(cell, numbers, numbers.idle_loaded_w, total_w, duration_s),
        scope_ratio=None if not (total_w and scaled_w) else scaled_w / total_w,
        method_ratio=None if dcgm is None else _over_nvml(dcgm),
        dcgm=dcgm,
        cpu=_host(cell, numbers.cpu_w, "package-0", Method.RAPL, duration_s),
        dram=_host(cell, numbers.dram_w, "dram", Method.RAPL, duration_s),
        slurm_node=_host(cell, numbers.slurm_w, "node", Method.SLURM_NODE, duration_s),
        violations=list(numbers.violations),
    )


def _power_source(numbers: EnergyNumbers) -> PowerSource | None:
    if numbers.power_w is None:
        return None
    return PowerSource.INSTANT if numbers.is_metered else PowerSource.ESTIMATE


def power_cap_of(cell: Cell, numbers: EnergyNumbers) -> PowerCap | None:
    """What the driver said of a cell's cap, which it took and gave back; None without one."""
    if cell.cap_w is None:
        return None
    return PowerCap(
        asked_w=cell.cap_w,
        set_by="nvml",
        devices=[
            LimitOfDevice(
                device=device,
                before_w=numbers.limit_before_w,
                enforced_w=cell.cap_w,
                after_w=cell.cap_w,
                restored_w=numbers.limit_before_w,
            )
            for device in devices_of(cell, numbers)
        ],
    )


def _unknown(over: Coverage, why: str, scope: Scope = Scope.ALL_NODES) -> Reading:
    return Reading(
        joules=None, method=None, status=Status.UNAVAILABLE, scope=scope, coverage=over, detail=why
    )


def _idle(
    cell: Cell, numbers: EnergyNumbers, device_w: float | None, total_w: float | None, duration_s: float
) -> Idle:
    if not numbers.is_metered or device_w is None or total_w is None:
        return Idle(power_w=None, status=Status.UNAVAILABLE, detail="no baseline was read")
    power_w = device_w * cell.shards
    return Idle(
        power_w=power_w,
        uncertainty_w=1.0,
        status=Status.MEASURED,
        settle_s=30.0,
        read_s=10.0,
        net_j=(total_w - power_w) * duration_s,
        net_uncertainty_j=10.0 + 1.0 * duration_s,
    )


def _dcgm(cell: Cell, numbers: EnergyNumbers, duration_s: float) -> DcgmJob | None:
    """DCGM on the rank-0 node, from one interval before the window to one after; whole joules, cut off."""
    powers_w = device_power_w(cell, numbers)
    if not numbers.is_metered or numbers.dcgm_share is None or powers_w is None:
        return None
    span_s = duration_s + 2 * INTERVAL_S
    own = list(zip(devices_of(cell, numbers), powers_w, strict=True))[:DEVICES_PER_NODE]
    return DcgmJob(
        node=node_names(cell)[0],
        interval_ms=round(1000 * INTERVAL_S),
        start_s=-INTERVAL_S,
        stop_s=duration_s + INTERVAL_S,
        devices=[
            DcgmDevice(
                uuid=str(device.uuid),
                energy_j=math.floor(power_w * span_s * numbers.dcgm_share),
                power_mean_w=power_w,
                power_max_w=power_w,
                sm_utilisation=0.95,
                memory_activity=0.24,
                nvml_j=power_w * span_s,
            )
            for device, power_w in own
        ],
    )


def _over_nvml(dcgm: DcgmJob) -> float:
    return sum(one.energy_j or 0 for one in dcgm.devices) / sum(one.nvml_j or 0 for one in dcgm.devices)


def _window_dcgm(cell: Cell, dcgm: DcgmJob | None) -> Reading:
    nodes = node_names(cell)
    over = Coverage(
        nodes=nodes[:1] if dcgm else [],
        nodes_expected=len(nodes),
        devices=[],
        devices_expected=cell.shards,
        samples=0,
    )
    if dcgm is None:
        return _unknown(over, "dcgmi is not on this node", Scope.RANK0_NODE_SCALED)
    return Reading(
        joules=sum(one.energy_j or 0 for one in dcgm.devices) * len(nodes),
        method=Method.DCGM_JOB,
        status=Status.MEASURED,
        scope=Scope.RANK0_NODE_SCALED,
        coverage=over,
        uncertainty_j=20.0,
    )


def _host(cell: Cell, power_w: float | None, name: str, method: Method, duration_s: float) -> Reading:
    """A meter of whole nodes; where it is not there, the reason."""
    nodes = node_names(cell)
    over = Coverage(
        nodes=nodes if power_w is not None else [],
        nodes_expected=len(nodes),
        devices=[Device(node=node, index=0, name=name) for node in nodes] if power_w is not None else [],
        devices_expected=len(nodes),
        samples=0,
    )
    if power_w is not None:
        return Reading(
            joules=power_w * len(nodes) * duration_s,
            method=method,
            status=Status.MEASURED,
            scope=Scope.ALL_NODES,
            coverage=over,
        )
    denied = method is Method.RAPL
    return Reading(
        joules=None,
        method=None,
        status=Status.PERMISSION_DENIED if denied else Status.UNAVAILABLE,
        scope=Scope.ALL_NODES,
        coverage=over,
        detail="energy_uj: only root may read it" if denied else "Slurm counts no energy here",
    )
