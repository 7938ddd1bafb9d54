"""Folders that every node must read: are they there, and on which file system."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shardwatt.checks.findings import Finding, note, ok, warning
from shardwatt.site import Site

#: File systems of one machine's memory or disks, unless it serves them to others itself.
_LOCAL = frozenset({"btrfs", "ext2", "ext3", "ext4", "overlay", "ramfs", "rootfs", "tmpfs", "xfs", "zfs"})
#: Folders that are each node's own by custom.
_OWN = (Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"))  # noqa: S108  only compared with


def check_folders(site: Site, base: Path, python: Path) -> Iterator[Finding]:
    """The site's folders, the one that results are written to, and the interpreter of jobs.

    Args:
        site: the site.
        base: the folder in which Snakemake runs.
        python: the interpreter that runs it, and jobs.
    """
    if site.models.is_dir():
        yield _shared("models", site.models)
    else:
        yield warning(
            f"models: {site.models} is not there: models of config/models are made in it when a study first "
            "needs them, others are yours to put there"
        )
    if site.data.is_dir():
        yield _shared("data", site.data)
    else:
        yield note(f"data: {site.data} is not there: it is made when a study first fetches a data set")
    yield _shared("results and logs", base)
    yield _shared("Python", python)
    if site.staging is None:
        yield note("staging: not given; every rank reads its shard from models")
    else:
        yield note(f"staging: {site.staging} is a folder of the nodes, and cannot be seen from here")


def _shared(name: str, path: Path) -> Finding:
    real = Path(os.path.realpath(path))
    kind = file_system(real)
    if any(real.is_relative_to(folder) for folder in _OWN) or kind in _LOCAL:
        return warning(
            f"{name}: {path} is on {kind}, which is mostly this machine's own: every node must see it under "
            "the same path"
        )
    return ok(f"{name}: {path} is on {kind}")


def file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Type of the file system that holds a path, e.g. nfs4, or words that say that it is not known."""
    found, best = "an unknown file system", Path("/")
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return found
    for line in lines:
        _, point, kind, *_ = line.split()
        folder = Path(point.replace("\\040", " "))
        # Of two mounts on one folder the later one is seen.
        if path.is_relative_to(folder) and folder.is_relative_to(best):
            found, best = kind, folder
    return found
