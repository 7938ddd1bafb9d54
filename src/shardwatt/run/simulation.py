"""A simulated cell, seen from its supervisor: what its ranks hold, and what would have come of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from shardwatt.architectures import Architecture
from shardwatt.cell import Cell
from shardwatt.datasets import load_catalogue
from shardwatt.engines import loop_of
from shardwatt.errors import CellFailure, Reason
from shardwatt.jobshape import JobShape
from shardwatt.models import find_architecture
from shardwatt.modelwork import PhaseName
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.device import device_of
from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.leftout import left_out
from shardwatt.plan.lengths import Lengths
from shardwatt.plan.rehearsal import played
from shardwatt.plan.workload import ASSUMED_LENGTHS, workload
from shardwatt.power.draw import simulated_gpus
from shardwatt.power.meters.replay import Replay
from shardwatt.readings import Mean
from shardwatt.records import Inputs, Simulated
from shardwatt.run.exchange import Acting, BatchPlan, BatchRun, RunReport
from shardwatt.run.simulatedbatches import simulated_batches, simulated_runs
from shardwatt.run.stretch import Stretch, moved_runs
from shardwatt.site import Site
from shardwatt.study import Study

#: Words of a response for each of its tokens, where there is no text to count them in (an assumption: the
#: tokenizers of LLaMA take about four tokens for three English words).
WORDS_PER_TOKEN = 0.75

#: Shortest time in real s for which a batch's phases hold powers of their own: two of the sampler's periods.
#: In a shorter one no meter would see them, and the window's mean is held.
_RESOLVED_S = 0.2

#: In a record, for the data that a simulated cell does not read.
_NOT_READ = "simulated"


@dataclass(frozen=True, slots=True)
class Simulation:
    """What is known of a simulated cell before its ranks start.

    Attributes:
        engine: the engine that it stands for.
        architecture: the model's shape.
        batches: the prompts, of tokens without a meaning.
        runs: the batches as they would be answered, in planned s since the window has begun.
        duration_s: planned time of the window.
        window_s: real time of it.
        phases_w: planned power of a rank's device in each phase; empty where the plan knows none.
        idle_w: that of one that holds nothing; None where it is not known.
        draw_file: where simulated GPUs are told what they draw; None: the ranks' watts are replayed.
        fits: whether the model fits by the plan; None where that is not known.
        refusal: why it is to end as `does_not_fit`; None: it runs.
        utilisation: of the devices by the plan, by its name in a record; what it does not know is left out.
        played: identity of the forecast, in place of a model's.
        notes: what the plan says of its own assumptions.
    """

    engine: str
    architecture: Architecture
    batches: list[BatchPlan]
    runs: list[BatchRun]
    duration_s: float
    window_s: float
    phases_w: dict[PhaseName, float]
    idle_w: float | None
    draw_file: Path | None
    fits: bool | None
    refusal: str | None
    utilisation: dict[str, Mean]
    played: str
    notes: tuple[str, ...]

    @property
    def lapse(self) -> float:
        """Planned time over real time."""
        return self.duration_s / self.window_s

    @property
    def inputs(self) -> Inputs:
        """Their identity: that of the forecast and of the made-up prompts."""
        ids = sorted(self._prompt_ids)
        return Inputs(
            model_fingerprint=self.played,
            dataset_sha256=_NOT_READ,
            prompt_ids_sha256=hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        )

    @property
    def _prompt_ids(self) -> list[str]:
        return [one for batch in self.batches for one in batch.prompt_ids]

    @property
    def stretch(self) -> Stretch:
        """From real to planned time."""
        return Stretch(self.lapse, self.window_s, self.utilisation)

    @property
    def watts(self) -> str:
        """Where the record's watts come from, in words."""
        if not self.phases_w:
            return "unknown: the plan predicts none for this GPU type"
        if self.draw_file is not None:
            return "the plan's, drawn by simulated GPUs and metered there"
        return "the plan's, replayed"

    def acting(self) -> Acting:
        """What the ranks are told."""
        return Acting(
            window_s=self.window_s,
            steps=self._steps(),
            prompts=len(self._prompt_ids),
            generated_tokens=sum(run.generated_tokens for run in self.runs),
            does_not_fit=self.refusal,
            draw_file=self.draw_file,
        )

    def replay(self, gpu: str) -> Replay | None:
        """What a node's meter replays; None where simulated GPUs are metered.

        Args:
            gpu: the site's GPU type.
        """
        if self.draw_file is not None:
            return None
        detail = "simulated: the plan's watts, no measurement"
        if not self.phases_w:
            detail = (
                "simulated, and the plan predicts no watts for this GPU type: give it a data_sheet, or "
                "tdp_w and peak.idle_w"
            )
        return Replay(
            device=f"{gpu} (simulated)", idle_w=self.idle_w, detail=detail, has_power=bool(self.phases_w)
        )

    def report(self, report: RunReport) -> RunReport:
        """What rank 0 reported, with the batches that it held the power of, in its real time."""
        batches = moved_runs(self.runs, lambda time_s: report.window_start_s + time_s / self.lapse)
        return report.model_copy(update={"batches": batches})

    def record(self) -> Simulated:
        """What the cell's record says of it."""
        return Simulated(
            engine=self.engine,
            window_s=None if self.refusal else self.window_s,
            time_lapse=None if self.refusal else self.lapse,
            watts=self.watts,
            fits=self.fits,
            notes=list(self.notes),
        )

    def _steps(self) -> list[tuple[float, float]]:
        """From when, in real s after the window has opened, a rank's device draws what; W."""
        if not self.phases_w:
            return []
        if self.window_s / len(self.runs) < _RESOLVED_S:
            return [(0.0, self._mean_w())]
        steps: list[tuple[float, float]] = []
        for run in self.runs:
            for phase in run.phases:
                power_w = self.phases_w[phase.name]
                if not steps or steps[-1][1] != power_w:
                    steps.append((phase.start_s / self.lapse, power_w))
        return steps

    def _mean_w(self) -> float:
        """A rank's power in W, mean over all phases by their time."""
        lengths_s = [
            (phase.stop_s - phase.start_s, self.phases_w[phase.name])
            for run in self.runs
            for phase in run.phases
        ]
        return sum(length_s * power_w for length_s, power_w in lengths_s) / sum(s for s, _ in lengths_s)


