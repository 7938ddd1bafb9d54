"""Time and peak memory of a dry run beside a bare Snakefile: `python benchmarks/dry_run.py`.

Bare is one rule with one output and no functions, asked for the same files, and a rule that has them
all as inputs. Both are run in turn, for the whole study and for one named cell of it; nothing is made.
With --form, the bare rule instead takes the form of shardwatt's step by step: what its outputs, log,
inputs and parameter cost in Snakemake itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measuring import (
    Cost,
    add_sizes,
    cost,
    hundreds,
    interleave,
    machine,
    matrix,
    ratios,
    spread,
    table,
)
from workflow_project import Project, copy_project

STUDY = "matrix"

#: Rounds by number of cells, where --rounds is not given: about four minutes in all.
ROUNDS = {100: 7, 1_000: 5, 10_000: 3}

BARE = """\
from pathlib import Path

{head}

rule all:
    input:
        Path("cells.txt").read_text().split(),
    output:
        "results/report.html",
    shell:
        "touch {{output}}"


rule cell:
    {body}
    shell:
        "run {{wildcards.study:q}} {{wildcards.cell:q}}"
"""

_CELL = "results/{study}/cells/{cell}"
_OTHERS = ", ".join(f'"{_CELL}/{name}.parquet"' for name in ("responses", "batches", "power"))

#: Lines of the bare rule and of its file's head, in the order in which they are added.
STEPS = {
    "bare: one output": ("", f'output: "{_CELL}/result.json"'),
    "+ three more outputs": ("", f'output: "{_CELL}/result.json", {_OTHERS}'),
    "+ a log": ("", 'log: "logs/{study}/cells/{cell}.log"'),
    "+ three inputs from a function": (
        'def files(wildcards):\n    return ["model", "tokenizer", ancient("data")]',
        "input: files",
    ),
    "+ a parameter from a function": (
        "def identity(wildcards):\n    return wildcards.study",
        "params: identity=identity",
    ),
    "+ an environment": ("", 'conda: "environment.yaml"'),
    "+ no garbage collection": ("import gc\ngc.disable()", ""),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_sizes(options, ROUNDS)
    options.add_argument(
        "--form", type=hundreds, metavar="CELLS", help="show what the rule's form costs at so many cells"
    )
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        project = copy_project(Path(folder) / "project")
        for shards in ("1", "2"):
            made = project.shardwatt("make-model", "tiny", shards)
            assert made.returncode == 0, made.stderr
        if given.form:
            form(project, given.form, given.rounds or 3)
            return
        rows = []
        for cells in given.cells:
            rows += whole_and_named(project, cells, given.rounds or ROUNDS.get(cells, 3))
    print("Dry runs; median (least to most), ratio of the two in the same round.")
    print(machine("snakemake", "pydantic"), end="\n\n")
    headings = ["cells", "target", "bare s", "shardwatt s", "ratio", "bare MiB", "shardwatt MiB", "ratio"]
    print(table(headings, rows))


def whole_and_named(project: Project, cells: int, rounds: int) -> list[list[str]]:
    """Rows of the table for a study of so many cells: the whole of it, and one named cell."""
    targets = _prepare(project, cells)
    bare = _bare(project.root.parent / "bare", targets, [*STEPS][:1])
    named = targets[len(targets) // 2]
    rows = []
    costs = interleave(
        {
            "bare, whole": _dry_run(bare),
            "shardwatt, whole": _dry_run(project, f"results/{STUDY}/report.html"),
            "bare, one": _dry_run(bare, named),
            "shardwatt, one": _dry_run(project, named),
        },
        rounds,
    )
    for what, words in (("whole", "whole study"), ("one", "one cell")):
        beside, own = costs[f"bare, {what}"], costs[f"shardwatt, {what}"]
        row = [f"{cells:,}", words]
        for quantity, digits in (("wall_s", 2), ("peak_mib", 0)):
            pair = [[getattr(one, quantity) for one in each] for each in (beside, own)]
            row += [spread(pair[0], digits), spread(pair[1], digits), spread(ratios(pair[1], pair[0]))]
        rows.append(row)
    return rows


def form(project: Project, cells: int, rounds: int) -> None:
    """Print what a rule with shardwatt's outputs, log, inputs and parameter costs, step by step."""
    targets = _prepare(project, cells)
    tasks = {}
    for index, step in enumerate(STEPS, start=1):
        tasks[step] = _dry_run(_bare(project.root.parent / f"bare-{index}", targets, [*STEPS][:index]))
    tasks["shardwatt"] = _dry_run(project, f"results/{STUDY}/report.html")
    costs = interleave(tasks, rounds)
    first = [one.cpu_s for one in costs[next(iter(STEPS))]]
    rows = []
    for name, each in costs.items():
        cpu_s = [one.cpu_s for one in each]
        rows.append(
            [name, spread(cpu_s), spread(ratios(cpu_s, first)), spread([one.peak_mib for one in each], 0)]
        )
    print(f"Dry runs of {cells:,} cells, {rounds} rounds; median (least to most).")
    print(machine("snakemake"), end="\n\n")
    print(table(["rule", "processor s", "ratio to bare", "peak MiB"], rows))


def _prepare(project: Project, cells: int) -> list[str]:
    project.write_study(STUDY, matrix=project.block(**matrix(cells)))
    targets = [paths.target for paths in project.cells(STUDY)]
    assert len(targets) == cells
    return targets


def _bare(folder: Path, targets: list[str], steps: list[str]) -> Path:
    """A folder with the bare Snakefile after some steps, and the files that it asks for."""
    folder.mkdir(exist_ok=True)
    (folder / "cells.txt").write_text("\n".join(targets))
    for name in ("model", "tokenizer", "data", "environment.yaml"):
        (folder / name).write_text("dependencies: []\n")
    heads = [STEPS[step][0] for step in steps]
    bodies = {STEPS[step][1].split(":")[0]: STEPS[step][1] for step in steps if STEPS[step][1]}
    order = [bodies[key] for key in ("input", "output", "log", "conda", "params") if key in bodies]
    text = BARE.format(head="\n\n".join(filter(None, heads)), body="\n    ".join(order))
    (folder / "Snakefile").write_text(text)
    return folder


def _dry_run(place: Project | Path, *targets: str) -> Callable[[], Cost]:
    if isinstance(place, Project):
        command = place.snakemake_command("-n", *targets)
        return lambda: cost(command, place.root, place.environment)
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "-n", *targets]
    return lambda: cost(command, place)


if __name__ == "__main__":
    main()
