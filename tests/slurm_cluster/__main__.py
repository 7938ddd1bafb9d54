"""`make slurm-cluster`: a Slurm cluster on this machine, for trying the pipeline out."""

from __future__ import annotations

import argparse
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from slurm_cluster.cluster import Cluster
from slurm_cluster.install import why_not
from slurm_cluster.layout import DEFAULT_GROUPS, ClusterError, NodeGroup

_USAGE = """\
The cluster runs in {base}: {groups}.
The GPUs are names without a device behind them; processors of this machine play them.

In another shell, in the project's folder, as root:

  source .venv/bin/activate
  export SLURM_CONF={conf} SHARDWATT_SITE={site}
  sinfo
  shardwatt check-site

What a study would submit, and the run, two to three minutes on two cores:

  snakemake --profile profiles/slurm -n results/{study}/report.html --configfile {site}
  snakemake --profile profiles/slurm results/{study}/report.html --configfile {site}

While it runs, in a third shell set up like the second:

  squeue
  shardwatt cells {study}

Logs of the cluster's daemons are in {base}/log."""

#: What a person can run on the default groups; paths below the project's folder.
_SITE, _STUDY = "profiles/slurm/test-cluster.yaml", "cluster-demo"


def usage(cluster: Cluster) -> str:
    """What to type to use a running cluster: commands are indented by two blanks."""
    layout = cluster.layout
    shapes = [
        f"partition {group.name} of {group.nodes} nodes x {group.gpus_per_node} GPUs"
        for group in layout.groups
    ]
    return _USAGE.format(
        base=cluster.base, groups=", ".join(shapes), conf=layout.slurm_conf, site=_SITE, study=_STUDY
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        _COMMANDS[options.command](options)
    except ClusterError as problem:
        print(f"slurm-cluster: {problem}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    """start the cluster, stay until Ctrl-C, and clean up (the default)"""
    _on_signals(_end)
    try:
        cluster = _started(options)
    except _Ended:
        return
    try:
        print("\nCtrl-C stops the cluster.", flush=True)
        while True:
            signal.pause()
    except _Ended:
        print("\nstopping the cluster", flush=True)
    finally:
        _on_signals(signal.SIG_IGN)
        cluster.stop()


def _start(options: argparse.Namespace) -> None:
    """start the cluster and leave it running"""
    _started(options)


def _started(options: argparse.Namespace) -> Cluster:
    if reason := why_not():
        raise ClusterError(f"no cluster can be started here: {reason}")
    groups = tuple(options.group or DEFAULT_GROUPS)
    cluster = Cluster(options.folder, accounting=options.accounting, groups=groups)
    cluster.start()
    print(usage(cluster))
    return cluster


def _stop(options: argparse.Namespace) -> None:
    """stop the cluster, or what a crash has left of it"""
    Cluster(options.folder).stop()


def _status(options: argparse.Namespace) -> None:
    """show the nodes and jobs of the running cluster"""
    cluster = Cluster.running(options.folder)
    for words in (["sinfo"], ["squeue"]):
        print(cluster.run(*words), end="")


_COMMANDS = {"run": _run, "start": _start, "stop": _stop, "status": _status}


class _Ended(Exception):
    """A signal asked for the end."""


def _on_signals(action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, action)


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _group(text: str) -> NodeGroup:
    match = re.fullmatch(r"([a-z][a-z0-9]*):([1-9][0-9]*)x([0-9]+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text}: expected NAME:NODESxGPUS, such as v100:4x2")
    return NodeGroup(match[1], int(match[2]), int(match[3]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="slurm-cluster", description=__doc__)
    words = "; ".join(f"{name}: {command.__doc__}" for name, command in _COMMANDS.items())
    parser.add_argument("command", choices=_COMMANDS, default="run", nargs="?", help=words)
    parser.add_argument(
        "--folder", type=Path, default=Path(".slurm-cluster"), help="where everything of it lies"
    )
    parser.add_argument(
        "--accounting", action="store_true", help="with slurmdbd and MariaDB, so that sacct answers"
    )
    parser.add_argument(
        "--group",
        type=_group,
        action="append",
        metavar="NAME:NODESxGPUS",
        help="such as v100:4x2; repeatable",
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
