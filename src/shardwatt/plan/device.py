"""The device and the links of a plan: what its model of time and power knows of a GPU type of the site."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from shardwatt.datasheets import DATA_SHEETS, DataSheet
from shardwatt.jobshape import job_shape
from shardwatt.plan.warned import Warned
from shardwatt.site import GpuType, Site

#: Clock over boost clock below which no device is planned for, where no data sheet says it (an assumption).
LOWEST_CLOCK = 0.15

#: Time in s in which the host launches one kernel of an eager loop (an assumption): 4 to 6 us in C++ alone,
#: up to some 20 us with a slow processor under Python.
CUDA_LAUNCH_S = 6e-6

#: The same for an operation on a processor, which takes it itself (an assumption).
CPU_LAUNCH_S = 8e-6

#: Power at rest over TDP of a GPU of which neither catalogue nor site says it (an assumption; mostly 0.1 to
#: 0.16 in the catalogue of data sheets).
IDLE_SHARE = 0.13

#: What one core is taken to do where a site gives no `peak` (assumptions, which a calibration corrects). Two
#: units of 256 bits that multiply and add 8 numbers of fp32 each do 32 operations a cycle, 64e9 a second at
#: 2 GHz; the same in 16 bits, which such a core has no faster units for.
CORE_BANDWIDTH_B_S = 10e9
CORE_FLOP_PER_S = 60e9

#: Ends what is assumed of processors, until a calibration told what it could.
OR_CALIBRATE = ", or calibrate"

#: What nodes are taken to be linked by: 25 Gb/s Ethernet, 30 us a message (assumptions), all GPUs of a node
#: together.
NODE_LINK_B_S = 25e9 / 8
NODE_LATENCY_S = 30e-6

#: Latency in s of a message between two GPUs of a node: what NCCL reckons with for large ones over
#: NVLink and over PCIe (`hwLat` in its src/graph/tuning.cc).
NVLINK_LATENCY_S = 3.4e-6
PCIE_LATENCY_S = 5.7e-6

#: Bandwidth in B/s above which a link inside a node is no PCIe slot (x16 of generation 5 has 64 GB/s).
_MOST_PCIE_B_S = 64e9

#: PCIe x16 of generation 3, where a GPU has no data sheet (an assumption), in B/s.
_PCIE_3_B_S = 16e9

#: Ranks on processors exchange through gloo: 0.4 ms for a sum of 16 KiB between two processes (seen on two
#: cores), so 0.2 ms a message; the bandwidth is an assumption.
_GLOO_LATENCY_S = 200e-6
_GLOO_B_S = 1e9


@dataclass(frozen=True, slots=True)
class Link:
    """A way between ranks.

    Attributes:
        bandwidth_b_s: in one direction, of one rank's own share of it, in B/s.
        latency_s: of one message, in s.
        source: where the figures come from; an assumption says so.
        peers: devices that the bandwidth is shared out to, where each pair has a part of its own and no
            switch: n ranks that exchange use n - 1 parts. 1 where any two have all of it.
    """

    bandwidth_b_s: float
    latency_s: float
    source: str
    peers: int = 1


@dataclass(frozen=True, slots=True)
class PlanDevice:
    """One device of a GPU type, in the cell's precision; for processors, one rank's share of the machine.

    Attributes:
        name: of the data sheet, or of the GPU type.
        kind: `cuda` or `cpu`.
        memory_gib: its memory.
        flop_per_s: of its matrix units in the precision, dense.
        memory_bandwidth_b_s: of its memory in B/s.
        tdp_w: thermal design power in W; None where it is not known, and watts are not predicted.
        idle_w: power in W at rest, driver loaded; None likewise.
        launch_s: time in s in which the host launches one kernel of an eager loop.
        inside: link between devices of a node.
        between: link between nodes.
        source: where the figures come from.
        assumptions: what is assumed because nobody says it, a sentence each; of links, warnings.
        lowest_clock: lowest core clock over the boost clock that `flop_per_s` holds at.
    """

    name: str
    kind: str
    memory_gib: float
    flop_per_s: float
    memory_bandwidth_b_s: float
    tdp_w: float | None
    idle_w: float | None
    launch_s: float
    inside: Link
    between: Link
    source: str
    assumptions: tuple[str, ...] = ()
    lowest_clock: float = LOWEST_CLOCK


@dataclass(frozen=True, slots=True)
class Factors:
    """What real kernels reach of a data sheet's figures: the named numbers that `shardwatt calibrate` fits.

    Attributes:
        compute: share of the operations a second that large matrix products reach.
        bandwidth: share of the memory bandwidth that weights and cache are read at.
        network: share of a link's bandwidth that collectives reach; latencies are the assumption's over it
            times as long, so that small messages tell it too.
        launch: times the assumed launch time of a kernel.
        power: times the predicted power above idle; of processors, times all of it.
        source: the assumption, or the calibration that they come from.
        spread: of measured over predicted, by quantity (`duration_s`, `energy_j`): lower and upper factor of
            a 90 % interval; empty before a calibration.
    """

    compute: float
    bandwidth: float
    network: float
    launch: float
    power: float
    source: str
    spread: Mapping[str, tuple[float, float]]


#: Factors before a calibration, by kind of device. Compute and bandwidth are assumptions: large products in
#: 16 bits reach 0.6 to 0.8 of a data sheet, kernels that read weights once 0.75 to 0.9. Network: NCCL reckons
#: with 235 of the 300 GB/s of an A100's NVLink (src/graph/tuning.cc). On processors all are assumptions.
DEFAULT_FACTORS: Mapping[str, Factors] = {
    "cuda": Factors(
        compute=0.65,
        bandwidth=0.8,
        network=0.8,
        launch=1.0,
        power=1.0,
        source="assumed shares of a data sheet's figures",
        spread={},
    ),
    "cpu": Factors(
        compute=0.7,
        bandwidth=0.8,
        network=0.5,
        launch=1.0,
        power=1.0,
        source="assumed shares of the processor's figures",
        spread={},
    ),
}


def device_of(site: Site, gpu: str, precision: str, shards: int) -> PlanDevice | None:
    """One device of a GPU type as the plan sees it; what nobody says is assumed and named.

    Returns:
        None where the kind is cuda and neither a data sheet nor `peak` gives the memory bandwidth and the
        operations a second in this precision.

    Raises:
        SiteError: the shards do not fill whole nodes, or there are too few.
    """
    gpu_type = site.gpus[gpu]
    assumptions: list[str] = []
    if gpu_type.kind == "cpu":
        return _processor(site, gpu, precision, shards, assumptions)
    sheet = DATA_SHEETS[gpu_type.data_sheet] if gpu_type.data_sheet else None
    figures = _gpu_figures(gpu_type, sheet, precision)
    if figures is None:
        return None
    bandwidth_b_s, flop_per_s, source = figures
    tdp_w = gpu_type.tdp_w or (sheet.tdp_w if sheet else None)
    return PlanDevice(
        name=sheet.name if sheet else gpu,
        kind=gpu_type.kind,
        memory_gib=gpu_type.memory_gib,
        flop_per_s=flop_per_s,
        memory_bandwidth_b_s=bandwidth_b_s,
        tdp_w=tdp_w,
        idle_w=idle_w(gpu, gpu_type, sheet, tdp_w, assumptions),
        launch_s=CUDA_LAUNCH_S,
        inside=_inside(site, gpu, sheet, assumptions),
        between=_between(site, gpu, shards, assumptions),
        source=source,
        lowest_clock=_lowest_clock(gpu, gpu_type, sheet, tdp_w, assumptions),
        assumptions=tuple(assumptions),
    )


def _gpu_figures(
    gpu_type: GpuType, sheet: DataSheet | None, precision: str
) -> tuple[float, float, str] | None:
    """Memory bandwidth in B/s, operations a second and their source; None where one is missing."""
    if sheet is not None:
        rate = sheet.flop_per_s[precision]
        return None if rate is None else (sheet.memory_bandwidth_b_s, rate, sheet.source)
    peak = gpu_type.peak
    if peak is None or peak.memory_bandwidth_gb_s is None:
        return None
    tflops: float | None = getattr(peak.tflops, precision, None)
    return None if tflops is None else (peak.memory_bandwidth_gb_s * 1e9, tflops * 1e12, peak.source)


def idle_w(
    gpu: str, gpu_type: GpuType, sheet: DataSheet | None, tdp_w: float | None, assumptions: list[str]
) -> float | None:
    """Power of a GPU at rest: the site's word, the catalogue's, or a share of its thermal design power."""
    if sheet is not None:
        return sheet.idle_w
    if gpu_type.peak is not None and gpu_type.peak.idle_w is not None:
        return gpu_type.peak.idle_w
    if tdp_w is None:
        return None
    assumptions.append(
        f"{gpu}: {IDLE_SHARE:.0%} of {tdp_w:g} W at rest are assumed; give gpus.{gpu}.peak.idle_w"
    )
    return IDLE_SHARE * tdp_w


def _lowest_clock(
    gpu: str, gpu_type: GpuType, sheet: DataSheet | None, tdp_w: float | None, assumptions: list[str]
) -> float:
    """Lowest core clock over the boost clock: the catalogue's, the site's word, or an assumption, which is
    named where watts are predicted: nothing else hangs on it."""
    if sheet is not None:
        return sheet.lowest_clock_mhz / sheet.clock_mhz
    peak = gpu_type.peak
    if peak is not None and peak.lowest_clock_mhz is not None and peak.clock_mhz is not None:
        return peak.lowest_clock_mhz / peak.clock_mhz
    if tdp_w is not None:
        assumptions.append(
            f"{gpu}: a lowest clock of {LOWEST_CLOCK:.0%} of the boost clock is assumed; give "
            f"gpus.{gpu}.peak.clock_mhz and lowest_clock_mhz"
        )
    return LOWEST_CLOCK


def _processor(site: Site, gpu: str, precision: str, shards: int, assumptions: list[str]) -> PlanDevice:
    """One rank's share of a machine: of its `peak`, or of what its cores are taken to do."""
    gpu_type = site.gpus[gpu]
    ranks = job_shape(site, gpu, shards).ranks_per_node
    share, cores = _share_of_cores(site, gpu, ranks)
    peak, tdp_w = gpu_type.peak, gpu_type.tdp_w
    if share is None:
        if peak or tdp_w:
            assumptions.append(
                f"{gpu}: a rank has {cores:g} of a machine's cores, and how many these are is not known, so "
                f"`peak` and `tdp_w` are left out; give gpus.{gpu}.cores_per_node"
            )
        share, peak, tdp_w = 1.0, None, None
    bandwidth_b_s, flop_per_s = cores * CORE_BANDWIDTH_B_S, cores * CORE_FLOP_PER_S
    assumed = []
    if peak is not None and peak.memory_bandwidth_gb_s is not None:
        bandwidth_b_s = share * peak.memory_bandwidth_gb_s * 1e9
    else:
        assumed.append(f"{CORE_BANDWIDTH_B_S / 1e9:g} GB/s")
    tflops: float | None = getattr(peak.tflops, precision, None) if peak else None
    if tflops is not None:
        flop_per_s = share * tflops * 1e12
    else:
        assumed.append(f"{CORE_FLOP_PER_S / 1e9:g} GFLOP/s")
    if assumed:
        assumptions.append(
            f"{gpu}: a core is taken to do {' and '.join(assumed)}; give gpus.{gpu}.peak{OR_CALIBRATE}"
        )
    if ranks > 1 and site.link(gpu, "inside") is None:
        assumptions.append(
            Warned(
                f"{gpu}: {_GLOO_B_S / 1e9:g} GB/s between ranks of a machine and "
                f"{_GLOO_LATENCY_S * 1e6:g} us a message are assumed; give links.inside{OR_CALIBRATE}"
            )
        )
    return PlanDevice(
        name=gpu,
        kind=gpu_type.kind,
        memory_gib=gpu_type.memory_gib,
        flop_per_s=flop_per_s,
        memory_bandwidth_b_s=bandwidth_b_s,
        tdp_w=None if tdp_w is None else share * tdp_w,
        idle_w=None if peak is None or peak.idle_w is None else share * peak.idle_w,
        launch_s=CPU_LAUNCH_S,
        inside=_inside(site, gpu, None, assumptions),
        between=_between(site, gpu, shards, assumptions),
        source=peak.source if peak else "assumption",
        assumptions=tuple(assumptions),
    )


