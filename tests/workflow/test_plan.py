"""The plan through Snakemake: made before anything runs, without torch, and what it leaves out of a run."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from workflow_project import Project, planned_jobs

pytestmark = pytest.mark.workflow

REPORT = "results/tiny/report.html"
PLAN = "results/tiny/plan.csv"

#: GPUs that a batch of two fits into, and one of 200,000 does not: its logits alone are 2 GB.
SMALL_GPU = {"kind": "cuda", "per_node": 2, "memory_gib": 1.0, "data_sheet": "v100-pcie-32gb"}


def write_site(project: Project, gpu: dict[str, Any], **changes: object) -> Path:
    path = project.root / "profiles" / "local" / "site.yaml"
    site = {"name": "local", "launcher": "local", "models": "models", "data": "data", "gpus": {"cpu": gpu}}
    path.write_text(yaml.safe_dump({**site, **changes}), encoding="utf-8")
    return path


def without_torch(project: Project) -> None:
    """Let whatever imports torch fail."""
    folder = project.root / "no-torch"
    folder.mkdir()
    (folder / "torch.py").write_text("raise ImportError('torch was imported')\n")
    project.environment["PYTHONPATH"] = os.pathsep.join([str(folder), project.environment["PYTHONPATH"]])


def rows(project: Project) -> list[dict[str, str]]:
    with (project.root / PLAN).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_plan_is_made_before_anything_runs_and_without_torch(project: Project) -> None:
    without_torch(project)
    run = project.snakemake(PLAN)
    assert run.returncode == 0, run.stdout
    assert {path.name for path in (project.root / "results" / "tiny").iterdir()} == {
        *("plan.csv", "plan-totals.csv", "plan.md", "plan.parquet"),
    }
    assert [row["shards"] for row in rows(project)] == ["1", "2"]
    assert all(float(row["duration_s"]) > 0 for row in rows(project))
    assert "Nothing to be done" in project.snakemake(PLAN).stdout


def test_a_plan_is_made_again_when_the_site_the_study_or_a_calibration_says_something_else(
    project: Project,
) -> None:
    gpu = {"kind": "cpu", "per_node": 2, "memory_gib": 2, "tdp_w": 30}
    site = write_site(project, gpu)
    assert project.snakemake(PLAN).returncode == 0
    before = rows(project)
    factors = dict.fromkeys(("compute", "bandwidth", "network", "power"), 0.001)
    fitted = {**factors, "launch": 1.0, "fitted": [], "cells": 9, "source": "x", "fitted_on": "2026-01-01"}
    site.with_name("site.calibration.yaml").write_text(
        yaml.safe_dump({"calibration": {"cpu/reference": fitted}})
    )
    assert project.snakemake(PLAN).returncode == 0
    assert float(rows(project)[0]["duration_s"]) > 10 * float(before[0]["duration_s"])
    assert "Nothing to be done" in project.snakemake(PLAN).stdout
    project.write_study(prompts=5)
    assert planned_jobs(project.snakemake("-n", PLAN).stdout) == {"plan": 1}
    project.write_study()
    write_site(project, gpu, prices={"currency": "EUR", "kwh": 0.3, "source": "a list"}, pue=1.2)
    assert planned_jobs(project.snakemake("-n", PLAN).stdout) == {"plan": 1}


def test_a_plan_needs_no_checkpoint(project: Project) -> None:
    project.write_study(matrix=project.block(model="llama-7b"))
    run = project.snakemake(PLAN)
    assert run.returncode == 0, run.stdout
    assert {row["model"] for row in rows(project)} == {"llama-7b"}
    assert "llama-7b" in project.snakemake("-n", REPORT).stdout, "a run does, and names it"


def test_cells_that_do_not_fit_are_left_out_and_refused_by_name(project: Project) -> None:
    write_site(project, SMALL_GPU)
    project.write_study(prompts=200_000, matrix=project.block(batch=[2, 200_000]))
    paths = project.cells()
    run = project.snakemake("-n", REPORT)
    assert run.returncode == 0, run.stdout
    assert planned_jobs(run.stdout)["cell"] == 2
    assert "batch=200000" not in run.stdout
    large = next(path for path in paths if path.cell.batch == 200_000)
    named = project.snakemake("-n", large.target)
    assert named.returncode != 0
    assert f"{large.target}: does not fit: the plan needs " in named.stdout
    assert " GiB of each cpu, which has 1 GiB: weights " in named.stdout
    assert "`unfit: run`" in named.stdout
    assert "Traceback" not in named.stdout


def test_a_study_may_run_what_does_not_fit(project: Project) -> None:
    write_site(project, SMALL_GPU)
    project.write_study(prompts=200_000, matrix=project.block(batch=[2, 200_000]), unfit="run")
    run = project.snakemake("-n", REPORT)
    assert planned_jobs(run.stdout)["cell"] == 4
    large = next(path for path in project.cells() if path.cell.batch == 200_000)
    assert planned_jobs(project.snakemake("-n", large.target).stdout) == {"cell": 1}


def test_a_simulated_cell_needs_no_model_and_no_data(project: Project) -> None:
    write_site(project, {**SMALL_GPU, "memory_gib": 32.0})
    block = project.block(engine="simulated", model="llama-7b", precision="fp16", dataset="gsm8k")
    project.write_study(matrix=block)
    run = project.snakemake("-n", REPORT)
    assert run.returncode == 0, run.stdout
    jobs = planned_jobs(run.stdout)
    assert jobs["cell"] == 2
    assert not {"fetch", "make_model", "make_tokenizer"} & set(jobs)


def test_a_model_is_made_again_for_what_its_recipe_says_and_not_for_when_it_was_touched(
    project: Project, new_project: Callable[[Path], Project], tmp_path: Path
) -> None:
    """A second project that reads the same models would remake them under the first one's cells."""
    recipe = Path("config", "models", "tiny.yaml")
    (target,) = {path.target for path in project.cells() if path.cell.shards == 1 and path.cell.batch == 2}
    second = new_project(tmp_path / "a second project")
    second.environment["SHARDWATT_MODELS"] = str(project.root / "models")
    shutil.copytree(
        project.root / "config" / "studies", second.root / "config" / "studies", dirs_exist_ok=True
    )
    for path in (second.root / "config" / "prompts").iterdir():
        os.utime(path)
    os.utime(second.root / recipe)
    assert planned_jobs(second.snakemake("-n", target).stdout) == {"cell": 1}
    content = yaml.safe_load((second.root / recipe).read_text())
    (second.root / recipe).write_text(yaml.safe_dump({**content, "seed": content.get("seed", 0) + 1}))
    os.utime(second.root / recipe, (0, 0))
    assert planned_jobs(second.snakemake("-n", target).stdout) == {"make_model": 1, "cell": 1}


