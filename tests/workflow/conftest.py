"""Projects for the tests to run: new, and finished; what takes long is made once for all workers of a run."""

from __future__ import annotations

import compileall
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shardwatt.prepare import make_model
from shardwatt.site import load_site
from workflow_project import Project, copy_project

MadeOnce = Callable[[str, Callable[[Path], None]], Path]
NewProject = Callable[[Path], Project]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """What makes a folder by its name, unless a worker of this run has: the others wait until it is whole."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def made(name: str, make: Callable[[Path], None]) -> Path:
        folder, whole = shared / name, shared / f"{name}.whole"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                whole.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def blank(tmp_path_factory: pytest.TempPathFactory, made_once: MadeOnce) -> Project:
    """A project in which nothing has been run.

    Its code is compiled, and every copy uses it: otherwise each would compile its own, and where
    PYTHONDONTWRITEBYTECODE is set each process of it.
    """
    project = copy_project(tmp_path_factory.mktemp("blank") / "a project")

    def compiled(folder: Path) -> None:
        shutil.copytree(project.root / "src", folder)
        assert compileall.compile_dir(folder, quiet=1)

    code = made_once("code", compiled)
    shutil.rmtree(project.root / "src")
    (project.root / "src").symlink_to(code)
    project.environment["PYTHONPATH"] = str(code)
    return project


@pytest.fixture(scope="session")
def new_project(blank: Project) -> NewProject:
    """What makes a project in a folder, with nothing in it but rules, code, recipe and study."""
    return lambda root: _copy(blank, root)


@pytest.fixture(scope="session")
def made_models(tmp_path_factory: pytest.TempPathFactory, blank: Project) -> Path:
    """The tiny model, made once, in 1 and 2 shards."""
    models = tmp_path_factory.mktemp("made") / "models"
    site = load_site([blank.root / "profiles" / "local" / "site.yaml"]).model_copy(update={"models": models})
    for shards in (1, 2):
        make_model(blank.root, site, "tiny", shards)
    return models


@pytest.fixture
def project(tmp_path: Path, new_project: NewProject, made_models: Path) -> Project:
    """A project in a folder with spaces in its name, with the tiny model made and nothing run yet."""
    project = new_project(tmp_path / "a project")
    shutil.copytree(made_models, project.root / "models")
    return project


@pytest.fixture(scope="session")
def finished_project(made_once: MadeOnce, new_project: NewProject, blank: Project) -> Project:
    """A project whose tiny study has been run to its report; tests copy it before they change it."""

    def run_through(root: Path) -> None:
        run = new_project(root).snakemake("results/tiny/report.html", timeout_s=600)
        assert run.returncode == 0, run.stdout

    return Project(made_once("finished project", run_through), blank.environment)


@pytest.fixture
def finished(tmp_path: Path, finished_project: Project) -> Project:
    """A copy of the finished project, times of files kept, for a test to change."""
    return _copy(finished_project, tmp_path / "a project")


def _copy(project: Project, root: Path) -> Project:
    shutil.copytree(project.root, root, symlinks=True)
    # Cells of one machine wait for each other there; here another worker's are not to be waited for.
    own = tempfile.mkdtemp(dir=root.parent)
    return Project(root, {**project.environment, "TMPDIR": own})
