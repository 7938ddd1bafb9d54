"""Starting and ending the programs that serve the cluster on the login side, and slurmd on the nodes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slurm_cluster.layout import ClusterError, Layout
from slurm_cluster.processes import ProcessTree

#: What the daemons see of the caller's environment: nothing of its Python, its Slurm or its locale.
DAEMON_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 30.0


class Daemon:
    """A program that goes into the background by itself and leaves a pid file.

    Args:
        tree: where its process will live.
        name: its group in the tree, and its name in messages.
        words: the command.
        pid_file: where it writes its process id.
        log: where it writes its log.
        environment: variables beside `DAEMON_ENVIRONMENT`.
    """

    def __init__(
        self,
        tree: ProcessTree,
        name: str,
        words: Sequence[str | Path],
        pid_file: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._tree = tree
        self._name = name
        self._words = words
        self._pid_file = pid_file
        self._log = log
        self._environment = DAEMON_ENVIRONMENT | dict(environment or {})

    def start(self) -> None:
        """Start it; returns when it has gone into the background.

        Raises:
            ClusterError: it did not start; the end of its log is in the message.
        """
        self._pid_file.unlink(missing_ok=True)
        done = subprocess.run(
            self._tree.command(self._name, self._words),
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode != 0:
            raise ClusterError(f"{self._name} did not start:\n{done.stdout}{tail(self._log)}")

    def pid(self) -> int | None:
        """Its process id, None where it does not run."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid = int(self._pid_file.read_text())
            return pid if pid in self._tree.pids(self._name) else None
        return None

    def check_alive(self) -> None:
        """Raises ClusterError if it has ended; the end of its log is in the message."""
        if not self._tree.pids(self._name):
            raise ClusterError(f"{self._name} has ended:\n{tail(self._log)}")

    def stop(self) -> None:
        """End it by SIGTERM and wait for that; kill it if that does not help. Nothing if it does not run."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            with contextlib.suppress(ClusterError):
                wait_until(lambda: self.pid() is None, self._name, _STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._tree.kill(self._name)


def munged(layout: Layout, tree: ProcessTree) -> Daemon:
    """The cluster's own munged: its own key, no touch of the machine's."""
    key = layout.base / "munge.key"
    if not key.exists():
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
    pid_file = layout.folder("pid") / "munged.pid"
    log = layout.folder("log") / "munged.log"
    files = {
        "--socket": layout.munge_socket,
        "--key-file": key,
        "--pid-file": pid_file,
        "--log-file": log,
        "--seed-file": layout.base / "munge.seed",
    }
    # Without --force it wants every folder above its own to belong to root.
    words: list[str | Path] = ["munged", "--force", "--num-threads=2"]
    words += [f"{option}={path}" for option, path in files.items()]
    return Daemon(tree, "munged", words, pid_file, log)


def slurmctld(layout: Layout, tree: ProcessTree) -> Daemon:
    """The controller; it takes up what StateSaveLocation holds."""
    return Daemon(
        tree,
        "slurmctld",
        ["slurmctld", "-f", layout.slurm_conf],
        layout.folder("pid") / "slurmctld.pid",
        layout.folder("log") / "slurmctld.log",
    )


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = _START_TIMEOUT_S) -> None:
    """Wait until a condition holds.

    Raises:
        ClusterError: it does not within `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not so after {timeout_s:g} s")
        time.sleep(0.05)


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a log; empty where there is none."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