def test_what_another_project_has_put_there_since_the_plan_was_made_is_kept(project: Project) -> None:
    """Two that share a models folder, and start together: the first's cells read what it has made."""
    model = project.root / "models" / "tiny"
    paths = [model / "tokenizer.model", model / "shards-1" / "consolidated.00.pth"]
    with ExitStack() as stack:
        # Held open: no new file gets the number of one of these.
        held = [stack.enter_context(path.open("rb")) for path in paths]
        run = project.snakemake(
            *("--forcerun", "make_tokenizer", "make_model", "--", "models/tiny/shards-1/made-from.json"),
            timeout_s=600,
        )
        assert run.returncode == 0, run.stdout
        assert run.stdout.count("localrule make_") == 2
        for path, stream in zip(paths, held, strict=True):
            assert os.path.samestat(path.stat(), os.fstat(stream.fileno())), f"{path} was made again"


def test_a_dry_run_ends_with_what_the_plan_predicts(project: Project) -> None:
    run = project.snakemake("-n", REPORT)
    assert run.stdout.rstrip().splitlines()[-1].startswith("the plan predicts ")
    assert " of jobs one after the other" in run.stdout


def test_an_unknown_study_gets_one_message(project: Project) -> None:
    run = project.snakemake("-n", "results/tinny/plan.csv")
    assert run.returncode != 0
    assert "unknown study 'tinny'; did you mean 'tiny'?" in run.stdout
    assert "Traceback" not in run.stdout
