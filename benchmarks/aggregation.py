"""Time and peak memory from finished cells to the report: `python benchmarks/aggregation.py`.

Writes made-up cells through the project's own writers (one in 50 failed, one in 50 did not fit), then
runs the commands that Snakemake runs, and takes `aggregate` apart. The files that were just written are
in the page cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from measuring import Cost, cost, hundreds, interleave, machine, matrix, positive, spread, table
from shardwatt.figurelist import figures
from shardwatt.identity import identities
from shardwatt.matrix import expand
from shardwatt.site import load_site
from shardwatt.study import load_study
from workflow_project import Project, copy_project

STUDY = "synthetic"
PARTS = ("survey", "aggregate", "write")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--cells", type=hundreds, default=10_000, help="cells (default: 10000)")
    options.add_argument("--rounds", type=positive, default=3, help="times each is run (default: 3)")
    options.add_argument("--parts-in", type=Path, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.parts_in:
        print(json.dumps(_parts(given.parts_in)))
        return
    with tempfile.TemporaryDirectory() as folder:
        _measure(copy_project(Path(folder) / "project"), given.cells, given.rounds)


def _measure(project: Project, cells: int, rounds: int) -> None:
    project.write_study(STUDY, prompts=20, matrix=project.block(**matrix(cells)))
    begin_s = time.perf_counter()
    # In processes of their own: a child's peak memory is never less than its parent's.
    context = multiprocessing.get_context("spawn")
    workers = context.cpu_count()
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(_write, repeat(project), range(workers), repeat(workers)))
    print(f"{cells} cells written in {time.perf_counter() - begin_s:.0f} s", file=sys.stderr)

    figure = figures(paths.cell for paths in project.cells(STUDY))[0].name
    commands = {
        "`cells` (survey alone)": ("cells", STUDY, "--format", "targets"),
        "`aggregate`": ("aggregate", STUDY),
        "`tables`": ("tables", STUDY),
        "`figure` (one)": ("figure", STUDY, figure),
        "`report`": ("report", STUDY),
    }

    def task(words: tuple[str, ...]) -> Callable[[], Cost]:
        return lambda: cost([sys.executable, "-m", "shardwatt", *words], project.root, project.environment)

    project.shardwatt("aggregate", STUDY, timeout_s=600)  # what the others read
    costs = interleave({name: task(words) for name, words in commands.items()}, rounds)
    rows = [
        [
            name,
            spread([one.wall_s for one in costs[name]]),
            spread([one.cpu_s for one in costs[name]]),
            spread([one.peak_mib for one in costs[name]], 0),
        ]
        for name in commands
    ]
    for part, seconds in _parts_of_aggregate(project, rounds).items():
        rows.append([f"of `aggregate`: {part}", spread(seconds), "", ""])
    print(f"{cells:,} cells, {rounds} rounds; median (least to most).")
    print(machine("pyarrow", "pandas", "pydantic"), end="\n\n")
    print(table(["command", "wall s", "processor s", "peak MiB"], rows))


def _write(project: Project, first: int, step: int) -> None:
    """Write every STEP-th cell of the study, from FIRST."""
    from synthetic_cells import Numbers, write_does_not_fit, write_failed, write_ok

    study = load_study(project.root, STUDY)
    cells = [paths.cell for paths in project.cells(STUDY)]
    site = load_site([project.root / "profiles" / "local" / "site.yaml"])
    known = identities(project.root, site, cells)
    for index in range(first, len(cells), step):
        cell = cells[index]
        numbers = Numbers(
            batch_s=1 + index % 7,
            drift=0.1,
            model_fingerprint=known.model_fingerprints[cell.model, cell.shards],
            dataset_sha256=known.dataset_hashes[cell.dataset],
        )
        if index % 50 == 7:
            write_failed(project.root, cell, study.constants)
        elif index % 50 == 8:
            write_does_not_fit(project.root, cell, numbers, study.constants)
        else:
            write_ok(project.root, cell, numbers, study.constants)


def _parts_of_aggregate(project: Project, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for _ in range(rounds):
        run = subprocess.run(
            [sys.executable, __file__, "--parts-in", str(project.root)],
            env=project.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        for part, value in json.loads(run.stdout).items():
            seconds[part].append(value)
    return seconds


def _parts(root: Path) -> dict[str, float]:
    """Seconds of the steps of `shardwatt aggregate`, in a process of its own."""
    from shardwatt.analysis.aggregate import aggregate, write_cells
    from shardwatt.analysis.survey import survey

    study = load_study(root, STUDY)
    site = load_site([root / "profiles" / "local" / "site.yaml"])
    cells = expand(root, STUDY, study, site)
    marks = [time.perf_counter()]
    states = survey(root, STUDY, cells, study.constants)
    marks.append(time.perf_counter())
    frame = aggregate(states)
    marks.append(time.perf_counter())
    write_cells(frame, root / "results" / STUDY)
    marks.append(time.perf_counter())
    return {part: marks[index + 1] - marks[index] for index, part in enumerate(PARTS)}


if __name__ == "__main__":
    main()
