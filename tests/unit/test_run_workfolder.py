"""Guards work folders: those of killed attempts are removed, those of living ones and other nodes are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shardwatt.run.workfolder import OWNER_FILE, WorkFolder, remove_abandoned

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
    (path / OWNER_FILE).write_text("another-node")
    assert remove_abandoned(tmp_path) == []
    assert path.is_dir()


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
