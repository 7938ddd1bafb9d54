"""What finished cells did, as the plan's models take it: work as counted, time and watts as measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from shardwatt.analysis.survey import REFUSED, CellState, State
from shardwatt.architectures import Architecture
from shardwatt.cell import Cell
from shardwatt.efficiency import PhaseEfficiency
from shardwatt.engines import ENGINES
from shardwatt.errors import ShardwattError
from shardwatt.models import find_architecture
from shardwatt.modelwork import PhaseName, Work, flop
from shardwatt.plan.device import DEFAULT_FACTORS, Factors, PlanDevice, device_of
from shardwatt.plan.power import OperatingPoint, operating_point
from shardwatt.plan.timing import LOOP_COSTS, PhaseSeconds, phase_seconds
from shardwatt.plan.workload import PhaseLoad
from shardwatt.readings import METERED
from shardwatt.records import Record
from shardwatt.site import Site
from shardwatt.study import Constants

_PHASES: tuple[PhaseName, ...] = ("prefill", "walk", "decode")

#: Engines that can replay steps from CUDA graphs.
_CAPTURING = frozenset(name for name, facts in ENGINES.items() if LOOP_COSTS[facts.loop].graphs)


class UnusableCell(ShardwattError):
    """A finished cell that a calibration cannot use."""


@dataclass(frozen=True, slots=True, order=True)
class Configuration:
    """What twins share: the axes, and those of the constants that change what a step takes.

    Attributes:
        cell: as its first repeat, with a cap only where it changes anything, and no more length than a prompt
            of one token leaves room for.
        cache_tokens: positions of the KV cache that the study asks for; 0 where it does not.
        cuda_graphs: when an engine that can capture its steps does so.
        is_greedy: whether tokens are taken without a draw.
    """

    cell: Cell
    cache_tokens: int
    cuda_graphs: str
    is_greedy: bool


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """One finished cell.

    Attributes:
        study: that it is of.
        cell: which.
        constants: that it ran with.
        nodes: that it ran on.
        architecture: of its model.
        device: one of its devices as the plan sees it.
        loads: what went through the model in each phase that took time, as counted on rank 0.
        phases_s: how long each of those took.
        duration_s: the inference window, work between batches included.
        energy_j: of all devices over the window, where it was metered, breaks no rule, and watts are
            predicted; otherwise None.
        prompt_tokens: of all prompts.
        output_tokens: of all responses.
        prompts: that were answered.
        holding_cap_w: the cell's power cap in W, where it changes anything by the models' assumptions; None
            without a cap that does.
    """

    study: str
    cell: Cell
    constants: Constants
    nodes: int
    architecture: Architecture
    device: PlanDevice
    loads: Mapping[PhaseName, PhaseLoad]
    phases_s: Mapping[PhaseName, float]
    duration_s: float
    energy_j: float | None
    prompt_tokens: int
    output_tokens: int
    prompts: int
    holding_cap_w: float | None = None

    @property
    def power_w(self) -> float | None:
        """Mean power of all devices over the window in W; None without `energy_j`."""
        return None if self.energy_j is None else self.energy_j / self.duration_s

    @property
    def configuration(self) -> Configuration:
        """What it shares with its twins alone, whose time and watts tell its own.

        Twins are its repeats; the same cell in another study, be it with more or other prompts; cells that
        differ only in caps that hold nothing back, in batches that the prompts do not fill, or in lengths
        that no response can reach.
        """
        cap = "none" if self.holding_cap_w is None else self.cell.cap
        batch = min(self.cell.batch, self.constants.prompts)
        context = self.architecture.context
        length = min(self.cell.length, min(context, self.constants.cache_tokens or context) - 1)
        return Configuration(
            replace(self.cell, repeat=1, cap=cap, batch=batch, length=length),
            cache_tokens=self.constants.cache_tokens or 0,
            cuda_graphs=self.constants.cuda_graphs if self.cell.engine in _CAPTURING else "never",
            is_greedy=self.constants.temperature == 0,
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the plan's models make of a cell's work.

    Attributes:
        phases_s: time of each phase in s.
        power_w: of all devices, mean over the phases as long as they were measured; None where it is not
            predicted.
        energy_j: of all devices, over the phases as long as they are predicted; None likewise.
    """

    phases_s: Mapping[PhaseName, float]
    power_w: float | None
    energy_j: float | None

    @property
    def duration_s(self) -> float:
        """Of the inference window; what lies between its batches is taken to take no time."""
        return sum(self.phases_s.values())


