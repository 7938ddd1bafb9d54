"""What a cell takes outside its measured window: `python benchmarks/cell_overhead.py`.

Runs a tiny cell again and again, with 1 and with 2 shards in turn, by the command that the rule calls,
and takes its time apart by its record. A cell with a real model differs in loading and warm-up.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measuring import Cost, cost, interleave, machine, positive, spread, table
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Record, Timings
from workflow_project import Project, copy_project

STUDY = "tiny"

#: Parts of a cell's wall time, in the order in which they pass.
PARTS: dict[str, Callable[[float, Timings], float]] = {
    "wall time of `run-cell`": lambda wall_s, _: wall_s,
    "the measured window": lambda _, timings: timings.duration_s,
    "outside the window": lambda wall_s, timings: wall_s - timings.duration_s,
    "of it: rendezvous (starting ranks, importing torch)": lambda _, timings: timings.rendezvous_s,
    "of it: loading the model": lambda _, timings: timings.load_s,
    "of it: warm-up": lambda _, timings: timings.warmup_s,
    "of it: rest of the job (prompts, texts, end of ranks)": lambda _, timings: (
        timings.job_duration_s - timings.duration_s - timings.rendezvous_s - timings.load_s - timings.warmup_s
    ),
    "of it: before and after the job (checks, meters, record)": lambda wall_s, timings: (
        wall_s - timings.job_duration_s
    ),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=positive, default=9, help="times each is run (default: 9)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(copy_project(Path(folder) / "project"), given.rounds)


def _measure(project: Project, rounds: int) -> None:
    for shards in ("1", "2"):
        made = project.shardwatt("make-model", "tiny", shards)
        assert made.returncode == 0, made.stderr
    cells = project.cells(STUDY)
    timings: dict[int, list[Timings]] = {paths.cell.shards: [] for paths in cells}
    costs = interleave(
        {_name(paths): _cell(project, paths, timings[paths.cell.shards]) for paths in cells}
        | {f"Snakemake, {_name(paths)}": _job(project, paths) for paths in cells},
        rounds,
    )
    rows = []
    for part, seconds_of in PARTS.items():
        row = [part]
        for paths in cells:
            pairs = zip(costs[_name(paths)], timings[paths.cell.shards], strict=True)
            row.append(spread([seconds_of(one.wall_s, found) for one, found in pairs]))
        rows.append(row)
    whole = [spread([one.wall_s for one in costs[f"Snakemake, {_name(paths)}"]]) for paths in cells]
    rows.append(["the same cell through Snakemake, wall time", *whole])
    print(f"{rounds} rounds; seconds, median (least to most).")
    print(machine("snakemake", "torch"), end="\n\n")
    print(table(["part", *map(_name, cells)], rows))


def _name(paths: CellPaths) -> str:
    return f"{paths.cell.shards} shard{'s' if paths.cell.shards > 1 else ''}"


def _cell(project: Project, paths: CellPaths, timings: list[Timings]) -> Callable[[], Cost]:
    command = [sys.executable, "-m", "shardwatt", "run-cell", paths.study, paths.cell.path]

    def run() -> Cost:
        # A cell that has a valid record is left as it is.
        shutil.rmtree(paths.results, ignore_errors=True)
        took = cost(command, project.root, project.environment)
        found = read(Record, paths.record).timings
        assert found is not None
        timings.append(found)
        return took

    return run


def _job(project: Project, paths: CellPaths) -> Callable[[], Cost]:
    command = project.snakemake_command(paths.target)

    def run() -> Cost:
        shutil.rmtree(paths.results, ignore_errors=True)
        return cost(command, project.root, project.environment)

    return run


if __name__ == "__main__":
    main()
