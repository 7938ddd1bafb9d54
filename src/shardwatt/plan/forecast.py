"""The forecast of a cell: whether it fits, and what it will take, put together from the plan's models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

from shardwatt.architectures import Architecture
from shardwatt.cell import Cell
from shardwatt.datasets import load_catalogue
from shardwatt.errors import ShardwattError
from shardwatt.jobshape import JobShape, devices_held, gpus_held, job_shape
from shardwatt.models import find_architecture, unknown_shape
from shardwatt.modelwork import PhaseName
from shardwatt.plan.calibrated import calibration_of, factors_of
from shardwatt.plan.caveats import not_limited, of_calibration, of_power
from shardwatt.plan.device import Factors, PlanDevice, device_of
from shardwatt.plan.jobtime import cool_down_s, host_memory_gib, job_time
from shardwatt.plan.memory import MemoryNeed, cell_memory
from shardwatt.plan.power import OperatingPoint, operating_point
from shardwatt.plan.price import carbon_kg, cost, job_energy_j
from shardwatt.plan.timing import PhaseSeconds, phase_seconds
from shardwatt.plan.workload import ASSUMED_LENGTHS, PhaseLoad, Workload, workload
from shardwatt.site import Site
from shardwatt.study import Study

#: What a phase's time is made of, as `PhaseSeconds` has it with `_s` behind.
_PARTS = ("compute", "memory", "copies", "kernels", "sampling", "latency", "transfer", "launch")

_S_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class PhaseForecast:
    """One phase of a cell, all batches together.

    Attributes:
        duration_s: how long it takes.
        parts_s: what of it takes how long, by name (`compute`, `memory`, `copies`, `kernels`, `sampling`,
            `latency`, `transfer`, `launch`); they overlap where the model says so and need not add up.
        power_w: of all devices together; None where it is not predicted.
        clock: core clock over that without a cap.
        busy: share of it in which a kernel runs on a device, collectives included; None where that is not
            known.
        busy_memory: share of it in which a device's memory is read or written; None likewise.
    """

    duration_s: float
    parts_s: Mapping[str, float]
    power_w: float | None
    clock: float
    busy: float | None = None
    busy_memory: float | None = None


@dataclass(frozen=True, slots=True)
class CellForecast:
    """What a cell will take; every figure but the counts of nodes and GPUs is an estimate, None is unknown.

    Attributes:
        cell: the cell.
        need: memory of one device; None for processors or where the model's shape is not known.
        memory_gib: what one device has.
        fits: whether it fits; None where `need` is None.
        nodes: of the job.
        gpus: one a shard; 0 for processors.
        gpus_held: those that the job keeps from others, of exclusive nodes all.
        batches: of the window; this and the next three are None where the model's shape is not known.
        prompt_tokens: of all prompts.
        output_tokens: of all responses, before their end of sequence.
        generated_tokens: rows x steps that the engine's loop computes.
        phases: prefill, walk, decode, those that the engine has; empty where time is not predicted.
        duration_s: the inference window.
        job_duration_s: the whole job: start, loading, idle baselines, warm-up and window.
        longest_job_s: the same if no response ends by itself and devices cool slowly: what a time limit has
            to hold.
        power_w: of all devices, mean over the window.
        energy_j: of all devices, over the window.
        job_energy_j: of all devices that the job holds, over the whole job.
        duration_range_s: 90 % interval; None without a calibration.
        energy_range_j: likewise.
        gpu_hours: of `gpus_held` over the job.
        node_hours: of `nodes` over the job.
        cost: in the site's currency; None without a price.
        carbon_kg: kgCO2e with the site's PUE; None without its factors.
        host_memory_gib: of each node.
        notes: assumptions, and why something is unknown; a sentence each.
    """

    cell: Cell
    need: MemoryNeed | None
    memory_gib: float
    fits: bool | None
    nodes: int
    gpus: int
    gpus_held: int
    batches: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    generated_tokens: int | None = None
    phases: Mapping[PhaseName, PhaseForecast] = field(default_factory=dict)
    duration_s: float | None = None
    job_duration_s: float | None = None
    longest_job_s: float | None = None
    power_w: float | None = None
    energy_j: float | None = None
    job_energy_j: float | None = None
    duration_range_s: tuple[float, float] | None = None
    energy_range_j: tuple[float, float] | None = None
    gpu_hours: float | None = None
    node_hours: float | None = None
    cost: float | None = None
    carbon_kg: float | None = None
    host_memory_gib: float | None = None
    notes: tuple[str, ...] = ()


class Forecaster:
    """Forecasts of a study's cells; cells that differ in nothing that matters are worked out once.

    Args:
        root: the project's root, below which config/ lies.
        name: the study's name.
        study: its content.
        site: where its cells are to run.
    """

    def __init__(self, root: Path, name: str, study: Study, site: Site) -> None:
        self.name = name
        self._root = root
        self._study = study
        self._site = site
        self._catalogue = load_catalogue(root)
        self._architecture = lru_cache(None)(self._find_architecture)
        self._shape = lru_cache(None)(self._find_shape)
        self._held = lru_cache(None)(partial(gpus_held, site))
        self._devices_held = lru_cache(None)(partial(devices_held, site))
        self._device = lru_cache(None)(self._find_device)
        # Each compares a calibration with the site's figures, which no cell changes.
        self._factors = lru_cache(None)(partial(factors_of, site))
        self._calibration = lru_cache(None)(partial(calibration_of, site))
        self._need = lru_cache(None)(self._find_need)
        self._alike = lru_cache(None)(self._forecast)

    def cell(self, cell: Cell) -> CellForecast:
        """What a cell will take; a simulated one, what the cell will that it stands for.

        What is not known is None, and a note says why.

        Raises:
            SiteError: its shards have no layout on the site's nodes.
        """
        return replace(self._alike(replace(cell, repeat=1)), cell=cell)

    def need(self, cell: Cell) -> MemoryNeed | None:
        """Memory of one device; None for processors, or where the model's shape is not known."""
        if self._site.gpus[cell.gpu].kind != "cuda":
            return None
        return self._need(replace(cell, cap="none", repeat=1))

    def fits(self, cell: Cell) -> bool | None:
        """Whether a cell fits into its devices; None where that is not known."""
        need = self.need(cell)
        return None if need is None else need.total_gib <= self._site.gpus[cell.gpu].memory_gib

    def _forecast(self, cell: Cell) -> CellForecast:
        forecast = self._unknown(cell)
        architecture = self._architecture(cell.model)
        if isinstance(architecture, str):
            return replace(forecast, notes=(architecture,))
        tokens = self._catalogue.dataset(cell.dataset).tokens
        notes = [] if tokens else [f"data set '{cell.dataset}' has no `tokens`: {ASSUMED_LENGTHS.source}"]
        notes += not_limited(self._site, cell)
        load, longest = (
            workload(
                cell,
                architecture,
                prompts=self._study.prompts,
                cache_tokens=self._study.cache_tokens,
                lengths=tokens or ASSUMED_LENGTHS,
                ends=ends,
            )
            for ends in (True, False)
        )
        forecast = replace(
            forecast,
            batches=load.batches,
            prompt_tokens=load.prompt_tokens,
            output_tokens=load.output_tokens,
            generated_tokens=load.generated_tokens,
            host_memory_gib=self._host_memory_gib(cell, architecture),
        )
        device = self._device(cell.gpu, cell.precision, cell.shards)
        if device is None:
            unknown = f"{cell.gpu}: neither a data sheet nor `peak` says what it does in {cell.precision}"
            return replace(forecast, notes=(*notes, f"{unknown}, so its time is not predicted"))
        factors = self._factors(cell.gpu, cell.engine)
        points = self._points(cell, architecture, load, device, factors)
        notes += [*device.assumptions, *of_power(points, cell, device)]
        notes += of_calibration(self._calibration(cell.gpu, cell.engine), cell, factors)
        forecast = replace(forecast, phases={name: _phase(point, cell) for name, point in points.items()})
        forecast = self._timed(forecast, architecture, load, factors)
        most = points if longest == load else self._points(cell, architecture, longest, device, factors)
        longest_job_s = self._job_s(cell, architecture, longest, _seconds(most))
        longest_job_s += cool_down_s(self._site.gpus[cell.gpu], self._study)
        forecast = replace(forecast, longest_job_s=longest_job_s)
        return replace(self._powered(forecast, device, factors), notes=tuple(notes))

    def _unknown(self, cell: Cell) -> CellForecast:
        """What is known of a cell without its model."""
        shape = self._shape(cell.gpu, cell.shards)
        return CellForecast(
            cell=cell,
            need=self.need(cell),
            memory_gib=self._site.gpus[cell.gpu].memory_gib,
            fits=self.fits(cell),
            nodes=shape.nodes,
            gpus=cell.shards if self._site.gpus[cell.gpu].kind == "cuda" else 0,
            gpus_held=self._held(cell.gpu, cell.shards),
        )

    def _points(
        self,
        cell: Cell,
        architecture: Architecture,
        load: Workload,
        device: PlanDevice,
        factors: Factors,
    ) -> dict[PhaseName, OperatingPoint]:
        """Where the devices run in each phase that there is."""
        return {
            name: self._point(cell, architecture, name, part, device, factors)
            for name, part in load.phases.items()
            if part.steps
        }

    def _point(
        self,
        cell: Cell,
        architecture: Architecture,
        name: PhaseName,
        load: PhaseLoad,
        device: PlanDevice,
        factors: Factors,
    ) -> OperatingPoint:
        """Where the devices run in a phase."""
        nodes = self._shape(cell.gpu, cell.shards).nodes

        def seconds_at(clock: float) -> PhaseSeconds:
            return phase_seconds(
                architecture,
                cell,
                name,
                load,
                device,
                factors,
                nodes=nodes,
                clock=clock,
                cuda_graphs=self._study.cuda_graphs,
                temperature=self._study.temperature,
            )

        return operating_point(seconds_at, device, factors, cell.cap_w)

    def _timed(
        self, forecast: CellForecast, architecture: Architecture, load: Workload, factors: Factors
    ) -> CellForecast:
        """A forecast with phases: its times, and the hours that its job keeps nodes and GPUs for."""
        phases_s = {name: phase.duration_s for name, phase in forecast.phases.items()}
        duration_s = sum(phases_s.values())
        job_duration_s = self._job_s(forecast.cell, architecture, load, phases_s)
        return replace(
            forecast,
            duration_s=duration_s,
            duration_range_s=_range(duration_s, factors, "duration_s"),
            job_duration_s=job_duration_s,
            gpu_hours=forecast.gpus_held * job_duration_s / _S_PER_HOUR,
            node_hours=forecast.nodes * job_duration_s / _S_PER_HOUR,
        )

    def _job_s(
        self,
        cell: Cell,
        architecture: Architecture,
        load: Workload,
        phases_s: Mapping[PhaseName, float],
    ) -> float:
        """Time of a whole job, given that of its phases; the warm-up has one batch's prompts."""
        decode = load.phases["decode"].steps
        beside = job_time(
            architecture,
            self._site.gpus[cell.gpu],
            self._shape(cell.gpu, cell.shards),
            self._study,
            precision=cell.precision,
            prefill_s=phases_s["prefill"] * min(cell.batch, load.prompts) / load.prompts,
            step_s=phases_s["decode"] / decode if decode else 0.0,
        )
        return sum(phases_s.values()) + beside.total_s

    def _powered(self, forecast: CellForecast, device: PlanDevice, factors: Factors) -> CellForecast:
        """A timed forecast: its watts and joules, and what they and its hours cost and emit."""
        cell, site = forecast.cell, self._site
        joules = [
            None if phase.power_w is None else phase.power_w * phase.duration_s
            for phase in forecast.phases.values()
        ]
        known = [joule for joule in joules if joule is not None]
        energy_j = sum(known) if len(known) == len(joules) else None
        power_w = energy_j / forecast.duration_s if energy_j is not None and forecast.duration_s else None
        of_job_j = _of_job_j(forecast, device, energy_j, power_w)
        job_h = None if forecast.job_duration_s is None else forecast.job_duration_s / _S_PER_HOUR
        device_hours = None if job_h is None else self._devices_held(cell.gpu, cell.shards) * job_h
        return replace(
            forecast,
            power_w=power_w,
            energy_j=energy_j,
            job_energy_j=of_job_j,
            energy_range_j=_range(energy_j, factors, "energy_j"),
            cost=cost(site, cell.gpu, device_hours=device_hours, energy_j=of_job_j),
            carbon_kg=carbon_kg(site, of_job_j),
        )

    def _host_memory_gib(self, cell: Cell, architecture: Architecture) -> float | None:
        need = self._need(replace(cell, cap="none", repeat=1))
        if need is None:
            return None
        return host_memory_gib(
            architecture,
            self._site.gpus[cell.gpu],
            self._shape(cell.gpu, cell.shards),
            need,
            precision=cell.precision,
        )

    def _find_need(self, cell: Cell) -> MemoryNeed | None:
        architecture = self._architecture(cell.model)
        if isinstance(architecture, str):
            return None
        longest_prompt = self._catalogue.dataset(cell.dataset).longest_prompt
        return cell_memory(cell, architecture, self._study, longest_prompt)

    def _find_shape(self, gpu: str, shards: int) -> JobShape:
        return job_shape(self._site, gpu, shards)

    def _find_device(self, gpu: str, precision: str, shards: int) -> PlanDevice | None:
        return device_of(self._site, gpu, precision, shards)

    def _find_architecture(self, model: str) -> Architecture | str:
        """A model's shape, or why it is not known."""
        try:
            found = find_architecture(self._root, self._site.models, model)
        except ShardwattError as problem:
            return f"model '{model}': {problem}"
        return found or f"{unknown_shape(self._root, self._site.models, model)}; nothing is predicted"


