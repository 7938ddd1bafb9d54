"""The order of the checks, and what is said of the site as a whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from shardwatt.checks.caps import check_caps
from shardwatt.checks.cluster import Cluster, ask_cluster, check_cluster, check_version
from shardwatt.checks.environments import Environment, check_environment, probe
from shardwatt.checks.findings import Finding, error, note, ok, warning
from shardwatt.checks.folders import check_folders
from shardwatt.checks.jobs import check_jobs
from shardwatt.dag import command_environment
from shardwatt.errors import SlurmError
from shardwatt.site import Site

#: Slurm's and the site's own findings are headed so; those of GPU types by their names.
SLURM, SITE = "Slurm", "site"


def check_site(
    site: Site,
    *,
    site_files: Sequence[Path],
    profile: dict[str, Any],
    profile_file: Path,
    root: Path,
    base: Path,
) -> Iterator[tuple[str, Finding]]:
    """Compare a site with Slurm, folders and environments; yields a heading and a finding at a time.

    Args:
        site: the site.
        site_files: where it was read from.
        profile: Snakemake's profile.
        profile_file: where that was read from.
        root: the project's root.
        base: the folder in which Snakemake runs.
    """
    cluster: Cluster | None = None
    try:
        yield SLURM, check_version()
        cluster = ask_cluster()
        for finding in check_cluster(cluster, profile, profile_file):
            yield SLURM, finding
        if site.power_limits is not None:
            for finding in check_caps(cluster.settings, site.power_limits):
                yield SLURM, finding
    except SlurmError as problem:
        yield SLURM, error(str(problem))
    for finding in (*_check_whole(site), *check_folders(site, base, Path(sys.executable))):
        yield SITE, finding
    asked: dict[tuple[str, ...], Environment] = {}
    variables = command_environment(root, [str(path) for path in site_files])
    for gpu, kind in site.gpus.items():
        if cluster is not None:
            try:
                for finding in check_jobs(cluster, site, gpu, base):
                    yield gpu, finding
            except SlurmError as problem:
                yield gpu, error(str(problem))
        lines = tuple(kind.environment)
        if lines not in asked:
            asked[lines] = probe(lines, root, variables)
        for finding in check_environment(kind, asked[lines], root / "src"):
            yield gpu, finding


def _check_whole(site: Site) -> Iterator[Finding]:
    several = [gpu for gpu in site.gpus if (site.words(gpu).nodes or 2) > 1]
    if site.network_interface is not None:
        here = site.network_interface in psutil.net_if_addrs()
        yield note(
            f"network_interface: {site.network_interface} is {'there' if here else 'not'} on this machine; "
            "whether nodes have it is seen there alone: a rank without it ends its cell with reason "
            "configuration"
        )
    elif several:
        yield warning(
            "network_interface: not given, and cells may span nodes: ranks take the interface of their host "
            "name's address, which on many clusters is slow Ethernet; see `ip -brief address` on a node"
        )
    if site.max_gpu_hours is None:
        yield note("max_gpu_hours: not given; a run submits whatever its targets need")
    else:
        yield ok(f"max_gpu_hours: a run of more than {site.max_gpu_hours:g} GPU hours is refused")
