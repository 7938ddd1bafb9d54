"""Guards jobs of several cells: one load for all, a failure that stops no other, no cell submitted twice."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Record
from slurm_project import SlurmProject, await_true, gpu_type
from workflow_project import Project

pytestmark = pytest.mark.slurm

SITE = ("--site", "profiles/slurm/site.yaml")
#: As the study lists them: what is asserted of each cell depends on those before it.
IN_ORDER = ("--order", "matrix")
LOCAL_SITE = ("--site", "profiles/local/site.yaml")
WORDS: dict[str, Any] = {"prompts": 4, "temperature": 0}


def with_a_broken_data_set(project: SlurmProject) -> None:
    """A data set whose file is none, so that its cells fail before they load anything."""
    path = project.root / "config" / "datasets.yaml"
    content = yaml.safe_load(path.read_text())
    content["datasets"]["broken"] = {"format": "gsm8k", "file": "broken.jsonl", "folder": "config/prompts"}
    path.write_text(yaml.safe_dump(content))
    (project.root / "config" / "prompts" / "broken.jsonl").write_text("this is no JSON\n")


def texts(paths: CellPaths) -> dict[str, str]:
    rows = pq.read_table(paths.results / "responses.parquet").to_pylist()
    return {row["prompt_id"]: row["text"] for row in rows}


def test_cells_of_one_job_load_once_and_are_waited_for(
    make_slurm_project: Callable[[int], SlurmProject],
) -> None:
    project = make_slurm_project(2)
    project.write_site({"v100": gpu_type("v100", runtime_min=5)}, max_gpu_hours=2)
    with_a_broken_data_set(project)
    shape = {"gpu": "v100", "shards": 2}
    blocks: list[dict[str, Any]] = [{"batch": 2}, {"batch": 4}, {"dataset": "broken"}, {"length": 5}]
    project.write_study(**WORDS, matrix=[project.block(**shape, **block)[0] for block in blocks])
    first, second, broken, last = cells = project.cells()

    # While the nodes are taken, the job waits, and everything that looks at its cells sees it.
    blocker = project.cluster.run(
        *("sbatch", "--parsable", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    ).strip()
    planned = project.shardwatt("run-together", "tiny", "--dry-run", *IN_ORDER, *SITE)
    assert planned.returncode == 0, planned.stderr
    assert planned.stdout.splitlines() == [
        "job -: 4 cells, time 20 min",
        *(f"  {paths.cell.path}" for paths in cells),
    ]
    submitted = project.shardwatt("run-together", "tiny", *IN_ORDER, *SITE)
    assert submitted.returncode == 0, submitted.stderr
    found = re.match(r"job ([0-9]+): 4 cells, time 20 min\n", submitted.stdout)
    assert found
    number = found[1]
    again = project.shardwatt("run-together", "tiny", *SITE)
    assert (again.returncode, again.stdout) == (0, ""), again.stderr
    run = project.start(*(paths.target for paths in cells))
    try:
        await_true(lambda: f"waits for Slurm job {number}" in run.output, "Snakemake to wait for the job")
        refused = project.shardwatt("run-together", "tiny", *SITE)
        assert refused.returncode != 0
        assert "Snakemake runs in this folder" in refused.stderr
        project.cluster.run("scancel", blocker)
        assert run.ended() != 0
    finally:
        run.stop()

    queued = project.cluster.run("squeue", "--states=all", "--noheader", "--format=%A").split()
    assert sorted(queued) == sorted([blocker, number])
    states = project.shardwatt("cells", "tiny", "--outcome", "failed", "--format", "targets", *SITE)
    assert states.stdout.splitlines() == [broken.target]
    assert project.failure(broken).reason == "bad_data"

    records = [read(Record, paths.record) for paths in (first, second, last)]
    assert {record.provenance.job_id for record in records} == {number}
    # A cell that fails before it needs the ranks leaves them, and the model, to the next.
    assert [record.provenance.was_loaded for record in records] == [False, True, True]
    assert "all met" in last.rank_log(1).read_text()
    project.assert_nothing_left()

    # As if each had been run by itself: on one machine.
    project.write_study("apart", **WORDS, matrix=project.block(shards=2, batch=4))
    (apart,) = Project.cells(project, "apart")
    alone = project.shardwatt("run-cell", "apart", apart.cell.path, *LOCAL_SITE)
    assert alone.returncode == 0, alone.stderr
    assert texts(second) == texts(apart)
