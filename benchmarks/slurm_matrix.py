"""A matrix of short cells end to end on a test cluster: `python benchmarks/slurm_matrix.py`, as root.

Starts a cluster of six nodes on this machine and runs a study of cells of one rank through the profile for
Slurm as it is, each cell with a node to itself. All nodes share this machine's processors, so the jobs, not
Slurm or Snakemake, set the pace; what Snakemake itself takes is told apart.
"""

from __future__ import annotations

import argparse
import statistics

from measuring import machine, positive, spread, table
from shardwatt.attempts import Attempt
from shardwatt.layout import CellPaths
from shardwatt.leftovers import attempts_of
from shardwatt.recordfiles import read
from shardwatt.records import Record
from slurm_measuring import GPU, cluster_project, in_place_s, slurm_command, watch
from slurm_project import SlurmProject

STUDY = "matrix"
NODES = 6

#: The profile's setting.
CHECK_S = 20


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--cells", type=positive, default=200, help="cells (default: 200)")
    given = options.parse_args()
    with cluster_project(NODES) as project:
        _measure(project, given.cells)


def _measure(project: SlurmProject, count: int) -> None:
    project.write_study(
        STUDY, matrix=project.block(gpu=GPU, shards=1, repeat=list(range(1, count + 1))), prompts=2
    )
    cells = project.cells(STUDY)
    run = watch(project, slurm_command(project, CHECK_S, f"results/{STUDY}/cells.parquet"))
    last_s = max(in_place_s(paths) for paths in cells)
    own_s = [_length_s(attempt) for attempt in _attempts(cells)]
    window_s = [_window_s(paths) for paths in cells]
    latency_s = [run.known_s[paths.cell.path] - in_place_s(paths) for paths in cells]
    submitting_s = max(run.submitted_s.values()) - min(run.submitted_s.values())
    rows = [
        ["wall time, from the command to the table of all cells", f"{run.cost.wall_s:.0f} s"],
        ["cells a minute, from the command to the last record", f"{60 * count / (last_s - run.began_s):.1f}"],
        ["from the first submission to the last", f"{submitting_s:.0f} s"],
        ["measured window of a cell", f"{spread(window_s)} s"],
        ["supervisor of a cell, start to end", f"{spread(own_s, 1)} s"],
        ["from a record in place to Snakemake knowing it", f"{spread(latency_s, 1)} s"],
        ["Snakemake's processor time", f"{run.cost.cpu_s:.1f} s"],
        ["the same for each cell", f"{run.cost.cpu_s / count:.2f} s"],
        ["Snakemake's peak memory", f"{run.cost.peak_mib:.0f} MiB"],
        ["90 % of records are known within", f"{statistics.quantiles(latency_s, n=10)[-1]:.1f} s"],
    ]
    print(f"{count} cells of 1 rank, {NODES} nodes; median (least to most) of the cells.")
    print(machine("snakemake", "snakemake-executor-plugin-slurm", "torch"), end="\n\n")
    print(table(["what", "measured"], rows))


def _attempts(cells: list[CellPaths]) -> list[Attempt]:
    return [attempt for paths in cells for attempt in attempts_of(paths)]


def _length_s(attempt: Attempt) -> float:
    assert attempt.ended_at is not None
    return (attempt.ended_at - attempt.started_at).total_seconds()


def _window_s(paths: CellPaths) -> float:
    timings = read(Record, paths.record).timings
    assert timings is not None
    return timings.duration_s


if __name__ == "__main__":
    main()
