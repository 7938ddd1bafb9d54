"""Guards work folders: those of killed attempts are removed, those of living ones and other nodes are not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shardwatt.run.workfolder import (
    OWNER_FILE,
    Owner,
    WorkFolder,
    is_worked_in,
    remove_abandoned,
    remove_of_job,
)

HOLDER = """
import sys
from pathlib import Path
from shardwatt.run.workfolder import WorkFolder
folder = WorkFolder(Path(sys.argv[1]))
(folder.path / "job.json").write_text("{}")
print(folder.path, flush=True)
sys.stdin.read()
"""


def start_holder(begin: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that holds a work folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(begin)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_killed_attempts_folder_is_removed_a_living_ones_is_not(tmp_path: Path) -> None:
    process, path = start_holder(tmp_path / ".work" / "cell-7")
    try:
        assert path.is_dir()
        assert remove_abandoned(tmp_path / ".work") == []
    finally:
        process.kill()
        process.communicate()
    assert path.is_dir()
    assert remove_abandoned(tmp_path / ".work") == [path]
    assert not path.exists()


def test_another_nodes_folder_stays(tmp_path: Path) -> None:
    """Whether a lock is seen from another node depends on the file system."""
    process, path = start_holder(tmp_path / "cell-7")
    process.kill()
    process.communicate()
    change_owner(path, node="another-node")
    assert remove_abandoned(tmp_path) == []
    assert path.is_dir()


def test_a_living_ones_folder_stays_also_if_its_lock_is_lost(tmp_path: Path) -> None:
    """As on a network file system that was away for long."""
    process, path = start_holder(tmp_path / "cell-7")
    try:
        lose_lock(path)
        be_silent(path)
        assert remove_abandoned(tmp_path) == []
        assert path.is_dir()
    finally:
        process.kill()
        process.communicate()
    assert remove_abandoned(tmp_path) == [path]


@pytest.mark.parametrize("change", [{"boot_id": "0" * 36}, {"pid_space": 1}], ids=["boot", "container"])
def test_one_that_cannot_be_told_from_here_must_have_been_silent(
    tmp_path: Path, change: dict[str, object]
) -> None:
    """Another host of the same name, that shows no locks; or this one, before it was started anew."""
    process, path = start_holder(tmp_path / "cell-7")
    process.kill()
    process.communicate()
    change_owner(path, **change)
    assert remove_abandoned(tmp_path) == []
    be_silent(path)
    assert remove_abandoned(tmp_path) == [path]


def test_what_a_requeued_job_left_is_removed_but_not_what_another_supervisor_of_the_job_holds(
    tmp_path: Path,
) -> None:
    begins = [tmp_path / f"{begin}-4711" for begin in ("0123456789abcdef", "ranks")]
    (living, held), (killed, left) = map(start_holder, begins)
    killed.kill()
    killed.communicate()
    elsewhere = tmp_path / "fedcba9876543210-4711-x"
    shutil.copytree(held, elsewhere)
    change_owner(elsewhere, node="another-node")
    other_job = tmp_path / "0123456789abcdef-47-x"
    other_job.mkdir()
    try:
        assert set(remove_of_job(tmp_path, "4711", None)) == {left, elsewhere}
        lose_lock(held)
        assert remove_of_job(tmp_path, "4711", None) == []
        assert set(tmp_path.iterdir()) == {held, other_job}
    finally:
        living.kill()
        living.communicate()
    assert remove_of_job(tmp_path, "4711", None) == [held]


@pytest.mark.parametrize(
    ("made_on", "removed_by", "stays"),
    [("alpha", "beta", True), ("alpha", None, True), ("alpha", "alpha", False), (None, "alpha", False)],
)
def test_another_clusters_job_of_the_same_number_keeps_its_folder(
    tmp_path: Path, made_on: str | None, removed_by: str | None, stays: bool
) -> None:
    """Clusters that share the folder count their jobs apart."""
    process, path = start_holder(tmp_path / "0123456789abcdef-4711")
    process.kill()
    process.communicate()
    change_owner(path, cluster=made_on, node="another-node")
    assert remove_of_job(tmp_path, "4711", removed_by) == ([] if stays else [path])
    assert path.exists() is stays


def test_a_job_works_where_something_has_changed_of_late(tmp_path: Path) -> None:
    assert not is_worked_in(tmp_path, "4711")
    folder = tmp_path / "0123456789abcdef-4711-x"
    folder.mkdir()
    assert is_worked_in(tmp_path, "4711")
    assert not is_worked_in(tmp_path, "471")
    be_silent(folder)
    assert not is_worked_in(tmp_path, "4711")


def change_owner(folder: Path, **change: object) -> None:
    owner = Owner.model_validate_json((folder / OWNER_FILE).read_text())
    (folder / OWNER_FILE).write_text(owner.model_copy(update=change).model_dump_json())


def lose_lock(folder: Path) -> None:
    """A lock is of the file, so another of the same content has none."""
    copy = shutil.copy(folder / OWNER_FILE, folder / "copy")
    Path(copy).replace(folder / OWNER_FILE)


def test_one_jobs_second_attempt_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """A requeued job has the number of the one that was killed."""
    first, second = WorkFolder(tmp_path / "cell-7"), WorkFolder(tmp_path / "cell-7")
    assert first.path != second.path
    assert first.path.name.startswith("cell-7-")
    first.remove()
    second.remove()
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_not_there_holds_nothing_to_remove(tmp_path: Path) -> None:
    assert remove_abandoned(tmp_path / ".work") == []


def be_silent(folder: Path) -> None:
    """As if nothing had changed in it for an hour."""
    an_hour_ago_s = time.time() - 3600
    os.utime(folder, (an_hour_ago_s, an_hour_ago_s))
