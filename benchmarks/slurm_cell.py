"""What a cell takes as a Slurm job, and alone: `python benchmarks/slurm_cell.py`, as root.

Starts a cluster on this machine and runs a tiny cell again and again, with 1 rank on one node and with 2
ranks on two nodes: through the profile for Slurm as it is, with earlier looks at the queue, and through the
local profile, in turn. Its time is taken apart from the command to Snakemake's word that it has finished.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from measuring import Cost, interleave, machine, positive, ratios, spread, table
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Record
from slurm_measuring import GPU, Watched, cluster_project, in_place_s, slurm_command, watch
from slurm_project import SlurmProject
from workflow_project import Project

STUDY, STUDY_HERE = "jobs", "here"
NODES = 2

#: First look at the queue in s after a submission: the profile's, and an earlier one.
CHECKS_S = (20, 5)

_SLURM = "Slurm, {} s"


@dataclass(frozen=True, slots=True)
class Passed:
    """When a cell's run came to what; wall clock in s since the epoch, lengths in s."""

    began_s: float
    submitted_s: float
    supervised_s: float
    job_s: float
    start_s: float
    window_s: float
    in_place_s: float
    known_s: float
    ended_s: float


OUTSIDE = "from the submission to the record in place, without the window"

#: Parts of a run's wall time, in the order in which they pass.
PARTS: dict[str, Callable[[Passed], float]] = {
    "Snakemake, from the command to its end": lambda at: at.ended_s - at.began_s,
    "of it: until the job is submitted, or started": lambda at: at.submitted_s - at.began_s,
    "of it: until the supervisor begins (queue, two more Snakemakes)": lambda at: (
        at.supervised_s - at.submitted_s
    ),
    "of it: checks and meters before the ranks, record after them": lambda at: (
        at.in_place_s - at.supervised_s - at.job_s
    ),
    "of it: starting ranks, rendezvous, loading, warm-up": lambda at: at.start_s,
    "of it: the measured window": lambda at: at.window_s,
    "of it: end of ranks": lambda at: at.job_s - at.start_s - at.window_s,
    "of it: from the record in place to Snakemake knowing it": lambda at: at.known_s - at.in_place_s,
    OUTSIDE: lambda at: at.in_place_s - at.submitted_s - at.window_s,
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=positive, default=5, help="times each is run (default: 5)")
    given = options.parse_args()
    with cluster_project(NODES) as project:
        _measure(project, given.rounds)


def _measure(project: SlurmProject, rounds: int) -> None:
    project.write_study(STUDY, matrix=project.block(gpu=GPU, shards=[1, 2]))
    project.write_study(STUDY_HERE, matrix=project.block(gpu="cpu", shards=[1, 2]))
    here = Project(project.root, project.environment)
    passed: dict[str, list[Passed]] = {}
    tasks: dict[str, Callable[[], Cost]] = {}
    for paths, alone in zip(project.cells(STUDY), here.cells(STUDY_HERE), strict=True):
        for check_s in CHECKS_S:
            name = f"{_ranks(paths)}: {_SLURM.format(check_s)}"
            tasks[name] = _task(
                project, slurm_command(project, check_s, paths.target), paths, passed.setdefault(name, [])
            )
        name = f"{_ranks(paths)}: alone"
        tasks[name] = _task(here, here.snakemake_command(alone.target), alone, passed.setdefault(name, []))
    interleave(tasks, rounds)
    rows = [
        [part, *(spread([seconds_of(at) for at in passed[name]], 1) for name in tasks)]
        for part, seconds_of in PARTS.items()
    ]
    print(f"{rounds} rounds; seconds, median (least to most).")
    print(machine("snakemake", "snakemake-executor-plugin-slurm", "torch"), end="\n\n")
    print(table(["part", *tasks], rows))
    for ranks in dict.fromkeys(name.partition(":")[0] for name in tasks):
        slurm_s, alone_s = (
            [PARTS[OUTSIDE](at) for at in passed[f"{ranks}: {how}"]]
            for how in (_SLURM.format(CHECKS_S[0]), "alone")
        )
        print(f"\n{ranks}, {OUTSIDE}: Slurm over alone, by round: {spread(ratios(slurm_s, alone_s))}")


def _ranks(paths: CellPaths) -> str:
    return "1 rank" if paths.cell.shards == 1 else f"{paths.cell.shards} ranks"


def _task(project: Project, command: list[str], paths: CellPaths, passed: list[Passed]) -> Callable[[], Cost]:
    def run() -> Cost:
        shutil.rmtree(paths.results, ignore_errors=True)
        shutil.rmtree(paths.logs, ignore_errors=True)
        found = watch(project, command)
        passed.append(_passed(found, paths))
        return found.cost

    return run


def _passed(run: Watched, paths: CellPaths) -> Passed:
    timings = read(Record, paths.record).timings
    assert timings is not None
    return Passed(
        began_s=run.began_s,
        submitted_s=run.submitted_s[paths.cell.path],
        supervised_s=timings.started_at.timestamp(),
        job_s=timings.job_duration_s,
        start_s=timings.rendezvous_s + timings.load_s + timings.warmup_s,
        window_s=timings.duration_s,
        in_place_s=in_place_s(paths),
        known_s=run.known_s[paths.cell.path],
        ended_s=run.began_s + run.cost.wall_s,
    )


if __name__ == "__main__":
    main()
