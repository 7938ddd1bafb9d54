"""Finished cells that follow the plan's own models with known factors; for tests of the calibration."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

from shardwatt.analysis.calibrationcells import Observation, predict, with_cap
from shardwatt.architectures import CATALOGUE
from shardwatt.cell import Cell
from shardwatt.datasets import TokenLengths
from shardwatt.efficiency import PhaseWork, efficiency
from shardwatt.layout import CellPaths
from shardwatt.modelwork import PhaseName
from shardwatt.plan.device import Factors, device_of
from shardwatt.plan.workload import workload
from shardwatt.recordfiles import write
from shardwatt.records import Record
from shardwatt.site import Site
from shardwatt.study import Constants
from small_project import make_site
from synthetic_cells import STUDY, Numbers, make_cell, write_ok
from synthetic_energy import energy_of

#: GPU types of the site, as its file has them.
GPUS = {
    "v100": {"kind": "cuda", "per_node": 8, "memory_gib": 32, "data_sheet": "v100-pcie-32gb"},
    "a100": {"kind": "cuda", "per_node": 8, "memory_gib": 80, "data_sheet": "a100-sxm-80gb"},
}

#: Far from what is assumed without a calibration, each in its own direction.
TRUE = Factors(
    compute=0.42, bandwidth=0.63, network=0.35, launch=3.5, power=1.25, source="the truth", spread={}
)

#: Of config/datasets.yaml, in its form.
TOKENS = {
    "prompt_deciles": [40, 60, 70, 80, 90, 100, 110, 125, 140, 170, 300],
    "output_mean": 90.0,
    "source": "made up",
}

CONSTANTS = Constants(prompts=128)


def site(folder: Path = Path("nowhere")) -> Site:
    """A machine with GPUs of two types."""
    return make_site(folder, gpus=GPUS)


def cells(gpu: str = "v100", **axes: object) -> list[Cell]:
    """Twelve cells in which every factor of time matters somewhere."""
    shapes = [
        ("llama-7b", 1, 4, 64),
        ("llama-7b", 1, 16, 128),
        ("llama-7b", 1, 64, 64),
        ("llama-7b", 2, 16, 256),
        ("llama-7b", 4, 64, 128),
        ("llama-7b", 8, 4, 128),
        ("llama-7b", 8, 64, 32),
        ("llama-13b", 2, 8, 64),
        ("llama-13b", 2, 64, 64),
        ("llama-13b", 4, 32, 256),
        ("llama-13b", 8, 16, 64),
        ("llama-13b", 8, 128, 32),
    ]
    return [
        make_cell(model=model, shards=shards, batch=batch, length=length, gpu=gpu, **axes)
        for model, shards, batch, length in shapes
    ]


def observed(
    cell: Cell, factors: Factors = TRUE, *, scatter: float = 0.0, seed: int = 0, slower: float = 1.0
) -> Observation:
    """What a cell did on hardware of given factors.

    Args:
        cell: on one of `GPUS`, with a model of the catalogue.
        factors: of the hardware.
        scatter: standard deviation of the logarithms of each phase's time and of the watts.
        seed: of the scatter, with the cell.
        slower: times the time of every phase, at the same watts.
    """
    device = device_of(site(), cell.gpu, cell.precision, cell.shards)
    assert device is not None
    load = workload(
        cell, CATALOGUE[cell.model], prompts=CONSTANTS.prompts, cache_tokens=None,
        lengths=TokenLengths.model_validate(TOKENS),
    )  # fmt: skip
    loads = {phase: part for phase, part in load.phases.items() if part.steps}
    blank = Observation(
        study=STUDY, cell=cell, constants=CONSTANTS, nodes=1, architecture=CATALOGUE[cell.model],
        device=device, loads=loads,
        phases_s=dict.fromkeys(loads, 1.0), duration_s=1.0, energy_j=None,
        prompt_tokens=load.prompt_tokens, output_tokens=load.output_tokens, prompts=load.prompts,
    )  # fmt: skip
    noise = random.Random(f"{seed} {cell.path}")
    phases_s: dict[PhaseName, float] = {
        phase: slower * lasted_s * noise.lognormvariate(0, scatter)
        for phase, lasted_s in predict(blank, factors).phases_s.items()
    }
    timed = replace(blank, phases_s=phases_s, duration_s=sum(phases_s.values()))
    power_w = predict(timed, factors).power_w
    assert power_w is not None
    return with_cap(replace(timed, energy_j=power_w * timed.duration_s * noise.lognormvariate(0, scatter)))


def write_observed(base: Path, one: Observation, numbers: Numbers | None = None) -> Record:
    """Write the files of a cell that did what is observed of it, and return its record."""
    made = write_ok(base, one.cell, numbers, one.constants)
    assert made.timings is not None
    assert made.counts is not None
    assert one.power_w is not None
    lasted_s = {f"{phase}_s": one.phases_s.get(phase, 0.0) for phase in ("prefill", "walk", "decode")}
    timings = made.timings.model_copy(
        update={
            **lasted_s,
            "between_s": 0.0,
            "duration_s": one.duration_s,
            "job_duration_s": 2 * one.duration_s,
        }
    )
    counts = made.counts.model_copy(
        update={"prompt_tokens": one.prompt_tokens, "output_tokens": one.output_tokens}
    )
    watts = replace(numbers or Numbers(), power_w=one.power_w / one.cell.shards)
    work = {
        phase: PhaseWork(one.phases_s[phase], load.steps, load.work, load.work)
        for phase, load in one.loads.items()
    }
    counted = efficiency(
        one.architecture, work, None, precision=one.cell.precision, shards=one.cell.shards,
        duration_s=one.duration_s,
    )  # fmt: skip
    energy = energy_of(one.cell, watts, batches_s=one.duration_s, between_s=0.0)
    record = made.model_copy(
        update={
            "timings": timings,
            "counts": counts,
            "efficiency": counted,
            "energy": energy,
            "nodes": one.nodes,
        }
    )
    write(record, CellPaths(base, STUDY, one.cell).record)
    return record
