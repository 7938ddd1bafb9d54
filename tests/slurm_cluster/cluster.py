"""The cluster as a whole: start, stop, and its parts for whoever drills on it."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from slurm_cluster.accounting import Accounting
from slurm_cluster.config import write_config
from slurm_cluster.daemons import Daemon, munged, slurmctld, wait_until
from slurm_cluster.layout import DEFAULT_GROUPS, ClusterError, Layout, NodeGroup, check_base, state_file
from slurm_cluster.network import create_bridge, free_indices, is_free, remove_bridges
from slurm_cluster.nodes import Node
from slurm_cluster.processes import ProcessTree

#: Folders of one run; started anew each time. `log` alone is kept at the end.
_FOLDERS = ("state", "spool", "pid", "log", "dev", "database", "cgroup")

_NVIDIA_MAJOR = 195


class Cluster:
    """A Slurm cluster on this machine, everything of it below one folder.

    slurmctld listens on a bridge that this machine has an address on: whoever sets `environment()` is on
    its login node. Partitions carry the groups' names; `low` and `high` cover the first group's nodes, and
    jobs in `high` preempt those in `low`.

    Args:
        base: the cluster's folder; created if need be. Another cluster needs another folder.
        accounting: with slurmdbd and a database, so that `sacct` answers.
        groups: the nodes.
        conf: further lines for slurm.conf, e.g. `Epilog=/path`; they replace those of the same key.

    Raises:
        ClusterError: the folder cannot hold a cluster.
    """

    def __init__(
        self,
        base: Path,
        *,
        accounting: bool = False,
        groups: Sequence[NodeGroup] = DEFAULT_GROUPS,
        conf: Sequence[str] = (),
    ) -> None:
        self.base = check_base(base)
        self._conf = tuple(conf)
        self._accounting = accounting
        self._groups = tuple(groups)
        self._parts: _Parts | None = None

    @classmethod
    def running(cls, base: Path) -> Self:
        """The cluster that was started in a folder, by this process or another.

        Raises:
            ClusterError: there is none.
        """
        layout = Layout.load(check_base(base))
        cluster = cls(layout.base, accounting=layout.accounting, groups=layout.groups)
        cluster._parts = _Parts(layout)
        return cluster

    def start(self) -> None:
        """Start everything and wait until all nodes are idle.

        Raises:
            ClusterError: a part did not start; what had been started is stopped again.
        """
        if state_file(self.base).exists():
            raise ClusterError(f"{self.base}: a cluster was started here; stop it first")
        self.stop()  # what a crash may have left
        self.base.mkdir(parents=True, exist_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.base / name, ignore_errors=True)
            (self.base / name).mkdir()
        try:
            self._start_parts()
        except BaseException:
            self.stop()
            raise

    def _start_parts(self) -> None:
        layout = self._take_index()
        layout.save()
        ProcessTree(self.base).mount()
        write_config(layout, self._conf)
        for number in range(max(group.gpus_per_node for group in layout.groups)):
            device = self.base / "dev" / f"nvidia{number}"
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(_NVIDIA_MAJOR, number))
        self._parts = parts = _Parts(layout)
        parts.munged.start()
        if parts.accounting is not None:
            parts.accounting.start()
        parts.controller.start()
        for node in parts.nodes.values():
            node.boot()
        wait_until(self._all_idle, f"all nodes are idle (see {self.base}/log/slurmctld.log)")

    def _take_index(self) -> Layout:
        for index in free_indices():
            layout = Layout(self.base, index, self._groups, self._accounting)
            if is_free(layout.controller_port) and create_bridge(layout):
                return layout
        raise ClusterError("no free subnet in 10.213.0.0/16; stop clusters that are not needed")

    def stop(self) -> None:
        """Stop and remove everything but logs and configuration, also after a crash at any point."""
        with contextlib.suppress(ClusterError):
            parts = self._parts or _Parts(Layout.load(self.base))
            parts.controller.stop()
            if parts.accounting is not None:
                parts.accounting.stop()
            parts.munged.stop()
        self._parts = None
        ProcessTree(self.base).unmount()
        remove_bridges(self.base)
        for name in _FOLDERS:
            if name != "log":
                shutil.rmtree(self.base / name, ignore_errors=True)
        state_file(self.base).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def layout(self) -> Layout:
        """Names and addresses."""
        return self._require().layout

    @property
    def controller(self) -> Daemon:
        """slurmctld: `stop()`, `kill()`, `start()`; it takes up its jobs again."""
        return self._require().controller

    def node(self, name: str) -> Node:
        """A node by its name."""
        return self._require().nodes[name]

    def environment(self) -> dict[str, str]:
        """The variables that put a shell on the cluster's login node."""
        return {"SLURM_CONF": str(self.base / "slurm.conf")}

    def run(self, *words: str, timeout_s: float = 60.0) -> str:
        """Run a command on the login node; returns its standard output.

        Raises:
            ClusterError: it failed; its standard error is in the message.
        """
        done = subprocess.run(
            words,
            env=os.environ | self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode != 0:
            raise ClusterError(f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def resume(self, name: str) -> None:
        """Set a node that is down or drained to work again, and wait until it is idle."""
        self.run("scontrol", "update", f"nodename={name}", "state=resume")
        wait_until(lambda: self.state(name) == "idle", f"node {name} is idle")

    def state(self, name: str) -> str:
        """A node's state in Slurm's words, such as idle, mixed, down*."""
        return self.run("sinfo", "--noheader", f"--nodes={name}", "--format=%T").split()[0]

    def _all_idle(self) -> bool:
        self.controller.check_alive()
        with contextlib.suppress(ClusterError):  # slurmctld may not answer yet
            return set(self.run("sinfo", "--noheader", "--Node", "--format=%T").split()) == {"idle"}
        return False

    def _require(self) -> _Parts:
        if self._parts is None:
            raise ClusterError(f"{self.base}: the cluster is not started")
        return self._parts


class _Parts:
    """What a started cluster consists of."""

    def __init__(self, layout: Layout) -> None:
        tree = ProcessTree(layout.base)
        self.layout = layout
        self.munged = munged(layout, tree)
        self.accounting = Accounting(layout, tree) if layout.accounting else None
        self.controller = slurmctld(layout, tree)
        self.nodes = {name: Node(layout, tree, name) for name in layout.node_names()}