def simulate(root: Path, name: str, study: Study, site: Site, cell: Cell, shape: JobShape) -> Simulation:
    """Plan a cell whose engine runs no model.

    Args:
        root: the project's root, where config/ lies.
        name: the study's name.
        study: its content.
        site: where it runs.
        cell: which.
        shape: nodes, and ranks on each.

    Raises:
        CellFailure: CONFIGURATION, the plan knows too little of it.
    """
    forecaster = Forecaster(root, name, study, site)
    forecast = forecaster.cell(cell)
    architecture = find_architecture(root, site.models, cell.model)
    if architecture is None or not forecast.duration_s or forecast.output_tokens is None:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"{cell.engine} needs a plan of the cell's time, and there is none: "
            f"{'; '.join(forecast.notes) or 'the shape of the model is not known'}; `shardwatt plan {name}` "
            "says what the plan knows",
        )
    tokens = load_catalogue(root).dataset(cell.dataset).tokens or ASSUMED_LENGTHS
    batches = simulated_batches(
        cell,
        Lengths.of(tokens),
        prompts=study.prompts,
        output_tokens=forecast.output_tokens,
        context=architecture.context,
        cache_tokens=study.cache_tokens,
        seed=study.seed,
    )
    load = workload(
        cell, architecture, prompts=study.prompts, cache_tokens=study.cache_tokens, lengths=tokens
    )
    phases_s = {phase: own.duration_s for phase, own in forecast.phases.items()}
    phases_w = _phases_w(forecast, shape.ranks)
    left = left_out(forecaster, study, site, cell)
    device = device_of(site, cell.gpu, cell.precision, cell.shards)
    return Simulation(
        engine=loop_of(cell.engine),
        architecture=architecture,
        batches=batches.plans,
        runs=simulated_runs(batches, load, phases_s, forecast.duration_s),
        duration_s=forecast.duration_s,
        window_s=study.simulated_window_s,
        phases_w=phases_w,
        idle_w=device.idle_w if device else None,
        draw_file=simulated_gpus(site.gpus[cell.gpu]) if phases_w else None,
        fits=forecast.fits,
        refusal=None if left is None else f"predicted: {left}; `unfit: run` in the study rehearses it",
        utilisation=_utilisation(forecast) if site.gpus[cell.gpu].kind == "cuda" else {},
        played=played(forecast),
        notes=forecast.notes,
    )


def _utilisation(forecast: CellForecast) -> dict[str, Mean]:
    """How busy and how full GPUs are by the plan: mean over the window, and highest of a phase."""
    phases = [phase for phase in forecast.phases.values() if phase.duration_s > 0]
    found = {}
    for name, part in (("sm_utilisation", "busy"), ("memory_activity", "busy_memory")):
        shares = [(phase.duration_s, getattr(phase, part)) for phase in phases]
        if any(share is None for _, share in shares):
            continue
        mean = sum(length_s * share for length_s, share in shares) / sum(length_s for length_s, _ in shares)
        found[name] = Mean(mean=mean, max=max(share for _, share in shares))
    if forecast.need is not None and forecast.fits:
        filled = forecast.need.total_gib / forecast.memory_gib
        found["memory_filled"] = Mean(mean=filled, max=filled)
    return found


def _phases_w(forecast: CellForecast, ranks: int) -> dict[PhaseName, float]:
    """Power of a rank's device in each phase that takes time; empty where one is not known."""
    powers_w = {name: phase.power_w for name, phase in forecast.phases.items() if phase.duration_s > 0}
    known_w = {name: power_w / ranks for name, power_w in powers_w.items() if power_w is not None}
    return known_w if len(known_w) == len(powers_w) else {}
