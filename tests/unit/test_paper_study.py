"""Guards config/studies/paper.yaml and its rehearsal: every cell that the paper publishes is among theirs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from shardwatt.architectures import CATALOGUE
from shardwatt.cell import Cell
from shardwatt.engines import simulated_counterpart
from shardwatt.figurelist import Kind, figures
from shardwatt.matrix import expand
from shardwatt.plan.memory import memory_need
from shardwatt.site import Site, load_site
from shardwatt.study import Study, load_study
from small_project import make_site

ROOT = Path(__file__).parents[2]

MEMORY_GIB = {"v100": 32.0, "a100": 80.0}
BATCHES = (64, 128, 256, 512)
DATASETS = ("alpaca", "gsm8k")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The paper's cluster: nodes of two GPUs, 16 of V100s and 2 of A100s; no checkpoints."""
    gpus = {
        gpu: {"kind": "cuda", "per_node": 2, "memory_gib": memory_gib, "slurm": {"nodes": nodes}}
        for (gpu, memory_gib), nodes in zip(MEMORY_GIB.items(), (16, 2), strict=True)
    }
    folder = tmp_path_factory.mktemp("site")
    return make_site(folder, launcher="slurm", gpus=gpus, power_limits={"set_by": "nvml"})


@pytest.fixture(scope="module")
def paper() -> Study:
    return load_study(ROOT, "paper")


@pytest.fixture(scope="module")
def cells(site: Site, paper: Study) -> tuple[Cell, ...]:
    return expand(ROOT, "paper", paper, site, with_models=False)


def published(
    model: str, gpu: str, shards: int, batch: int, length: int, dataset: str, cap: int = 250
) -> Cell:
    return Cell("reference", model, "fp16", gpu, shards, batch, length, dataset, str(cap), 1)


def fits(cell: Cell) -> bool:
    """By the plan; at length 256 that is with 512 positions of cache."""
    need = memory_need(
        CATALOGUE[cell.model],
        precision=cell.precision,
        shards=cell.shards,
        batch=cell.batch,
        length=cell.length,
        engine=cell.engine,
    )
    return need.total_gib <= MEMORY_GIB[cell.gpu]


#: What ran: on the fewest GPUs, by shards, under caps, and for utilisation.
BASELINE = [
    published(model, gpu, shards, 64, 256, dataset)
    for (model, gpu, shards), dataset in product(
        [
            ("llama-7b", "v100", 1),
            ("llama-7b", "a100", 1),
            ("llama-13b", "v100", 2),
            ("llama-13b", "a100", 1),
            ("llama-65b", "v100", 8),
            ("llama-65b", "a100", 4),
        ],
        DATASETS,
    )
]
BY_SHARDS = [
    published("llama-65b", "v100", *axes) for axes in product((8, 16, 32), BATCHES, (512, 1024), DATASETS)
]
UNDER_CAPS = [
    published("llama-65b", "a100", 4, 64, length, "gsm8k", cap)
    for length, cap in product((256, 512, 1024), (250, 175, 150))
]
BY_LENGTH = [
    published("llama-65b", "a100", 4, 64, *axes) for axes in product((256, 512, 1024, 2048), DATASETS)
]
BUSY_BY_SHARDS = [
    published("llama-65b", "v100", shards, 64, 256, dataset)
    for shards, dataset in product((8, 16, 32), DATASETS)
]
RAN = {*BASELINE, *BY_SHARDS, *UNDER_CAPS, *BY_LENGTH, *BUSY_BY_SHARDS}


def test_every_published_cell_is_in_the_study_and_the_others_look_for_table_2(
    cells: tuple[Cell, ...],
) -> None:
    assert set(cells) >= RAN
    assert all(cell.length == 256 and cell.cap == "250" for cell in set(cells) - RAN)
    assert len(cells) == len(set(cells))


def test_the_constants_are_the_papers(paper: Study) -> None:
    assert (paper.prompts, paper.temperature, paper.top_p) == (4096, 0.8, 0.95)


