"""Time and peak memory of the plan of a study: `python benchmarks/plan.py`.

A study of LLaMA 65B on the example site's V100s: once with cells that all differ, so that each has to be
worked out, and once with 100 cells that are repeated. `--write` is what the rule `plan` runs. No model is
read, and no job is submitted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measuring import Cost, add_sizes, cost, interleave, machine, spread, table
from workflow_project import Project, copy_project

SITE = Path("profiles") / "slurm" / "site.yaml"
PARTS = ("imports", "study to cells", "forecasts", "totals and files")

#: Rounds by number of cells, where --rounds is not given.
ROUNDS = {100: 7, 1_000: 5, 10_000: 3, 100_000: 1}

#: Cells of the study, by what is in its lengths and repeats; a hundred of each.
_KINDS = ("all differ", "repeats")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(options, ROUNDS)
    options.add_argument("--parts-in", nargs=2, metavar=("ROOT", "STUDY"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.parts_in:
        print(json.dumps(_parts(Path(given.parts_in[0]), given.parts_in[1])))
        return
    rows, parts = [], []
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path(folder) / "project")
        for cells in given.cells:
            rounds = given.rounds or ROUNDS.get(cells, 3)
            rows += _costs(project, cells, rounds)
            parts.append([f"{cells:,}", *_spreads(project, cells, rounds)])
    print("`shardwatt plan`; median (least to most).")
    print(machine("pydantic", "pyarrow"), end="\n\n")
    print(table(["cells", "command", "wall s", "processor s", "peak MiB"], rows), end="\n\n")
    print("`plan --write` of cells that all differ, taken apart: s.\n")
    print(table(["cells", *PARTS], parts))


def _study(project: Project, cells: int, kind: str) -> str:
    """Write a study of so many cells, and return its name."""
    hundred = cells // 100
    lengths = [2 * number for number in range(1, hundred + 1)] if kind == "all differ" else [256]
    repeats = [1] if kind == "all differ" else list(range(1, hundred + 1))
    name = f"{kind.replace(' ', '-')}-{cells}"
    block = {
        "engine": "reference",
        "model": "llama-65b",
        "precision": "fp16",
        "gpu": "v100",
        "shards": [8, 16],
        "batch": list(range(10, 510, 10)),
        "length": lengths,
        "dataset": "demo-gsm8k",
        "repeat": repeats,
    }
    project.write_study(name, prompts=4096, matrix=[block])
    return name


def _costs(project: Project, cells: int, rounds: int) -> list[list[str]]:
    tasks: dict[str, Callable[[], Cost]] = {}
    for kind in _KINDS if cells > 100 else _KINDS[:1]:
        study = _study(project, cells, kind)
        for what, words in (("--write", ["--write"]), ("in the terminal", [])):
            tasks[f"{what}, {kind}"] = _task(project, ["plan", study, "--site", str(SITE), *words])
    return [
        [
            f"{cells:,}",
            name,
            spread([one.wall_s for one in found]),
            spread([one.cpu_s for one in found]),
            spread([one.peak_mib for one in found], 0),
        ]
        for name, found in interleave(tasks, rounds).items()
    ]


def _task(project: Project, words: list[str]) -> Callable[[], Cost]:
    return lambda: cost([sys.executable, "-m", "shardwatt", *words], project.root, project.environment)


def _spreads(project: Project, cells: int, rounds: int) -> list[str]:
    study = _study(project, cells, "all differ")
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        run = subprocess.run(
            [sys.executable, __file__, "--parts-in", str(project.root), study],
            env=project.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.append(json.loads(run.stdout))
    return [spread([one[part] for one in found]) for part in PARTS]


def _parts(root: Path, name: str) -> dict[str, float]:
    """Seconds of the steps of `shardwatt plan --write`, in a process of its own."""
    marks = [time.perf_counter()]
    from shardwatt.analysis.planfiles import write_plan
    from shardwatt.matrix import expand_blocks
    from shardwatt.plan.forecast import Forecaster
    from shardwatt.plan.table import make_plan
    from shardwatt.site import load_site
    from shardwatt.study import load_study

    marks.append(time.perf_counter())
    study, site = load_study(root, name), load_site([root / SITE])
    blocks = expand_blocks(root, name, study, site, with_models=False)
    marks.append(time.perf_counter())
    forecaster = Forecaster(root, name, study, site)
    for cell in blocks[0]:
        forecaster.cell(cell)
    marks.append(time.perf_counter())
    write_plan(make_plan(name, study, site, blocks, forecaster.cell), root / "results" / name)
    marks.append(time.perf_counter())
    return {part: marks[index + 1] - marks[index] for index, part in enumerate(PARTS)}


if __name__ == "__main__":
    main()
