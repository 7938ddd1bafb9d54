"""Guards the house: imports go down only, what every job parses stays light, files stay small."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "shardwatt"

#: Floor of each room: a package of src/shardwatt, or a module that stands by itself.
FLOORS = {
    "cli": 5,
    "__main__": 5,
    "analysis": 4,
    "checks": 4,
    "run": 3,
    "prepare": 3,
    "engine": 2,
    "power": 2,
    "data": 2,
    "plan": 1,
    "attempts": 1,
    "cellfiles": 1,
    "checkpoints": 1,
    "efficiency": 1,
    "dag": 1,
    "devices": 1,
    "executor": 1,
    "datasets": 1,
    "figurelist": 1,
    "gpulimits": 1,
    "identity": 1,
    "jobshape": 1,
    "layout": 1,
    "leftovers": 1,
    "locks": 1,
    "matrix": 1,
    "mistakes": 1,
    "models": 1,
    "modelwork": 1,
    "rankfiles": 1,
    "readings": 1,
    "recordfiles": 1,
    "records": 1,
    "resources": 1,
    "schemas": 1,
    "shapes": 1,
    "site": 1,
    "sitepeak": 1,
    "siteplan": 1,
    "sitepower": 1,
    "sitewords": 1,
    "slurm": 1,
    "slurmsite": 1,
    "slurmjob": 1,
    "study": 1,
    "tensorheaders": 1,
    "tensornames": 1,
    "weightprints": 1,
    "yamlfile": 1,
    "__init__": 0,
    "architectures": 0,
    "cell": 0,
    "datasheets": 0,
    "engines": 0,
    "errors": 0,
    "hfconfig": 0,
    "jsonfields": 0,
    "units": 0,
}

#: On these floors, modules are one room: they may import each other.
ONE_ROOM = {0, 1, 5}

MODULES = sorted(SOURCE.rglob("*.py"))
LONGEST_FILE_LINES = 400

#: What the Snakefile imports; every job and every dry run does it again.
PARSED_BY_EVERY_JOB = [
    *("shardwatt.cell", "shardwatt.dag", "shardwatt.errors", "shardwatt.figurelist", "shardwatt.jobshape"),
    *(
        "shardwatt.executor",
        "shardwatt.layout",
        "shardwatt.leftovers",
        "shardwatt.matrix",
        "shardwatt.models",
        "shardwatt.resources",
        "shardwatt.site",
    ),
    *("shardwatt.slurm", "shardwatt.study"),
]
HEAVY = {
    "torch",
    "pandas",
    "pyarrow",
    "numpy",
    "matplotlib",
    "sentencepiece",
    "submitit",
    "fairscale",
    "pynvml",
}

#: Folders whose files belong to the project.
OWN = (".ci", "benchmarks", "config", "docs", "profiles", "scripts", "src", "tests", "workflow")
PLACES = ("home", "root", "work", "workspace", "Users", "mnt/data")


def room(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imported_rooms(path: Path) -> Iterator[tuple[str, int]]:
    """Rooms that a module imports from, with the line; imports inside functions count."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: a relative import"
            modules = [node.module or ""]
            if node.module == "shardwatt":
                # This imports a room, or a name of the package itself.
                modules = [f"shardwatt.{alias.name}" for alias in node.names]
        else:
            continue
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "shardwatt":
                first = rest.partition(".")[0]
                yield (first if first in FLOORS else "__init__"), node.lineno


def test_every_module_has_a_floor() -> None:
    assert {room(path) for path in MODULES} <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_down_only(path: Path) -> None:
    own = room(path)
    for other, line in imported_rooms(path):
        is_below = FLOORS[other] < FLOORS[own]
        is_beside = FLOORS[other] == FLOORS[own] and FLOORS[own] in ONE_ROOM
        assert other == own or is_below or is_beside, (
            f"{name(path)}, line {line}: {own} is on floor {FLOORS[own]} and imports {other}, "
            f"on floor {FLOORS[other]}"
        )


def test_the_floors_test_sees_an_import_upwards(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("def f():\n    from shardwatt.engine.load import load\n    import shardwatt.cli\n")
    assert list(imported_rooms(module)) == [("engine", 2), ("cli", 3)]


@pytest.mark.parametrize("path", [path for path in MODULES if room(path) == "analysis"], ids=name)
def test_the_analysis_never_touches_torch(path: Path) -> None:
    assert not re.search(r"^\s*(?:import|from) torch\b", path.read_text(encoding="utf-8"), re.MULTILINE)


def test_what_every_job_parses_is_light() -> None:
    program = (
        "import importlib, json, sys\n"
        f"for module in {PARSED_BY_EVERY_JOB!r}: importlib.import_module(module)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in json.loads(run.stdout)}
    assert "shardwatt" in loaded
    assert loaded & HEAVY == set()


def test_the_rules_import_nothing_but_what_is_light() -> None:
    found = set()
    for path in [ROOT / "Snakefile", *sorted((ROOT / "workflow").rglob("*.smk"))]:
        found |= set(re.findall(r"^\s*(?:from|import) (shardwatt[.\w]*)", path.read_text(), re.MULTILINE))
    assert found
    assert found <= set(PARSED_BY_EVERY_JOB)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= LONGEST_FILE_LINES, f"{name(path)} has {lines} lines: which duty wants out?"


def own_files() -> list[Path]:
    files = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in OWN:
        files += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path for path in files if not {"__pycache__", "out"} & set(path.parts) and path.suffix != ".pyc"]


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    wanted = re.compile(rf"(?<![\w.~}}])/(?:{'|'.join(PLACES)})/\w")
    found = []
    for path in own_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture or another binary file
        for number, line in enumerate(text.splitlines(), start=1):
            if wanted.search(line):
                found.append(f"{path.relative_to(ROOT)}, line {number}: {line.strip()[:80]}")
    assert found == []