def test_what_fits_of_the_study_is_table_2(cells: tuple[Cell, ...]) -> None:
    """Fewest GPUs at batch 64 and the largest batch on them; on A100s the paper ran 7B and 13B at 64 only."""
    fitting = {
        (cell.model, cell.gpu, cell.shards, cell.batch)
        for cell in cells
        if (cell.length, cell.cap) == (256, "250") and fits(cell)
    }
    fewest = {
        (model, gpu): min(found[2] for found in fitting if found[:2] == (model, gpu))
        for model, gpu in {found[:2] for found in fitting}
    }
    largest = {
        (*pair, shards): max(found[3] for found in fitting if found[:3] == (*pair, shards))
        for pair, shards in fewest.items()
    }
    assert largest == {
        ("llama-7b", "v100", 1): 64,
        ("llama-7b", "a100", 1): 128,
        ("llama-13b", "v100", 2): 64,
        ("llama-13b", "a100", 1): 128,
        ("llama-65b", "v100", 8): 64,
        ("llama-65b", "a100", 4): 128,
    }
    fewer = {(cell.model, cell.gpu, cell.shards) for cell in cells} - set(largest)
    assert {("llama-13b", "v100", 1), ("llama-65b", "v100", 4), ("llama-65b", "a100", 2)} <= fewer


def test_the_study_has_every_published_figure(cells: tuple[Cell, ...]) -> None:
    names = {spec.name for spec in figures(cells)}
    by_shards = {
        f"{kind}--llama-65b--v100--length-{length}--cap-250"
        for kind in (Kind.POWER_BY_SHARDS, Kind.ENERGY_PER_TOKEN, Kind.ENERGY_PER_RESPONSE)
        for length in (512, 1024)
    }
    assert names >= {"throughput--cap-250", "power--cap-250", *by_shards}
    (throughput,) = (spec for spec in figures(cells) if spec.name == "throughput--cap-250")
    assert "batch 64, at most 256 new tokens" in throughput.conditions


@pytest.mark.parametrize("study", ["paper", "power-cap"])
def test_the_shipped_profile_plans_it_though_nobody_there_sets_caps(study: str) -> None:
    shipped = load_site([ROOT / "profiles" / "slurm" / "site.yaml"])
    assert shipped.power_limits is None
    found = expand(ROOT, study, load_study(ROOT, study), shipped, with_models=False)
    assert {cell.cap for cell in found} >= {"250", "175", "150"}


def test_the_rehearsal_is_the_same_without_a_model(cells: tuple[Cell, ...], paper: Study, site: Site) -> None:
    rehearsal = load_study(ROOT, "paper-rehearsal")
    idle = {"idle_settle_s", "idle_read_s"}  # simulated devices are not waited for
    assert rehearsal.constants.model_dump(exclude=idle) == paper.constants.model_dump(exclude=idle)
    assert expand(ROOT, "paper-rehearsal", rehearsal, site) == tuple(
        replace(cell, engine=simulated_counterpart(cell.engine)) for cell in cells
    )


def test_the_rehearsal_runs_what_ran_whether_it_fits_or_not_and_leaves_table_2_its_border(
    cells: tuple[Cell, ...], paper: Study
) -> None:
    rehearsal = load_study(ROOT, "paper-rehearsal")
    unfit = {cell for cell in cells if not fits(cell)}
    assert {cell for cell in unfit if rehearsal.runs_unfit(replace(cell, engine="simulated"))} == unfit & RAN
    assert not any(paper.runs_unfit(cell) for cell in unfit)
    of_65b = {(cell.gpu, cell.shards, cell.length) for cell in unfit & RAN}
    assert {("v100", 8, 1024), ("a100", 4, 2048)} <= of_65b
    border = {(cell.model, cell.gpu, cell.shards, cell.batch) for cell in unfit - RAN}
    assert {("llama-7b", "v100", 1, 128), ("llama-13b", "v100", 1, 64)} <= border
