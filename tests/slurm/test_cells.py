"""Guards cells on a real Slurm: what each shape of job is given, what its ranks get, and what is left of it.

One run of Snakemake for all: it submits a cell of every shape to one cluster, side by side where they fit.
With several test processes it is left to one of them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.parquet as pq
import pytest
import yaml

from shardwatt.layout import CellPaths
from shardwatt.leftovers import comment_of
from shardwatt.readings import Status
from shardwatt.recordfiles import read
from shardwatt.records import Record
from slurm_cluster import Cluster
from slurm_project import SlurmProject, await_true
from workflow_project import RECIPE, Project, planned_jobs

pytestmark = pytest.mark.slurm

STUDY = "shapes"
TABLE = f"results/{STUDY}/cells.parquet"

MODEL_SHARDS = [1, 2, 4]
MODEL = {**RECIPE, "shards": MODEL_SHARDS}

SHARDS = {"v100": [1, 4], "a100": 2, "single": 4, "whole": 1, "cores": 2}

#: A cell by its GPU type and shards.
Shape: TypeAlias = tuple[str, int]

#: Cells whose windows last for seconds: one of them is stopped in it, and looked at.
LONG: tuple[Shape, ...] = (("v100", 4), ("single", 4))


def gpu_types(root: Path) -> dict[str, dict[str, Any]]:
    """A GPU type for each kind of words that jobs ask with; processors play them all."""

    def kind(per_node: int, **words: Any) -> dict[str, Any]:
        return {"kind": "cpu", "per_node": per_node, "memory_gib": 1, "tdp_w": 30, "slurm": words}

    environment = [
        "export GREETING='an a100 is ready'",
        'echo "$GREETING"',
        f'export PATH="{root}/bin:$PATH"',
    ]
    return {
        "v100": kind(2, partition="v100", gres="gpu:v100", nodes=4, cpus_per_rank=2),
        "a100": kind(2, partition="a100", gres="gpu:a100", nodes=2) | {"environment": environment},
        "single": kind(1, partition="v100", gres="gpu:v100", nodes=4),
        "whole": kind(1, partition="v100", constraint="v100"),
        "cores": kind(1, partition="v100", exclusive=False, cpus_per_rank=2),
        "odd": kind(3, partition="v100"),
    }


@dataclass
class Finished:
    """A run that has come to its end.

    Attributes:
        project: whose run it was.
        output: what Snakemake said.
        watched: a cell that was stopped in its window.
        listed: what `shardwatt cells` said meanwhile, by target.
        cells: of the study, by GPU type and shards.
        records: of each cell.
        jobs: what Slurm says of the job of each cell, by scontrol's words.
    """

    project: SlurmProject
    output: str
    watched: CellPaths
    listed: dict[str, dict[str, Any]]
    cells: dict[Shape, CellPaths] = field(init=False)
    records: dict[Shape, Record] = field(init=False)
    jobs: dict[Shape, dict[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = by_shape(self.project, STUDY)
        self.records = {shape: read(Record, paths.record) for shape, paths in self.cells.items()}
        # Now: Slurm forgets them in minutes.
        self.jobs = {shape: self._job(record.provenance.job_id) for shape, record in self.records.items()}

    def _job(self, number: str) -> dict[str, str]:
        printed = self.project.cluster.run("scontrol", "show", "job", "--details", number)
        found: dict[str, str] = {}
        for key, value in re.findall(r"(\S+?)=(\S*)", printed):
            found.setdefault(key, value)
        return found

    def nodes(self, shape: Shape) -> list[str]:
        words = ("scontrol", "show", "hostnames", self.jobs[shape]["NodeList"])
        return self.project.cluster.run(*words).split()


def by_shape(project: Project, study: str) -> dict[Shape, CellPaths]:
    return {(paths.cell.gpu, paths.cell.shards): paths for paths in project.cells(study)}


@pytest.fixture(scope="module")
def finished(
    cluster: Cluster,
    new_project: Callable[[Path, Cluster, Path], SlurmProject],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Finished]:
    root = tmp_path_factory.mktemp("cells") / "a project"
    no_models = tmp_path_factory.mktemp("models")
    project = new_project(root, cluster, no_models)
    (root / "config" / "models" / "tiny.yaml").write_text(yaml.safe_dump(MODEL))
    types = gpu_types(root)
    project.write_site(types, collective_timeout_s=120, staging=str(root / "on the node"))
    words = {"prompts": 4, "temperature": 0}
    matrix = [project.block(gpu=gpu, shards=shards, length=48)[0] for gpu, shards in SHARDS.items()]
    project.write_study(STUDY, **words, matrix=matrix)
    project.write_study("one-machine", **words, matrix=project.block(shards=1, length=48))
    # The python of the a100s' environment, which says so.
    python = root / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "python of: $GREETING"\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)

    run = project.start(TABLE)
    try:
        watched, listed = watch_one(project)
        assert run.ended() == 0, run.output
        yield Finished(project, run.output, watched, listed)
        project.assert_nothing_left()
    finally:
        run.stop()


def watch_one(project: SlurmProject) -> tuple[CellPaths, dict[str, dict[str, Any]]]:
    """Stop the first of the long cells in its window, list the cells, and let it go on.

    The other one needs all nodes, so it waits, or this one is it and others wait.
    """
    cells = by_shape(project, STUDY)
    long_ones = [cells[shape] for shape in LONG]

    def running() -> list[CellPaths]:
        return [paths for paths in long_ones if (found := project.progress(paths)) and found.stage == "run"]

    await_true(lambda: bool(running()), "a cell of several nodes answers prompts")
    (watched, *_) = running()
    project.signal_rank(watched, 0, "STOP")
    try:
        listed = project.shardwatt("cells", STUDY, "--site", str(project.site_file), "--format", "json")
        assert listed.returncode == 0, listed.stderr
    finally:
        project.signal_rank(watched, 0, "CONT")
    return watched, {cell["target"]: cell for cell in json.loads(listed.stdout)}


def tokens(paths: CellPaths) -> list[tuple[str, int, str]]:
    rows = pq.read_table(paths.results / "responses.parquet").to_pylist()
    return [(row["prompt_id"], row["output_tokens"], row["text"]) for row in rows]


@pytest.fixture(scope="module")
def on_one_machine(finished: Finished) -> CellPaths:
    """The same prompts answered without Slurm, by one shard."""
    project = Project(finished.project.root, finished.project.environment)
    (paths,) = project.cells("one-machine")
    words = ("one-machine", paths.cell.path, "--site", "profiles/local/site.yaml")
    done = project.shardwatt("run-cell", *words)
    assert done.returncode == 0, done.stderr
    return paths


def test_shards_over_nodes_give_the_tokens_of_one_machine(
    finished: Finished, on_one_machine: CellPaths
) -> None:
    expected = tokens(on_one_machine)
    assert len(expected) == 4
    assert any(text for _, _, text in expected)
    for shape, paths in finished.cells.items():
        assert tokens(paths) == expected, shape


@pytest.mark.parametrize(
    ("shape", "nodes", "cpus", "gpus"),
    [
        pytest.param(("v100", 1), 1, 8, 2, id="one rank has its node of two GPUs to itself"),
        pytest.param(("v100", 4), 2, 16, 4, id="two nodes of two GPUs"),
        pytest.param(("a100", 2), 1, 8, 2, id="one node of another type"),
        pytest.param(("single", 4), 4, 32, 8, id="four nodes of one GPU"),
        pytest.param(("whole", 1), 1, 8, 2, id="a whole node by constraint alone"),
        pytest.param(("cores", 2), 2, 4, None, id="processors of two shared nodes"),
    ],
)
def test_slurm_gives_what_the_shape_asks_for(
    shape: Shape, nodes: int, cpus: int, gpus: int | None, finished: Finished
) -> None:
    job = finished.jobs[shape]
    partition = "a100" if shape[0] == "a100" else "v100"
    assert (job["NumNodes"], job["NumCPUs"], job["Partition"]) == (str(nodes), str(cpus), partition)
    # Whole nodes give all their GPUs, asked for or not, and nobody else gets them.
    assert job["JOB_GRES"] == ("(null)" if gpus is None else f"gpu:{partition}:{gpus}")
    assert job["OverSubscribe"] == ("OK" if shape[0] == "cores" else "NO")
    if shape[0] != "cores":
        # One line of details, since each node gives the same CPUs; beside other jobs their numbers differ.
        assert job["Nodes"] == job["NodeList"]
    assert len(finished.nodes(shape)) == nodes


def test_each_cell_is_one_job_whose_comment_names_it(finished: Finished) -> None:
    for shape, paths in finished.cells.items():
        number = finished.records[shape].provenance.job_id
        assert finished.project.jobs(paths) == [number]
        assert finished.jobs[shape]["Comment"] == comment_of(STUDY, paths.cell.path)


def test_each_rank_has_a_gpu_of_its_own_and_says_how_it_met_the_others(finished: Finished) -> None:
    for shape, paths in finished.cells.items():
        nodes = finished.nodes(shape)
        per_node = paths.cell.shards // len(nodes)
        for rank in range(paths.cell.shards):
            log = paths.rank_log(rank).read_text()
            node = nodes[rank // per_node]
            gpu = "-" if shape[0] in ("cores", "whole") else str(rank % per_node)
            address, interface = "127.0.0.1", "lo"
            if len(nodes) > 1:
                address, interface = finished.project.cluster.layout.address(node), "eth0"
            assert f"rank {rank} on {node}: GPU {gpu}, address {address}, interface {interface}\n" in log
            assert re.search(rf"rank {rank} of {paths.cell.shards} on {node}: all met after [0-9.]+ s", log)


def test_the_record_names_all_nodes_and_labels_the_estimate(finished: Finished) -> None:
    estimated = 0
    for shape in finished.cells:
        record, nodes = finished.records[shape], finished.nodes(shape)
        assert record.provenance.nodes == nodes
        assert (record.provenance.launcher, record.provenance.was_loaded) == ("slurm", False)
        assert record.energy is not None
        for reading in (record.energy.window, record.energy.job):
            if reading.status is Status.UNAVAILABLE:
                # All these nodes are one machine, which may stall for a second: then the record says so.
                assert "no sample for" in (reading.detail or "")
                continue
            assert reading.status is Status.ESTIMATED
            assert reading.coverage.nodes == nodes
            assert reading.coverage.nodes_expected == len(nodes)
            assert reading.joules is not None
            assert reading.joules > 0
            estimated += 1
    assert estimated > len(finished.cells)  # of twice as many


def test_logs_of_good_jobs_are_kept_slurms_own_among_them(finished: Finished) -> None:
    for shape, paths in finished.cells.items():
        number = finished.records[shape].provenance.job_id
        assert "finished: ok" in paths.supervisor_log.read_text()
        assert (paths.logs / "srun.log").exists()
        assert paths.sampler_log.exists()
        link = paths.logs / f"slurm-{number}.log"
        assert link.is_symlink()
        # Of the batch step: Snakemake's words, and the supervisor's.
        assert paths.cell.path in link.read_text()
        assert link.resolve().is_relative_to(finished.project.root / "logs" / "slurm")


def test_running_and_waiting_cells_are_listed_with_job_nodes_and_progress(finished: Finished) -> None:
    shape = finished.watched.cell.gpu, finished.watched.cell.shards
    number, nodes = finished.records[shape].provenance.job_id, finished.jobs[shape]["NodeList"]
    running = finished.listed[finished.watched.target]
    assert (running["outcome"], running["reason"], running["job_id"]) == ("running", "run", number)
    assert re.fullmatch(
        rf"job {number} on {re.escape(nodes)}: [0-4] of 4 prompts, [0-9]+ tokens", running["detail"]
    )
    waiting = [cell for cell in finished.listed.values() if cell["outcome"] == "pending"]
    assert waiting
    for cell in waiting:
        assert cell["detail"] == f"job {cell['job_id']} waits in the queue"


def test_the_environment_of_a_gpu_type_reaches_its_ranks_alone(finished: Finished) -> None:
    for (gpu, shards), paths in finished.cells.items():
        said = (paths.logs / "srun.log").read_text().splitlines()
        greetings = ["an a100 is ready", "python of: an a100 is ready"] if gpu == "a100" else []
        assert sorted(line for line in said if "a100 is" in line) == sorted(greetings * shards)


def test_each_shard_is_staged_on_the_nodes_own_disk(finished: Finished) -> None:
    root = finished.project.root
    for shards in MODEL_SHARDS:
        (copy,) = (root / "on the node").glob(f"shardwatt-{os.getuid()}/shards-{shards}-*")
        original = root / "models" / "tiny" / f"shards-{shards}"
        names = sorted(path.name for path in original.glob("consolidated.*.pth"))
        assert sorted(path.name for path in copy.glob("consolidated.*.pth")) == names
        for name in names:
            assert (copy / name).read_bytes() == (original / name).read_bytes()


def test_shards_that_do_not_fill_nodes_are_refused_in_the_plan(finished: Finished) -> None:
    project = finished.project
    project.write_study("odd", matrix=project.block(gpu="odd", shards=[1, 4]))
    plan = project.snakemake("-n", "results/odd/report.html")
    assert plan.returncode != 0
    assert (
        plan.stdout.count("shards: 4 does not fill whole nodes of 3 odd; use 1 to 3, or a multiple of 3") == 1
    )
    assert "Traceback" not in plan.stdout


def test_one_cell_is_run_again_by_its_target_and_nothing_else(finished: Finished) -> None:
    project, paths = finished.project, finished.cells["v100", 1]
    assert project.planned(TABLE) == {}
    first = finished.records["v100", 1]
    shutil.rmtree(paths.results)
    again = project.snakemake(paths.target)
    assert again.returncode == 0, again.stdout
    assert planned_jobs(again.stdout) == {"cell": 1}
    second = read(Record, paths.record)
    assert int(second.provenance.job_id) > int(first.provenance.job_id)
    assert project.jobs(paths) == [first.provenance.job_id, second.provenance.job_id]
    assert second.counts == first.counts
