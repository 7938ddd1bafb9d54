"""A node: namespaces of its own (network, name, processes, mounts, IPC, clock) with a slurmd in them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurm_cluster.daemons import DAEMON_ENVIRONMENT, tail, wait_until
from slurm_cluster.layout import ClusterError, Layout
from slurm_cluster.network import plug_in, set_cable, unplug
from slurm_cluster.processes import ProcessTree

#: First process of a node: sets up what is the node's own, then only collects its orphans.
#: Shared memory is apart because names in it carry process ids, which repeat from node to node.
_INIT = """
set -e
hostname "$1"
mount -t proc proc /proc
mount -t tmpfs -o mode=1777 shm /dev/shm
mount --bind "$2" /etc/hosts
exec env --ignore-signal=CHLD sleep infinity
"""

_NAMESPACES = ("--net", "--uts", "--ipc", "--mount", "--pid", "--time")

#: Machines boot at different times: s between the nodes' monotonic clocks.
_BOOTED_APART_S = 1000


class Node:
    """One node of a cluster, on or off."""

    def __init__(self, layout: Layout, tree: ProcessTree, name: str) -> None:
        self.name = name
        self._layout = layout
        self._tree = tree
        self._init_group = f"node_{name}"
        self._slurmd_group = f"slurmd_{name}"
        self._slurm_group = f"slurm_{name}"  # slurmd's own choice; jobs are below it
        self._pid_file = layout.folder("pid") / f"slurmd.{name}.pid"

    def switch_on(self) -> None:
        """Create the namespaces and the network cable; slurmd is not yet started."""
        init: list[str | Path] = ["sh", "-c", _INIT, "sh", self.name, self._layout.base / "hosts"]
        ahead_s = str(_BOOTED_APART_S * (1 + self._layout.node_names().index(self.name)))
        clock = ["--monotonic", ahead_s, "--boottime", ahead_s]
        words = ["setsid", "--fork", "unshare", *_NAMESPACES, *clock, "--fork", "--kill-child", *init]
        log_file = self._layout.folder("log") / f"node.{self.name}.log"
        with log_file.open("w") as log:
            subprocess.run(
                self._tree.command(self._init_group, words),
                env=DAEMON_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
            )
        wait_until(lambda: self._init_pid() is not None, f"node {self.name} is set up (see {log_file})")
        plug_in(self._layout, self.name, self._require_init())

    def switch_off(self) -> None:
        """Cut the power: everything on the node is gone at once, and nobody is told."""
        set_cable(self._layout, self.name, plugged=False)
        self._tree.kill(self._init_group)  # the kernel ends a process namespace with its first process
        self._tree.kill(self._slurmd_group)
        self._tree.kill(self._slurm_group)
        unplug(self._layout, self.name)

    def boot(self) -> None:
        """Switch the node on and start slurmd."""
        self.switch_on()
        self.start_slurmd()

    def cut_off(self) -> None:
        """Pull the network cable; what runs on the node runs on."""
        set_cable(self._layout, self.name, plugged=False)

    def reconnect(self) -> None:
        """Plug the network cable in again."""
        set_cable(self._layout, self.name, plugged=True)

    def start_slurmd(self) -> None:
        """Start slurmd; returns when it has gone into the background.

        Raises:
            ClusterError: it did not start.
        """
        words: list[str | Path] = ["slurmd", "-N", self.name, "-f", self._layout.slurm_conf]
        done = subprocess.run(
            self._tree.command(self._slurmd_group, self.command(words)),
            env=DAEMON_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            log = self._layout.folder("log") / f"slurmd.{self.name}.log"
            raise ClusterError(f"slurmd of {self.name} did not start:\n{done.stdout}{tail(log)}")

    def kill_slurmd(self) -> None:
        """Kill slurmd with SIGKILL; the node's jobs and their stepds run on."""
        pid = self.slurmd_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: self.slurmd_pid() is None, f"slurmd of {self.name} has ended")

    def slurmd_pid(self) -> int | None:
        """Process id of slurmd as this machine counts it; None where it does not run."""
        try:
            inside = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None
        pids = self._tree.pids(self._slurmd_group)
        return next((pid for pid in pids if _pid_inside(pid) == inside), None)

    def job_pids(self, job_id: int, step: str = "") -> list[int]:
        """Processes of a job here, as this machine counts them: with a step ("batch", "0") its tasks and
        what they started, otherwise those of all steps and the stepds too."""
        step_folder = f"/step_{step}" if step else ""
        return self._tree.pids(f"{self._slurm_group}/uid_{os.getuid()}/job_{job_id}{step_folder}")

    def task_pids(self, job_id: int, step: str = "0") -> dict[int, int]:
        """Process ids of a step's tasks here, by their rank (SLURM_PROCID)."""
        pids = self.job_pids(job_id, step)
        first = [pid for pid in pids if _status(pid, "PPid") not in map(str, pids)]
        return {rank: pid for pid in first if (rank := _rank(pid)) is not None}

    def command(self, words: Sequence[str | Path]) -> list[str]:
        """The words that run a program on this node.

        Raises:
            ClusterError: the node is off.
        """
        return ["nsenter", "--target", str(self._require_init()), *_NAMESPACES, "--", *map(str, words)]

    def _require_init(self) -> int:
        pid = self._init_pid()
        if pid is None:
            raise ClusterError(f"node {self.name} is off; switch it on first")
        return pid

    def _init_pid(self) -> int | None:
        """Process id, as this machine counts it, of the node's first process once all is set up."""
        for pid in self._tree.pids(self._init_group):
            if _pid_inside(pid) == 1 and _status(pid, "Name") == "sleep":
                return pid
        return None


def _pid_inside(pid: int) -> int | None:
    """Process id as the process itself sees it."""
    inside = _status(pid, "NSpid").split()[-1:]
    return int(inside[0]) if inside else None


def _status(pid: int, field: str) -> str:
    """A field of the process's status; empty if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return value.strip()
    return ""


def _rank(pid: int) -> int | None:
    """The process's SLURM_PROCID; None if it has none, or has ended."""
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"SLURM_PROCID="):
                return int(variable.partition(b"=")[2])
    return None