def predict(one: Observation, factors: Factors) -> Prediction:
    """Put a cell's own work through the plan's models of time and power."""
    phases_s: dict[PhaseName, float] = {}
    powers_w: dict[PhaseName, float | None] = {}
    for phase in one.loads:
        point = _point(one, phase, factors, one.cell.cap_w)
        phases_s[phase] = point.seconds.duration_s
        powers_w[phase] = None if point.power_w is None else point.power_w * one.cell.shards
    return Prediction(phases_s, _mean(powers_w, one.phases_s), _joules(powers_w, phases_s))


def with_cap(one: Observation) -> Observation:
    """A cell with its cap as `holding_cap_w`, where a phase is another one with it than without."""
    cap_w, assumed = one.cell.cap_w, DEFAULT_FACTORS[one.device.kind]
    holds = cap_w is not None and any(
        _point(one, phase, assumed, cap_w) != _point(one, phase, assumed, None) for phase in one.loads
    )
    return replace(one, holding_cap_w=cap_w if holds else None)


def _point(one: Observation, phase: PhaseName, factors: Factors, cap_w: float | None) -> OperatingPoint:
    """Where the devices run in a phase."""

    def seconds_at(clock: float) -> PhaseSeconds:
        return phase_seconds(
            one.architecture,
            one.cell,
            phase,
            one.loads[phase],
            one.device,
            factors,
            nodes=one.nodes,
            clock=clock,
            cuda_graphs=one.constants.cuda_graphs,
            temperature=one.constants.temperature,
        )

    return operating_point(seconds_at, one.device, factors, cap_w)


def _joules(powers_w: Mapping[PhaseName, float | None], phases_s: Mapping[PhaseName, float]) -> float | None:
    known = [(power_w, phases_s[phase]) for phase, power_w in powers_w.items() if power_w is not None]
    return sum(power_w * lasted_s for power_w, lasted_s in known) if len(known) == len(powers_w) else None


def _mean(powers_w: Mapping[PhaseName, float | None], phases_s: Mapping[PhaseName, float]) -> float | None:
    joules = _joules(powers_w, phases_s)
    return None if joules is None else joules / sum(phases_s.values())


def observe(root: Path, site: Site, states: Iterable[CellState]) -> tuple[list[Observation], list[str]]:
    """What the finished cells among those of a study did, and in words why others are not used.

    Simulated cells are none: a fit to them would find what the plan had put in. Nor are those of another
    site, whose machines are others.

    Args:
        root: the project's root.
        site: the place.
        states: of the cells.
    """

    @cache
    def architecture(model: str) -> Architecture:
        found = find_architecture(root, site.models, model)
        if found is None:
            raise UnusableCell(
                f"the shape of {model} is not known: neither the site's models nor config/ have it"
            )
        return found

    observed: list[Observation] = []
    skipped: Counter[str] = Counter()
    for state in states:
        if state.state is not State.OK or state.record is None or state.record.simulated:
            continue
        if (place := state.record.provenance.site) != site.name:
            skipped[f"they ran at site '{place}', not at '{site.name}'"] += 1
            continue
        try:
            observed.append(_observation(site, architecture(state.cell.model), state.record))
        except ShardwattError as problem:  # a model or a layout of the site, too, may be another one now
            skipped[str(problem)] += 1
            continue
        if observed[-1].energy_j is None:
            skipped[f"time alone, no watts: {_why_no_watts(state.record, observed[-1].device)}"] += 1
    return observed, [f"{_cells(count)}: {reason}" for reason, count in skipped.items()]


