"""The cluster's processes: all of them, its jobs' too, live below one cgroup of its own.

So none is ever missed or mistaken for another, whatever became of pid files and parents. The cgroup
belongs to the v1 freezer, which is there beside either version of cgroups and limits nothing. The slurmds
take it for the freezer's root: Slurm's own cgroups for jobs are made below it, and those of two clusters
whose nodes have the same names stay apart.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from slurm_cluster.layout import ClusterError, fingerprint

_KILL_TIMEOUT_S = 60.0

#: Moves itself into a cgroup, then becomes the program: no child is ever outside.
_ENTER = 'echo $$ > "$0" && exec "$@"'


class ProcessTree:
    """The cgroup of one cluster; `<base>/cgroup` is what slurmd finds as CgroupMountpoint."""

    def __init__(self, base: Path) -> None:
        self._hierarchy = base / "cgroup" / "all"
        self._as_seen_by_slurm = base / "cgroup" / "freezer"
        self._root = self._hierarchy / f"shardwatt-{fingerprint(base)}"

    def mount(self) -> None:
        """Create the cgroup.

        Raises:
            ClusterError: this kernel or container does not allow it.
        """
        for folder in (self._hierarchy, self._as_seen_by_slurm):
            folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "cgroup", "-o", "freezer", "cgroup", self._hierarchy)
        self._root.mkdir(exist_ok=True)
        _mount("--bind", self._root, self._as_seen_by_slurm)

    def command(self, group: str, words: Sequence[str | Path]) -> list[str]:
        """The words that run a program inside a group, created here if need be."""
        folder = self._root / group
        folder.mkdir(parents=True, exist_ok=True)
        return ["sh", "-c", _ENTER, str(folder / "cgroup.procs"), *map(str, words)]

    def pids(self, group: str = "") -> list[int]:
        """Process ids, as this machine counts them, in a group and those below it."""
        found: list[int] = []
        for folder in self._folders(group):
            with contextlib.suppress(OSError):  # a group may vanish while it is read
                found += map(int, (folder / "cgroup.procs").read_text().split())
        return found

    def kill(self, group: str = "") -> None:
        """Kill every process of a group and remove it.

        Raises:
            ClusterError: a process is left.
        """
        deadline = time.monotonic() + _KILL_TIMEOUT_S
        while pids := self.pids(group):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ClusterError(f"processes {pids} do not end though they were killed")
            time.sleep(0.01)
        for folder in reversed(self._folders(group)):
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()

    def unmount(self) -> None:
        """Kill what is left and remove the cgroup, where there is one."""
        if self._root.is_dir():
            self.kill()
        for folder in (self._as_seen_by_slurm, self._hierarchy):
            if folder.is_mount():
                subprocess.run(["umount", str(folder)], check=True)

    def _folders(self, group: str) -> list[Path]:
        """A group and those below it, parents first."""
        return [Path(folder) for folder, _, _ in os.walk(self._root / group)]


def _mount(*words: str | Path) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"cannot mount the freezer's cgroups: {done.stderr.strip()}")
