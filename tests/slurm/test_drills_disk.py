"""A disk for the results that is full in mid-run."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm_project import TALKATIVE, TALKATIVE_LENGTH, SlurmProject, crawl, gpu_type, run_freely

pytestmark = pytest.mark.slurm


@pytest.fixture
def small_disk(slurm_machine: None, tmp_path: Path) -> Iterator[Path]:
    """A file system with little space; mounted before a cluster starts, its nodes have it too."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "results", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full_fails_the_cell_and_leaves_nothing(
    small_disk: Path, make_slurm_project: Callable[[int], SlurmProject]
) -> None:
    project = make_slurm_project(2)
    nodes = project.cluster.layout.node_names()
    (project.root / "results").symlink_to(small_disk)
    project.write_site({"v100": gpu_type("v100")}, collective_timeout_s=60)
    block = project.block(gpu="v100", shards=2, batch=1, length=TALKATIVE_LENGTH)
    project.write_study(**TALKATIVE, matrix=block)
    (paths,) = project.cells()
    crawl(project.cluster, nodes)
    run = project.start("--retries", "0", paths.target)
    project.await_run(paths)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    run_freely(project.cluster, nodes)
    assert run.ended() == 1, run.output
    assert project.told() == {"v100": ("failed", "storage")}
    assert "No space left on device" in project.failure(paths).message
    assert [attempt.reason for attempt in project.attempts(paths)] == ["storage"]
    assert not list(paths.results.glob("*"))
    project.assert_nothing_left()
    filler.unlink()
    assert project.planned(paths.target) == {"cell": 1}
    again = project.start(paths.target)
    assert again.ended() == 0, again.output
    assert project.told() == {"v100": ("ok", None)}
