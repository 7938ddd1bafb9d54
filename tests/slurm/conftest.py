"""Real clusters for the tests; where none can be had, tests are skipped by name, with the reason.

A cluster starts in about a second and idles for nothing. So ordinary tests share one for each test
process, and a test that breaks something has one of its own: no drill can spoil another's nodes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_cluster import Cluster, NodeGroup
from slurm_cluster.install import why_not
from slurm_project import SlurmProject, make_models, make_project


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
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture(scope="session")
def accounting_cluster(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with slurmdbd and MariaDB, shared by the tests of this process: leave it as it was found."""
    with Cluster(tmp_path_factory.mktemp("slurmdbd"), accounting=True) as started:
        yield started


@pytest.fixture
def own_cluster(slurm_machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one test's own, to cut cables on and to kill."""
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
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


@pytest.fixture
def make_slurm_project(
    new_base: Callable[[], Path], tiny_models: Path, tmp_path: Path
) -> Iterator[Callable[[int], SlurmProject]]:
    """Makes a project on a cluster of its own, of so many nodes with one GPU each, to drill on."""
    made: list[SlurmProject] = []

    def make(nodes: int) -> SlurmProject:
        cluster = Cluster(new_base(), groups=[NodeGroup("v100", nodes, gpus_per_node=1)])
        cluster.start()
        made.append(make_project(tmp_path / "a project", cluster, tiny_models))
        return made[-1]

    yield make
    for project in made:
        project.stop()
