"""What this machine needs for a cluster: root, Debian's packages, and namespaces."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from slurm_cluster.daemons import DAEMON_ENVIRONMENT

#: Programs that are run, and Debian's packages that bring them.
_PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "sinfo": "slurm-client",
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "mariadb-install-db": "mariadb-server",
    "ip": "iproute2",
    "unshare": "util-linux",
}

#: Everything a cluster asks of the kernel, in namespaces that are gone when it ends.
_PROBE = """
mount -t proc proc /proc
mount -t tmpfs probe /mnt
mkdir /mnt/freezer
mount -t cgroup -o freezer cgroup /mnt/freezer
mknod /mnt/device c 195 0
ip link add name probe0 type bridge
ip link add name probe1 master probe0 type veth peer name probe2
"""

_POLICY = Path("/usr/sbin/policy-rc.d")


def why_not() -> str | None:
    """Make this machine ready, with Debian's packages if need be.

    Returns:
        None if a cluster can be started, otherwise the reason why not.
    """
    if os.geteuid() != 0:
        return "it needs root, for network namespaces and cgroups"
    if missing := _missing_packages():
        if not Path("/etc/debian_version").exists():
            found = platform.freedesktop_os_release().get("PRETTY_NAME", "another system")
            return f"it needs Slurm, and can install it on Debian only; this is {found}"
        if problem := _install(missing):
            return problem
    return _kernel_problem()


def _missing_packages() -> list[str]:
    path = DAEMON_ENVIRONMENT["PATH"]
    missing = {package for program, package in _PACKAGES.items() if not shutil.which(program, path=path)}
    return sorted(missing)


def _install(packages: list[str]) -> str | None:
    """Install packages; returns what went wrong, if anything."""
    # Another process may be at it: wait for its lock.
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    install = [*apt, "install", "--no-install-recommends", *packages]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    print("installing", *packages, flush=True)
    with _no_service_starts():
        for words in (install, [*apt, "update"], install):
            done = subprocess.run(words, env=environment, capture_output=True, text=True)
            if words is install and done.returncode == 0:
                return None
    return f"apt-get cannot install {' '.join(packages)}: {done.stderr.strip()[-500:]}"


@contextlib.contextmanager
def _no_service_starts() -> Iterator[None]:
    """Keep packages from starting their services: a cluster starts its own, and no other shall run."""
    try:
        with _POLICY.open("x") as policy:
            policy.write("#!/bin/sh\nexit 101\n")
    except FileExistsError:
        yield
        return
    _POLICY.chmod(0o755)
    try:
        yield
    finally:
        _POLICY.unlink()


def _kernel_problem() -> str | None:
    namespaces = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--time", "--fork"]
    done = subprocess.run([*namespaces, "sh", "-ec", _PROBE], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    return f"namespaces, bridges, cgroups or devices cannot be made here: {done.stderr.strip()}"
