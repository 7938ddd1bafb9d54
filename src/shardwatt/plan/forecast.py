"""The forecast of a cell: whether it fits, and what it will take, put together from the plan's models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from shardwatt.plan.caveats import of_device, of_model, of_power, of_prompts, of_site
from shardwatt.plan.cellforecast import CellForecast, PhaseForecast
from shardwatt.plan.device import Factors, PlanDevice, device_of
from shardwatt.plan.jobtime import cool_down_s, host_memory_gib, job_time
from shardwatt.plan.memory import MemoryNeed, cell_memory
from shardwatt.plan.power import OperatingPoint, operating_point
from shardwatt.plan.price import allocation_energy_j, carbon_kg, cost
from shardwatt.plan.timing import PhaseSeconds, phase_seconds
from shardwatt.plan.workload import ASSUMED_LENGTHS, PhaseLoad, Workload, most_positions, workload
from shardwatt.site import Site
from shardwatt.study import Study

#: What a phase's time is made of, as `PhaseSeconds` has it with `_s` behind.
_PARTS = ("compute", "memory", "copies", "kernels", "sampling", "latency", "transfer", "launch")

_S_PER_HOUR = 3600.0


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
        if cell.repeat == 1:
            return self._alike(cell)
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
            return replace(forecast, notes=of_model(architecture))
        dataset = self._catalogue.dataset(cell.dataset)
        tokens, positions = dataset.tokens, most_positions(architecture, self._study.cache_tokens)
        notes = [] if tokens else [f"data set '{cell.dataset}' has no `tokens`: {ASSUMED_LENGTHS.source}"]
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
        notes += of_prompts(cell, dataset.longest_prompt, positions, architecture.context)
        notes += of_site(self._site, cell, forecast.host_memory_gib)
        device = self._device(cell.gpu, cell.precision, cell.shards)
        if device is None:
            unknown = f"{cell.gpu}: neither a data sheet nor `peak` says what it does in {cell.precision}"
            return replace(forecast, notes=(*notes, f"{unknown}, so its time is not predicted"))
        factors = self._factors(cell.gpu, cell.engine)
        points = self._points(cell, architecture, load, device, factors)
        notes += of_power(points, cell, device)
        found = self._calibration(cell.gpu, cell.engine)
        notes += of_device(device, found, cell, factors)
        forecast = replace(
            forecast,
            phases={name: _phase(point, cell) for name, point in points.items()},
            is_calibrated=found is not None and bool(found.fitted or found.at_bound),
        )
        forecast = self._timed(forecast, architecture, load, factors)
        is_as_long = longest.phases == load.phases
        most = points if is_as_long else self._points(cell, architecture, longest, device, factors)
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
        allocation_duration_s = self._job_s(forecast.cell, architecture, load, phases_s)
        return replace(
            forecast,
            duration_s=duration_s,
            duration_range_s=_range(duration_s, factors, "duration_s"),
            allocation_duration_s=allocation_duration_s,
            gpu_hours=forecast.gpus_held * allocation_duration_s / _S_PER_HOUR,
            node_hours=forecast.nodes * allocation_duration_s / _S_PER_HOUR,
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
        of_allocation_j = _of_allocation_j(forecast, device, energy_j, power_w)
        job_s, held = forecast.allocation_duration_s, self._devices_held(cell.gpu, cell.shards)
        device_hours = None if job_s is None else held * job_s / _S_PER_HOUR
        return replace(
            forecast,
            power_w=power_w,
            energy_j=energy_j,
            allocation_energy_j=of_allocation_j,
            energy_range_j=_range(energy_j, factors, "energy_j"),
            cost=cost(site, cell.gpu, device_hours=device_hours, energy_j=of_allocation_j),
            carbon_kg=carbon_kg(site, of_allocation_j),
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


def _of_allocation_j(
    forecast: CellForecast, device: PlanDevice, energy_j: float | None, power_w: float | None
) -> float | None:
    """Joules of all that a job holds; processors of which rest is not known are taken to draw as at work."""
    job_s, window_s = forecast.allocation_duration_s, forecast.duration_s
    if energy_j is None or power_w is None or job_s is None or window_s is None:
        return None
    used = forecast.cell.shards
    rest_w = power_w / used if device.idle_w is None else device.idle_w
    held_s = max(forecast.gpus_held, used) * job_s
    return allocation_energy_j(energy_j, rest_w, held_s=held_s, used_s=used * window_s)


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
