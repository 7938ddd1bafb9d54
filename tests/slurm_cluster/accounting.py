"""Accounting: a MariaDB server of the cluster's own, and slurmdbd before it."""

from __future__ import annotations

import contextlib
import socket
import subprocess

from slurm_cluster.daemons import DAEMON_ENVIRONMENT, Daemon, wait_until
from slurm_cluster.layout import ClusterError, Layout
from slurm_cluster.processes import ProcessTree


class Accounting:
    """The database server and slurmdbd of one cluster."""

    def __init__(self, layout: Layout, tree: ProcessTree) -> None:
        self._layout = layout
        self._tree = tree
        self._data = layout.folder("database")
        self._socket = layout.base / "mariadb.socket"
        self._log = layout.folder("log") / "mariadb.log"
        # No network, and only this socket: root on it needs no password.
        words = [
            *("setsid", "--fork", "mariadbd", "--no-defaults", "--user=root", "--skip-networking"),
            *(f"--datadir={self._data}", f"--socket={self._socket}", f"--log-error={self._log}"),
            f"--pid-file={layout.folder('pid') / 'mariadb.pid'}",
            # A test's data: nothing of it outlives the cluster.
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M", "--skip-log-bin"),
        ]
        self._database = Daemon(tree, "mariadb", words, layout.folder("pid") / "mariadb.pid", self._log)
        self._slurmdbd = Daemon(
            tree,
            "slurmdbd",
            ["slurmdbd"],
            layout.folder("pid") / "slurmdbd.pid",
            layout.folder("log") / "slurmdbd.log",
            # slurmdbd has no option for the database's socket; its client library has this variable.
            {"SLURM_CONF": str(layout.slurm_conf), "MYSQL_UNIX_PORT": str(self._socket)},
        )

    def start(self) -> None:
        """Create the database and start both servers.

        Raises:
            ClusterError: one of them did not start.
        """
        install = [
            *("mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={self._data}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        ]
        made = subprocess.run(
            self._tree.command("mariadb", install), env=DAEMON_ENVIRONMENT, capture_output=True, text=True
        )
        if made.returncode != 0:
            raise ClusterError(f"cannot create the database:\n{made.stdout[-2000:]}{made.stderr[-2000:]}")
        self._database.start()
        wait_until(self._database_answers, f"the database answers (see {self._log})")
        self._slurmdbd.start()
        # slurmctld ends at once if it finds no slurmdbd on its first start.
        wait_until(self._slurmdbd_listens, f"slurmdbd listens (see {self._layout.base}/log/slurmdbd.log)")

    def stop(self) -> None:
        """End both servers."""
        self._slurmdbd.stop()
        self._database.stop()

    def _database_answers(self) -> bool:
        words = ["mariadb-admin", "--no-defaults", f"--socket={self._socket}", "--user=root", "ping"]
        return subprocess.run(words, capture_output=True).returncode == 0

    def _slurmdbd_listens(self) -> bool:
        address = (self._layout.login_address, self._layout.database_port)
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(address).close()
            return True
        return False
