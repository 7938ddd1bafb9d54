"""Guards the engines in a study: side by side in one figure and one table, the same answers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from shardwatt.engines import MODEL_ENGINES
from shardwatt.figurelist import Kind, figures
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Record
from workflow_project import Project

# One worker: what these share is run once.
pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory, new_project: Callable[[Path], Project]) -> Project:
    """Every engine on one process, and those of our own on two, from a checkpoint saved in one shard."""
    project = new_project(tmp_path_factory.mktemp("engines") / "a project")
    recipe = project.root / "config" / "models" / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("shards:\n- 1\n- 2\n", "shards:\n- 1\n"))
    split = [name for name in MODEL_ENGINES if name != "hf"]
    matrix = project.block(engine=list(MODEL_ENGINES), shards=1) + project.block(engine=split, shards=2)
    project.write_study(temperature=0, matrix=matrix)
    run = project.shardwatt("make-model", "tiny", "1")
    assert run.returncode == 0, run.stderr
    for shards in (1, 2):
        # One after the other on the same ranks, which start once; the engine that needs most comes first.
        names = [paths.cell.path for paths in project.cells() if paths.cell.shards == shards]
        run = project.shardwatt("run-cell", "tiny", *reversed(names), timeout_s=600)
        assert run.returncode == 0, run.stderr
    every = [paths.cell for paths in project.cells()]
    (figure,) = (spec.name for spec in figures(every) if spec.kind is Kind.ENGINES)
    targets = (f"results/tiny/figures/{figure}.png", "results/tiny/tables/efficiency.md")
    run = project.snakemake(*targets, timeout_s=600)
    assert run.returncode == 0, run.stdout
    assert "rule aggregate:" in run.stdout
    assert "rule cell:" not in run.stdout
    return project


def cells(project: Project) -> dict[tuple[str, int], CellPaths]:
    return {(paths.cell.engine, paths.cell.shards): paths for paths in project.cells()}


def answers(paths: CellPaths) -> dict[str, str]:
    rows = pq.read_table(paths.results / "responses.parquet").to_pylist()
    return {row["prompt_id"]: row["text"] for row in rows}


def test_every_engine_gives_the_same_greedy_text_at_any_shard_count(compared: Project) -> None:
    found = {key: answers(paths) for key, paths in cells(compared).items()}
    expected = found["reference", 1]
    assert len(found) == 2 * len(MODEL_ENGINES) - 1
    assert len(expected) == 6
    assert any(expected.values())
    for key, texts in found.items():
        assert texts == expected, key


def test_one_checkpoint_serves_every_shard_count(compared: Project) -> None:
    saved = [path.name for path in (compared.root / "models" / "tiny").glob("shards-*")]
    assert saved == ["shards-1"]


def test_records_say_how_each_engine_ran(compared: Project) -> None:
    for (engine, _), paths in cells(compared).items():
        record = read(Record, paths.record)
        assert record.provenance.prompt_order == MODEL_ENGINES[engine].order
        assert record.provenance.engine
        assert record.timings is not None
        assert (record.timings.walk_s > 0) == engine.startswith("reference")


def test_the_table_has_the_speed_of_both_phases(compared: Project) -> None:
    results = compared.root / "results" / "tiny"
    frame = pd.read_parquet(results / "cells.parquet")
    assert (frame["outcome"] == "ok").all()
    for column in ("prefill_tokens_per_s", "decode_tokens_per_s"):
        assert (frame[column] > 0).all()
    (figure,) = (results / "figures").glob("engines--*.png")
    assert figure.stat().st_size > 0
    assert "fast-refill" in (results / "tables" / "efficiency.md").read_text(encoding="utf-8")
