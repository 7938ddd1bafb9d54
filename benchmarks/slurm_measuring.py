"""What the benchmarks on Slurm share: a test cluster with a small project on it, and a run with its times."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measuring import Cost
from shardwatt.layout import CellPaths
from slurm_cluster import Cluster, NodeGroup
from slurm_cluster.install import why_not
from slurm_project import SlurmProject, gpu_type, make_models, make_project
from workflow_project import Project

#: GPU type of the cluster's nodes, one each; processors play them.
GPU = "v100"

_SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid")
_MESSAGE = re.compile(r"Job (\d+): ")
_STARTED = re.compile(r"(?:local)?rule cell:")
_NUMBER = re.compile(r"    jobid: (\d+)")
_WILDCARDS = re.compile(r"    wildcards: study=[^,]+, cell=(\S+)")
_FINISHED = re.compile(r"Finished jobid: (\d+) \(Rule: cell\)")


@contextmanager
def cluster_project(nodes: int) -> Iterator[SlurmProject]:
    """A test cluster of so many nodes, and a project with the tiny model in 1 and 2 shards on it."""
    if reason := why_not():
        raise SystemExit(f"no Slurm cluster can be started here: {reason}")
    with tempfile.TemporaryDirectory(prefix="shardwatt-") as name:
        folder = Path(name)
        models = make_models(folder / "models", (1, 2))
        with Cluster(folder / "cluster", groups=[NodeGroup(GPU, nodes)]) as cluster:
            project = make_project(folder / "project", cluster, models)
            project.write_site({GPU: gpu_type(GPU)})
            yield project


def in_place_s(paths: CellPaths) -> float:
    """When a cell's record came into place, in s since the epoch: the last change of its folder."""
    return paths.results.stat().st_mtime


@dataclass(frozen=True, slots=True)
class Watched:
    """A run of Snakemake, and when it said what; wall clock in s since the epoch.

    Attributes:
        cost: of the main process and the programs that it waited for; its jobs are not among them.
        began_s: start of the run.
        submitted_s: by cell, when its job was submitted, or with the local profile started.
        known_s: by cell, when Snakemake said that it had finished.
    """

    cost: Cost
    began_s: float
    submitted_s: dict[str, float]
    known_s: dict[str, float]


def slurm_command(project: Project, check_s: int, *words: str) -> list[str]:
    """Snakemake with the profile for Slurm, looking at its jobs first after so many s."""
    command = Project.snakemake_command(project, *words)
    command[command.index("profiles/local")] = "profiles/slurm"
    return [*command, "--slurm-init-seconds-before-status-checks", str(check_s)]


def watch(project: Project, command: Sequence[str]) -> Watched:
    """Run Snakemake and take the time of what it says of cells, in whole lines as it prints them.

    Raises:
        RuntimeError: it failed; its output is in the message.
    """
    began_s, began_clock_s = time.time(), time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=project.root,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    paths: dict[str, str] = {}
    submitted_s: dict[str, float] = {}
    known_s: dict[str, float] = {}
    number, started_s = "", 0.0
    for line in process.stdout:
        now_s = time.time()
        said.append(line)
        if said[-2:-1] and (match := _MESSAGE.match(said[-2])):
            # The path of its cell is on the line below.
            paths[match[1]] = line.strip()
        elif match := _SUBMITTED.match(line):
            submitted_s[paths[match[1]]] = now_s
        elif _STARTED.match(line):
            started_s = now_s
        elif match := _NUMBER.match(line):
            number = match[1]
        elif match := _WILDCARDS.match(line):
            paths[number] = match[1]
            submitted_s[match[1]] = started_s
        elif match := _FINISHED.match(line):
            known_s[paths[match[1]]] = now_s
    # rusage of this child alone; ru_maxrss is in KiB on Linux.
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - began_clock_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{''.join(said[-60:])}")
    cost = Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
    return Watched(cost, began_s, submitted_s, known_s)
