"""A small project of its own for a test: a copy of the rules with a tiny model and study."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from shardwatt.cell import Cell
from shardwatt.layout import CellPaths
from shardwatt.matrix import expand
from shardwatt.site import load_site
from shardwatt.study import load_study

ROOT = Path(__file__).parents[1]

RECIPE = {
    "about": "a few thousand random weights for tests",
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "multiple_of": 16,
    "context": 512,
    "vocab_size": 512,
    "mean_response_tokens": 8,
    "shards": [1, 2],
}
STUDY = {
    "title": "Tests: a tiny study",
    "prompts": 6,
    "warmup_tokens": 1,
    "matrix": [
        {
            "model": "tiny",
            "precision": "fp32",
            "gpu": "cpu",
            "shards": [1, 2],
            "batch": 2,
            "length": 8,
            "dataset": "demo-gsm8k",
        }
    ],
}


@dataclass
class Project:
    """A copy of the project in a folder of its own, and ways to run it as a user would."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def write_study(self, name: str = "tiny", **changes: object) -> None:
        """Write a study: the tiny one with some of its keys replaced."""
        path = self.root / "config" / "studies" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**STUDY, **changes}), encoding="utf-8")

    def block(self, **changes: object) -> list[dict[str, object]]:
        """A matrix of one block: the tiny study's with some axes replaced."""
        return [{**STUDY["matrix"][0], **changes}]  # type: ignore[index]

    def snakemake(self, *words: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run Snakemake with the local profile; stdout and stderr together in `stdout`."""
        return subprocess.run(
            self.snakemake_command(*words),
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )

    def snakemake_command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "snakemake", "--profile", "profiles/local", *words]

    def shardwatt(self, *words: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the command `shardwatt`."""
        return subprocess.run(
            [sys.executable, "-m", "shardwatt", *words],
            cwd=self.root,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def cells(self, name: str = "tiny") -> list[CellPaths]:
        """Where the cells of a study lie."""
        site = load_site([self.root / "profiles" / "local" / "site.yaml"])
        cells: tuple[Cell, ...] = expand(self.root, name, load_study(self.root, name), site)
        return [CellPaths(self.root, name, cell) for cell in cells]

    def states(self, name: str = "tiny") -> dict[str, tuple[str, str | None]]:
        """Outcome and reason of each cell, by target, as `shardwatt cells` tells them."""
        run = self.shardwatt("cells", name, "--format", "json")
        assert run.returncode == 0, run.stderr
        return {cell["target"]: (cell["outcome"], cell["reason"]) for cell in json.loads(run.stdout)}


def planned_jobs(output: str) -> dict[str, int]:
    """Jobs by rule in what `snakemake -n` printed; empty where there is nothing to do."""
    lines = output.splitlines()
    if "job" not in {line.split()[0] for line in lines if line.strip()}:
        return {}
    first = next(i for i, line in enumerate(lines) if line.split()[:2] == ["job", "count"]) + 2
    jobs = {}
    for line in lines[first:]:
        words = line.split()
        if len(words) != 2 or words[0] == "total":
            break
        jobs[words[0]] = int(words[1])
    return jobs


def copy_project(root: Path) -> Project:
    root.mkdir(parents=True)
    for name in ("workflow", "config", "profiles", "src"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", root)
    recipe = root / "config" / "models" / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    # Older than the models that tests copy from one project to the next.
    os.utime(recipe, (0, 0))
    project = Project(root)
    project.environment["SHARDWATT_MODELS"] = "models"
    project.environment.pop("SHARDWATT_ROOT", None)
    project.environment.pop("SHARDWATT_SITE", None)
    # Whatever machine this is: processors are estimated, which takes no idle baselines.
    project.environment["SHARDWATT_POWERCAP"] = str(root / "no-powercap")
    project.write_study()
    return project
