"""Projects for the tests to run: new, and finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from workflow_project import Project, copy_project


@pytest.fixture(scope="session")
def made_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, made once, in 1 and 2 shards."""
    project = copy_project(tmp_path_factory.mktemp("models") / "project")
    for shards in ("1", "2"):
        run = project.shardwatt("make-model", "tiny", shards)
        assert run.returncode == 0, run.stderr
    return project.root / "models"


@pytest.fixture
def project(tmp_path: Path, made_models: Path) -> Project:
    """A project in a folder with spaces in its name, with the tiny model made and nothing run yet."""
    project = copy_project(tmp_path / "a project")
    shutil.copytree(made_models, project.root / "models")
    return project


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project whose tiny study has been run to its report; tests copy it before they change it."""
    project = copy_project(tmp_path_factory.mktemp("finished") / "a project")
    run = project.snakemake("results/tiny/report.html")
    assert run.returncode == 0, run.stdout
    return project


@pytest.fixture
def finished(tmp_path: Path, finished_project: Project) -> Project:
    """A copy of the finished project, times of files kept, for a test to change."""
    root = tmp_path / "a project"
    shutil.copytree(finished_project.root, root, symlinks=True)
    return Project(root, dict(finished_project.environment))