def unusable(study: str, states: Iterable[CellState]) -> list[str]:
    """In words, how many cells of a study have records that nothing can be taken from; of simulated cells,
    which are no observations anyhow, none is named."""
    counts = Counter(
        state.state
        for state in states
        if state.state in REFUSED and ENGINES[state.cell.engine].simulates is None
    )
    return [
        f"{_cells(count)}: {state}, and left out; `shardwatt cells {study} --outcome {state}` says why"
        for state, count in counts.items()
    ]


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _observation(site: Site, architecture: Architecture, record: Record) -> Observation:
    """Take a record of outcome `ok` apart.

    Raises:
        UnusableCell: the site says too little of the GPU type, or the work is another model's.
    """
    cell, timings, counts = record.cell.to_cell(), record.timings, record.counts
    efficiency, energy = record.efficiency, record.energy
    assert timings is not None  # a record of outcome ok has all of them
    assert counts is not None
    assert efficiency is not None
    assert energy is not None
    device = device_of(site, cell.gpu, cell.precision, cell.shards)
    if device is None:
        raise UnusableCell(
            f"the site has no figures of {cell.gpu} in {cell.precision}; give gpus.{cell.gpu}.data_sheet or "
            f"gpus.{cell.gpu}.peak"
        )
    phases_s = {
        phase: lasted_s
        for phase in _PHASES
        if (lasted_s := getattr(timings, f"{phase}_s")) > 0 and getattr(efficiency, phase).steps > 0
    }
    if not phases_s:
        raise UnusableCell(f"{cell.path} computed nothing")
    loads = {
        phase: measured_load(architecture, cell, phase, getattr(efficiency, phase), counts.prompts)
        for phase in phases_s
    }
    if "decode" in loads and ENGINES[cell.engine].loop == "transformers":
        # Its steps go over the padding before shorter prompts too, which hold nothing.
        padded = efficiency.prefill.tokens / counts.prompts
        steps = loads["decode"].steps / counts.batches
        loads["decode"] = replace(loads["decode"], positions=padded + (steps + 1) / 2)
    observed = Observation(
        study=record.study,
        cell=cell,
        constants=record.constants,
        nodes=record.nodes,
        architecture=architecture,
        device=device,
        loads=loads,
        phases_s=phases_s,
        duration_s=timings.duration_s,
        energy_j=None if _why_no_watts(record, device) else energy.window.joules,
        prompt_tokens=counts.prompt_tokens,
        output_tokens=counts.output_tokens,
        prompts=counts.prompts,
    )
    return with_cap(observed)


def _why_no_watts(record: Record, device: PlanDevice) -> str | None:
    """Why a cell's joules are of no use; None where they are."""
    energy = record.energy
    if energy is None or energy.window.status not in METERED or not energy.window.joules:
        return f"its energy is {energy.window.status if energy else 'unknown'}, not metered"
    if energy.violations:
        return "its energy breaks a rule (`shardwatt report` lists them)"
    if device.tdp_w is None or (device.kind == "cuda" and device.idle_w is None):
        return f"the site has no TDP or no idle power of {record.cell.gpu}"
    return None


def measured_load(
    architecture: Architecture, cell: Cell, phase: PhaseName, counted: PhaseEfficiency, prompts: int
) -> PhaseLoad:
    """What went through the model in a phase, from what a record counted of it.

    The record has steps, tokens and operations; logits and what is behind the last layer's attention follow
    from the engine, as when it was written. The positions that were attended to are what is then left of the
    operations, exactly: these are linear in each of the four.

    Args:
        architecture: of the cell's model.
        cell: which.
        phase: which.
        counted: the record's counts.
        prompts: of the cell.

    Raises:
        UnusableCell: nothing whole is left: the operations are not those of such a model.
    """
    facts, tokens = ENGINES[cell.engine], counted.tokens
    ends = prompts if phase == "prefill" else tokens
    work = Work(
        tokens=tokens,
        logits=ends if facts.logits == "last" else tokens,
        finished=ends if facts.finished == "last" else tokens,
    )
    rest = counted.flop_executed - flop(architecture, work, cell.shards)
    attended, remainder = divmod(rest, flop(architecture, Work(attended=1), cell.shards))
    if remainder or rest < 0:
        raise UnusableCell(f"the shape of {cell.model} is not the one that its cells ran with")
    rows = prompts if phase == "prefill" else tokens
    positions = tokens / prompts if phase == "prefill" else attended / tokens
    return PhaseLoad(counted.steps, rows / counted.steps, replace(work, attended=attended), positions)
