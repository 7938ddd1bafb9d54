"""Guards what is installed and how: pins that agree, a version said once, one clear message in set-up."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import shardwatt

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
RUN = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
HF = [Requirement(line) for line in PROJECT["project"]["optional-dependencies"]["hf"]]
DEV = [Requirement(line) for line in PROJECT["dependency-groups"]["dev"]]

#: Packages of torch's own CUDA builds, which torch pins itself.
TORCHS_OWN = re.compile(r"nvidia-(?!ml-py)|cuda-|triton")


def pins(lines: list[str]) -> dict[str, str]:
    """Versions by package; every line pins one exactly."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)", line)
        assert match, f"'{line}' pins no version"
        found[str(canonicalize_name(match[1]))] = match[2]
    return found


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return pins([line for line in lines if not line.startswith("#")])


def needed(requirements: list[Requirement]) -> set[str]:
    """Names of all packages that requirements bring on this machine, their own requirements included."""
    names: set[str] = set()
    todo = [(requirement, frozenset(requirement.extras)) for requirement in requirements]
    seen = set()
    while todo:
        requirement, extras = todo.pop()
        name = str(canonicalize_name(requirement.name))
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        names.add(name)
        for line in importlib.metadata.requires(name) or []:
            child = Requirement(line)
            applies = child.marker is None or any(
                child.marker.evaluate({"extra": extra}) for extra in extras | {""}
            )
            if applies:
                todo.append((child, frozenset(child.extras)))
    return names


@pytest.mark.parametrize("requirement", [*RUN, *HF, *DEV], ids=str)
def test_every_requirement_is_pinned_within_its_range(requirement: Requirement) -> None:
    version = constraints()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_whatever_the_requirements_bring_is_pinned_too() -> None:
    unpinned = needed([*RUN, *HF, *DEV]) - set(constraints())
    assert {name for name in unpinned if not TORCHS_OWN.match(name)} == set()


def test_nothing_is_pinned_that_no_requirement_brings() -> None:
    # pip, setuptools and wheel install and build the others.
    stray = set(constraints()) - needed([*RUN, *HF, *DEV]) - {"pip", "setuptools", "wheel"}
    assert stray == set()


def test_every_set_up_installs_the_engine_hf_with_the_rest() -> None:
    assert [requirement.name for requirement in HF] == ["transformers"]
    for name in ("create-env.sh", "renew-constraints.sh"):
        assert "'.[hf]'" in (ROOT / "scripts" / name).read_text(encoding="utf-8"), name


def test_what_builds_packages_is_pinned() -> None:
    assert {"pip", "setuptools", "wheel"} <= set(constraints())


def test_torch_is_pinned_where_the_demo_was_tried_and_its_range_is_wide() -> None:
    assert constraints()["torch"] == "2.13.0"
    torch = next(requirement for requirement in RUN if requirement.name == "torch")
    assert torch.specifier.contains("2.5.0")
    assert torch.specifier.contains("2.99")


def test_the_conda_environment_pins_the_same_versions() -> None:
    content = yaml.safe_load((ROOT / "workflow" / "envs" / "shardwatt.yaml").read_text(encoding="utf-8"))
    *tools, from_pip = content["dependencies"]
    found = pins(from_pip["pip"])
    everywhere = constraints()
    assert set(found) == {canonicalize_name(requirement.name) for requirement in [*RUN, *HF]}
    assert found == {name: everywhere[name] for name in found}
    assert f"pip={everywhere['pip']}" in tools
    python = next(tool for tool in tools if tool.startswith("python="))
    assert python.removeprefix("python=") in ("3.11", "3.12")


def test_every_rule_uses_an_environment_that_is_there() -> None:
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for env in re.findall(r'conda:\s+"([^"]+)"', path.read_text(encoding="utf-8")):
            assert (path.parent / env).is_file(), f"{path.name}: {env}"


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == shardwatt.__version__
    assert f"## [{shardwatt.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_citation_names_the_study_that_is_reproduced() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["references"][0]
    assert paper["identifiers"][0]["value"] == "arXiv:2310.03003"
    assert len(paper["authors"]) == 10
    assert citation["license"] == PROJECT["project"]["license"]


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_files_beside_the_modules_are_installed_with_them() -> None:
    source = ROOT / "src" / "shardwatt"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["shardwatt"]
    for path in source.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = str(path.relative_to(source))
            assert any(fnmatch(name, pattern) for pattern in patterns), name


def outside_make(**changes: str) -> dict[str, str]:
    """The environment without what a make above, such as `make test`, has put into it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    return {**inherited, "LC_ALL": "C", **changes}


def test_help_lists_every_target() -> None:
    run = subprocess.run(
        ["make", "help"], cwd=ROOT, env=outside_make(), capture_output=True, text=True, check=True
    )
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    for target in phony[1].split():
        assert re.search(rf"^  make {target} +\w", run.stdout, re.MULTILINE), target
    assert "TORCH_INDEX=" in run.stdout


def test_continuous_integration_runs_make_test_and_nothing_else() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert lines[-1] == "exec make test"
    assert all(line.startswith(("set ", "cd ", "export SHARDWATT_REQUIRE_SLURM=1")) for line in lines[:-1])


@pytest.fixture
def set_up(tmp_path: Path) -> Path:
    """What make needs to set an environment up, in a folder with a space in its name."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    return folder


def interpreter(folder: Path, body: str) -> Path:
    """An executable that answers what the set-up asks a Python, as a machine's may."""
    path = folder / "its python"
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
    return path


def refusal(folder: Path, python: str, path: str | None = None) -> str:
    run = subprocess.run(
        [shutil.which("make") or "make", "env"],
        cwd=folder,
        env=outside_make(PYTHON=python, PATH=path or os.environ["PATH"]),
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert not (folder / ".venv").exists()
    message, make, *rest = run.stderr.splitlines()
    assert make.startswith("make: *** [Makefile:")
    assert rest == []
    return message


def test_without_python_the_set_up_says_so(set_up: Path) -> None:
    assert refusal(set_up, "/nowhere/python3") == (
        "create-env: /nowhere/python3 is not there; "
        "install Python 3.11 or newer, or pass PYTHON=/path/to/python3"
    )


def test_an_old_python_is_refused_with_its_version(set_up: Path) -> None:
    old = interpreter(set_up, '[[ $1 = --version ]] && echo "Python 3.9.2"; exit 1')
    assert refusal(set_up, str(old)) == (
        f"create-env: {old} is Python 3.9.2; expected Python 3.11 or newer; pass PYTHON=/path/to/python3.11"
    )


def test_a_python_without_ensurepip_says_what_to_install(set_up: Path, tmp_path: Path) -> None:
    """As Debian's is before python3-venv is installed, on a machine whose apt-get cannot be used."""
    bare = interpreter(
        set_up,
        'case "$*" in *ensurepip*) exit 1 ;; *"print("*) echo python3.11-venv ;; esac',
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "dirname"):
        (programs / name).symlink_to(shutil.which(name) or name)
    assert refusal(set_up, str(bare), str(programs)) == (
        f"create-env: {bare} cannot make virtual environments: its module ensurepip is missing; "
        "install it (Debian, Ubuntu: sudo apt-get install python3.11-venv), or pass PYTHON=/path/to/python3"
    )
