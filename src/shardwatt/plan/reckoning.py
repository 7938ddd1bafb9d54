"""What the plan's models say of runs that others have published, on the machines that they describe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from shardwatt.architectures import CATALOGUE
from shardwatt.cell import Cell
from shardwatt.datasets import TokenLengths
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.modelwork import PhaseName
from shardwatt.plan.calibrated import factors_of
from shardwatt.plan.device import Factors, PlanDevice, device_of
from shardwatt.plan.power import ON_CHIP_J_PER_BYTE, PowerParts, operating_point, power_parts
from shardwatt.plan.published import A100, CHAT_OUTPUT_TOKENS, H100, V100
from shardwatt.plan.timing import PhaseSeconds, phase_seconds
from shardwatt.plan.workload import PhaseLoad, workload
from shardwatt.site import GpuType, Site
from shardwatt.siteplan import LinkFigures, Links

#: Prompts of each data set in the paper.
PAPER_PROMPTS = 4096

#: Cache positions of the paper's runs: what Table II needs, and the published example's own default of its
#: `max_seq_len`. docs/plan.md says what speaks for it.
CACHE_TOKENS = 512

#: The paper's A100s, were all four linked as modules of one node are.
TOGETHER = "a100-nvlink"

#: Prompts of ML.ENERGY's chat task: their lengths are not published with its results, and these are assumed
#: in the shape of chat logs. Only the mean, some 130 tokens, matters for energy.
CHAT = TokenLengths(
    prompt_deciles=[4, 10, 16, 24, 36, 52, 76, 115, 180, 330, 2000],
    prompt_tail=[500, 900, 1500],
    output_mean=CHAT_OUTPUT_TOKENS,
    source="prompts: an assumption; output: Green Token Index, Llama 3.1 8B on one H100, taken for 70B too",
)

#: Latency of a message over Ethernet in us, an assumption: TCP through the kernel takes some 20 to 50.
LATENCY_US = 30.0

#: NVLink of the A100 modules: what four cards would have that hardly wait for each other.
_NVLINK = Links(
    inside=LinkFigures(gb_s=300.0, latency_us=3.4, source="NVIDIA A100 data sheet; NCCL, src/graph/tuning.cc")
)


def site_of(latency_us: float = LATENCY_US) -> Site:
    """The machines, under the names of their data sheets: nodes of two GPUs, and four in a node.

    Args:
        latency_us: of a message over the 25 Gb/s Ethernet of Table I, which the two GPUs of a node share.
    """
    ethernet = Links(
        between=LinkFigures(
            gb_s=25 / 8 / 2, latency_us=latency_us, source="arXiv 2310.03003, table I; latency assumed"
        )
    )

    def gpus(sheet: str, per_node: int, links: Links = ethernet) -> GpuType:
        return GpuType(
            kind="cuda",
            per_node=per_node,
            memory_gib=DATA_SHEETS[sheet].memory_gib,
            data_sheet=sheet,
            links=links,
        )

    return Site(
        name="published",
        launcher="local",
        models=Path("models"),
        data=Path("data"),
        gpus={
            V100: gpus(V100, 2),
            A100: gpus(A100, 2),
            TOGETHER: gpus(A100, 4, _NVLINK),
            H100: gpus(H100, 4),
        },
    )


SITE = site_of()


@dataclass(frozen=True, slots=True)
class Run:
    """A run that somebody has published figures of.

    Attributes:
        model: a name of `CATALOGUE`.
        gpu: a GPU type of `SITE`.
        shards: GPUs.
        batch: prompts answered together.
        length: maximum new tokens.
        datasets: one, or several one after the other.
        cap_w: limit of each GPU in W; None: its TDP.
        engine: whose loop it is.
        precision: of weights and cache.
        cache_tokens: positions of the cache; None: as many as prompt and length take.
        prompts: of each data set.
        cap_on: what the cap holds down: the mean power, as the plan takes it, or that of the time between
            collectives, which a limiter would that sees single milliseconds.
        power: times the factor `power`, where one is calibrated on a published row.
    """

    model: str
    gpu: str
    shards: int
    batch: int
    length: int
    datasets: tuple[str, ...]
    cap_w: int | None
    engine: str = "reference"
    precision: str = "fp16"
    cache_tokens: int | None = CACHE_TOKENS
    prompts: int = PAPER_PROMPTS
    cap_on: Literal["mean", "bursts"] = "mean"
    power: float = 1.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the models say of a run, over its whole window.

    Attributes:
        duration_s: the window.
        step_s: a decode step, mean.
        energy_j: of all GPUs.
        gpu_w: mean power of one GPU.
        power_w: of all.
        parts: power of one GPU by what takes it.
        clock: core clock of the decode phase over the highest.
        output_tokens: before the end of sequence.
        memory_share: of time in which memory is busy.
        compute_share: of time in which matrix units work.
        collective_share: of time in which ranks exchange or wait for each other.
        transfer_share: of time in which what they exchange is on its way; the rest of `collective_share` is
            latency.
        busy_share: of time in which a kernel runs.
    """

    duration_s: float
    step_s: float
    energy_j: float
    gpu_w: float
    power_w: float
    parts: PowerParts
    clock: float
    output_tokens: int
    memory_share: float
    compute_share: float
    collective_share: float
    transfer_share: float
    busy_share: float

    @property
    def energy_per_token_j(self) -> float:
        """Joules of all GPUs per output token."""
        return self.energy_j / self.output_tokens

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second."""
        return self.output_tokens / self.duration_s


@dataclass(frozen=True, slots=True)
class _Phase:
    """A phase of a run on one data set: its time, its power by parts, clock and steps."""

    seconds: PhaseSeconds
    parts: PowerParts
    clock: float
    steps: int
    is_decode: bool


def predict(
    run: Run,
    lengths: Mapping[str, TokenLengths],
    factors: Factors | None = None,
    *,
    site: Site = SITE,
    on_chip_j_per_byte: float = ON_CHIP_J_PER_BYTE,
) -> Prediction:
    """Run the plan's models over all phases of a run.

    Args:
        run: on a GPU type whose TDP and idle power are known.
        lengths: of the data sets' prompts and responses, by name.
        factors: what kernels reach of the data sheet; None: what is assumed without a calibration.
        site: the machines, as `site_of` makes them.
        on_chip_j_per_byte: as `shardwatt.plan.power.ON_CHIP_J_PER_BYTE`.

    Raises:
        KeyError: a data set's lengths are missing.
        ValueError: its power cannot be predicted.
    """
    device = device_of(site, run.gpu, run.precision, run.shards)
    if device is None:
        raise ValueError(f"{run.gpu} in {run.precision}: its data sheet gives no rates")
    reached = factors or factors_of(site, run.gpu, run.engine)
    reached = replace(reached, power=run.power * reached.power)
    phases: list[_Phase] = []
    output_tokens = 0
    for dataset in run.datasets:
        cell = Cell(
            engine=run.engine,
            model=run.model,
            precision=run.precision,
            gpu=run.gpu,
            shards=run.shards,
            batch=run.batch,
            length=run.length,
            dataset=dataset,
            cap="none" if run.cap_w is None else str(run.cap_w),
            repeat=1,
        )
        load = workload(
            cell,
            CATALOGUE[run.model],
            prompts=run.prompts,
            cache_tokens=run.cache_tokens,
            lengths=lengths[dataset],
        )
        output_tokens += load.output_tokens
        phases += [
            _phase(cell, name, part, device, reached, run.cap_on, on_chip_j_per_byte)
            for name, part in load.phases.items()
            if part.steps
        ]
    return _sum(run.shards, phases, output_tokens)


def _phase(
    cell: Cell,
    name: PhaseName,
    load: PhaseLoad,
    device: PlanDevice,
    factors: Factors,
    cap_on: Literal["mean", "bursts"],
    on_chip_j_per_byte: float,
) -> _Phase:
    architecture = CATALOGUE[cell.model]
    nodes = math.ceil(cell.shards / SITE.gpus[cell.gpu].per_node)

    def seconds_at(clock: float) -> PhaseSeconds:
        return phase_seconds(architecture, cell, name, load, device, factors, nodes=nodes, clock=clock)

    def bursts_at(clock: float) -> PhaseSeconds:
        seconds = seconds_at(clock)
        share = 1 - seconds.busy_collective
        return replace(
            seconds,
            duration_s=share * seconds.duration_s,
            busy_compute=seconds.busy_compute / share,
            busy_memory=seconds.busy_memory / share,
            busy_collective=0.0,
        )

    held_at = seconds_at if cap_on == "mean" else bursts_at
    point = operating_point(held_at, device, factors, cell.cap_w, on_chip_j_per_byte=on_chip_j_per_byte)
    if cap_on == "bursts":
        point = replace(point, seconds=seconds_at(point.clock))
    parts = power_parts(point.seconds, device, factors, point.clock, on_chip_j_per_byte=on_chip_j_per_byte)
    if parts is None:
        raise ValueError(f"{cell.gpu}: its TDP and idle power are not known")
    return _Phase(point.seconds, parts, point.clock, load.steps, name == "decode")


def _sum(shards: int, phases: Sequence[_Phase], output_tokens: int) -> Prediction:
    """The whole window: means over its time."""
    duration_s = sum(phase.seconds.duration_s for phase in phases)

    def mean(value: Callable[[_Phase], float], over: Sequence[_Phase] = phases) -> float:
        weighted = sum(phase.seconds.duration_s * value(phase) for phase in over)
        return weighted / sum(phase.seconds.duration_s for phase in over)

    decode = [phase for phase in phases if phase.is_decode]
    gpu_w = mean(lambda phase: phase.parts.total_w)
    return Prediction(
        duration_s=duration_s,
        step_s=sum(phase.seconds.duration_s for phase in decode) / sum(phase.steps for phase in decode),
        energy_j=duration_s * gpu_w * shards,
        gpu_w=gpu_w,
        power_w=gpu_w * shards,
        parts=PowerParts(
            idle_w=mean(lambda phase: phase.parts.idle_w),
            awake_w=mean(lambda phase: phase.parts.awake_w),
            dram_w=mean(lambda phase: phase.parts.dram_w),
            on_chip_w=mean(lambda phase: phase.parts.on_chip_w),
            compute_w=mean(lambda phase: phase.parts.compute_w),
        ),
        clock=mean(lambda phase: phase.clock, decode),
        output_tokens=output_tokens,
        memory_share=mean(lambda phase: phase.seconds.busy_memory),
        compute_share=mean(lambda phase: phase.seconds.busy_compute),
        collective_share=mean(lambda phase: phase.seconds.busy_collective),
        transfer_share=mean(lambda phase: phase.seconds.transfer_s / phase.seconds.duration_s),
        busy_share=mean(lambda phase: phase.seconds.busy),
    )