def _share_of_cores(site: Site, gpu: str, ranks: int) -> tuple[float | None, float]:
    """What a rank has of a machine: a share, and a number of cores.

    Elsewhere than on this machine it has those that it is bound to, and the share is None where the site does
    not say how many cores there are.
    """
    there, own = site.gpus[gpu].cores_per_node, site.threads_per_rank
    if site.launcher == "local":
        there = there or os.cpu_count() or 1
        own = own or there
    own = own or site.words(gpu).cpus_per_rank or 1
    if there is None:
        return None, own
    cores = min(own, there / ranks)
    return cores / there, cores


def _inside(site: Site, gpu: str, sheet: DataSheet | None, assumptions: list[str]) -> Link:
    """The link between devices of a node: the site's word, the data sheet's, or an assumption."""
    if (said := site.link(gpu, "inside")) is not None:
        return Link(said.gb_s * 1e9, said.latency_us * 1e-6, said.source)
    if site.gpus[gpu].kind == "cpu":
        return Link(_GLOO_B_S, _GLOO_LATENCY_S, "assumption: gloo between processes of a machine")
    if sheet is not None:
        bandwidth_b_s = sheet.link_gb_s * 1e9
        nvlink = bandwidth_b_s > _MOST_PCIE_B_S
        per_node = site.gpus[gpu].per_node
        return Link(
            bandwidth_b_s,
            NVLINK_LATENCY_S if nvlink else PCIE_LATENCY_S,
            sheet.source,
            peers=sheet.peers if per_node <= sheet.meshed else 1,
        )
    if site.gpus[gpu].per_node > 1:
        assumptions.append(
            Warned(
                f"{gpu}: {_PCIE_3_B_S / 1e9:g} GB/s between GPUs of a node, as PCIe 3 has, are assumed; give "
                "links.inside"
            )
        )
    return Link(_PCIE_3_B_S, PCIE_LATENCY_S, "assumption: PCIe 3 x16")


def _between(site: Site, gpu: str, shards: int, assumptions: list[str]) -> Link:
    """One rank's share of the link between nodes: the site's word, or an assumption that is named where the
    job needs it."""
    if (said := site.link(gpu, "between")) is not None:
        return Link(said.gb_s * 1e9, said.latency_us * 1e-6, said.source)
    per_node = site.gpus[gpu].per_node
    if shards > per_node:
        assumptions.append(
            Warned(
                f"{gpu}: 25 Gb/s Ethernet between nodes, shared by their {per_node} ranks, and "
                f"{NODE_LATENCY_S * 1e6:g} us a message are assumed; give links.between"
            )
        )
    return Link(NODE_LINK_B_S / per_node, NODE_LATENCY_S, "assumption: 25 Gb/s Ethernet")