def _seconds(points: Mapping[PhaseName, OperatingPoint]) -> dict[PhaseName, float]:
    """How long each phase takes."""
    return {name: point.seconds.duration_s for name, point in points.items()}


def _range(value: float | None, factors: Factors, quantity: str) -> tuple[float, float] | None:
    """The interval around a prediction; None without a calibration."""
    if value is None or quantity not in factors.spread:
        return None
    low, high = factors.spread[quantity]
    return low * value, high * value


def _of_job_j(
    forecast: CellForecast, device: PlanDevice, energy_j: float | None, power_w: float | None
) -> float | None:
    """Joules of the whole job; processors whose rest is not known are taken to draw what they do at work."""
    if energy_j is None or power_w is None or forecast.job_duration_s is None or forecast.duration_s is None:
        return None
    used = forecast.cell.shards
    rest_w = power_w / used if device.idle_w is None else device.idle_w
    held_s = max(forecast.gpus_held, used) * forecast.job_duration_s
    return job_energy_j(energy_j, rest_w, held_s=held_s, used_s=used * forecast.duration_s)


def _phase(point: OperatingPoint, cell: Cell) -> PhaseForecast:
    """A phase of all devices, from where one of them runs."""
    return PhaseForecast(
        duration_s=point.seconds.duration_s,
        parts_s={part: getattr(point.seconds, f"{part}_s") for part in _PARTS},
        power_w=None if point.power_w is None else point.power_w * cell.shards,
        clock=point.clock,
        busy=point.seconds.busy,
        busy_memory=point.seconds.busy_memory,
    )
