"""Real clusters for the tests; where none can be had, tests are skipped by name, with the reason.

A cluster starts in about a second and idles for nothing. So ordinary tests share one for each test
process, and a test that breaks something has one of its own: no drill can spoil another's nodes.
"""

from __future__ import annotations

import compileall
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_cluster import KILLS_SOON, LOSES_NODES_SOON, Cluster, NodeGroup
from slurm_cluster.install import why_not
from slurm_project import SlurmProject, await_true, make_models, make_project
from workflow_project import ROOT

#: Modules by the time that they, or their longest test, take: what is long begins first.
_LONGEST_FIRST = (
    "test_rehearsal",
    "test_cells",
    "test_drills_time",
    "test_drills_jobs",
    "test_drills_nodes",
    "test_drills_preempted",
    "test_drills_controller",
    "test_drills_accounting",
    "test_drills_snakemake",
    "test_caps",
    "test_drills_retry",
    "test_energy",
    "test_check_site",
    "test_together",
    "test_engines",
    "test_drills_disk",
    "test_node_energy",
    "test_cluster_demo",
    "test_cluster",
    "test_asking",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what is long first."""
    here = Path(__file__).parent
    place = {name: index for index, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, -1) if item.path.parent == here else -1)


@pytest.fixture(scope="session")
def slurm_machine() -> None:
    """Skips, or with SHARDWATT_REQUIRE_SLURM=1 fails, where no cluster can be started."""
    reason = why_not()
    if reason is None:
        return
    if os.environ.get("SHARDWATT_REQUIRE_SLURM") == "1":
        pytest.fail(f"SHARDWATT_REQUIRE_SLURM=1, but no Slurm cluster can be started here: {reason}")
    pytest.skip(f"no Slurm cluster can be started here: {reason}")


@pytest.fixture(scope="session")
def cluster(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster without accounting, shared by the tests of this process: leave it as it was found."""
    with Cluster(tmp_path_factory.mktemp("slurm"), conf=KILLS_SOON) as started:
        yield started


@pytest.fixture(scope="session")
def accounting_cluster(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with slurmdbd and MariaDB, shared by the tests of this process: leave it as it was found."""
    base = tmp_path_factory.mktemp("slurmdbd")
    with Cluster(base, accounting=True, conf=[*LOSES_NODES_SOON, *KILLS_SOON]) as started:
        yield started


@pytest.fixture
def own_cluster(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one test's own, to cut cables on and to kill."""
    with Cluster(tmp_path_factory.mktemp("slurm"), conf=KILLS_SOON) as started:
        yield started


@pytest.fixture
def new_base(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Makes folders for clusters; what still runs in them at the test's end is stopped."""
    made: list[Path] = []

    def make() -> Path:
        made.append(tmp_path_factory.mktemp("slurm"))
        return made[-1]

    yield make
    for base in made:
        Cluster(base).stop()


@pytest.fixture(scope="session")
def tiny_models(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the tiny model in 1 and 2 shards, made once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # a process's own folder lies in that of all
    return make_models(base / "tiny-models", shards=[1, 2])


@pytest.fixture(scope="session")
def compiled() -> Callable[[Path], None]:
    """Gives a copy of the project the byte code of what it was copied from: ranks and samplers that start
    at once would each compile all of it."""
    compileall.compile_dir(ROOT / "src", quiet=1)

    def give(root: Path) -> None:
        for cache in (ROOT / "src").rglob("__pycache__"):
            shutil.copytree(cache, root / cache.relative_to(ROOT), dirs_exist_ok=True)

    return give


@pytest.fixture(scope="session")
def new_project(compiled: Callable[[Path], None]) -> Callable[[Path, Cluster, Path], SlurmProject]:
    """Makes a project in a new folder, on a cluster, with models that are there already."""

    def make(root: Path, cluster: Cluster, models: Path) -> SlurmProject:
        project = make_project(root, cluster, models)
        compiled(root)
        return project

    return make


@pytest.fixture
def make_slurm_project(
    new_base: Callable[[], Path],
    new_project: Callable[[Path, Cluster, Path], SlurmProject],
    tiny_models: Path,
    tmp_path: Path,
) -> Iterator[Callable[..., SlurmProject]]:
    """Makes a project on a cluster of its own, of so many nodes with one GPU each, to drill on; lines for
    slurm.conf may follow."""
    made: list[SlurmProject] = []

    def make(nodes: int, *conf: str) -> SlurmProject:
        cluster = Cluster(new_base(), groups=[NodeGroup("v100", nodes, gpus_per_node=1)], conf=conf)
        cluster.start()
        made.append(new_project(tmp_path / "a project", cluster, tiny_models))
        return made[-1]

    yield make
    for project in made:
        project.stop()


@pytest.fixture(scope="session")
def run_together() -> Callable[[SlurmProject, str], None]:
    """Runs a study's cells to their ends in jobs that `shardwatt run-together` submits: where Snakemake plays
    no part, it is not started in each job."""

    def run(project: SlurmProject, study: str) -> None:
        done = project.shardwatt("run-together", study)
        assert done.returncode == 0, done.stderr
        await_true(lambda: not project.cluster.run("squeue", "--noheader").strip(), "an empty queue")

    return run
