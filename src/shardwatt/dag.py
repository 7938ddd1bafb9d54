"""What the rules ask: a study's cells, their inputs and identities. Cheap, for every job parses this."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from shardwatt import __version__
from shardwatt.cell import Cell
from shardwatt.datasets import Catalogue, load_catalogue
from shardwatt.engines import ENGINES
from shardwatt.errors import SiteError, StudyError, suggestion
from shardwatt.figurelist import figures
from shardwatt.layout import cell_target
from shardwatt.matrix import expand
from shardwatt.models import (
    MADE_FROM_FILE,
    TRAINING_DATASETS,
    find_architecture,
    find_checkpoint,
    fingerprint,
    load_recipe,
    made_checkpoint,
    made_from,
    recipe_file,
)
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.leftout import LeftOut, left_out
from shardwatt.plan.rehearsal import asked_of, played
from shardwatt.resources import Budget, budget, cell_resources, describe_job
from shardwatt.site import Site, load_site
from shardwatt.study import Study, load_study


def command_environment(root: Path, site_files: Sequence[str]) -> dict[str, str]:
    """Environment in which rules call `python -m shardwatt`.

    The interpreter that runs Snakemake comes first, unless a rule's own environment is put before it;
    --root and --site default to this project and these site files.
    """

    def first(entry: Path, variable: str) -> str:
        return os.pathsep.join(filter(None, (str(entry), os.environ.get(variable))))

    # A Slurm job step removes Slurm's own variables; jobs take the configuration from this one.
    slurm_conf = os.environ.get("SLURM_CONF") or os.environ.get("SHARDWATT_SLURM_CONF")
    return {
        **({"SHARDWATT_SLURM_CONF": slurm_conf} if slurm_conf else {}),
        "PATH": first(Path(sys.executable).parent, "PATH"),
        "PYTHONPATH": first(root / "src", "PYTHONPATH"),
        "SHARDWATT_ROOT": str(root),
        "SHARDWATT_SITE": os.pathsep.join(str(path) for path in site_files),
    }


class Planner:
    """Answers the rules' questions; reads each file once.

    Args:
        root: the project's root, where config/ lies.
        base: the folder in which Snakemake runs.
        site_files: the site's files, as given to Snakemake by --configfile or the profile.
    """

    def __init__(self, root: Path, base: Path, site_files: Sequence[str]) -> None:
        self.root = root
        self.base = base
        self._site_files = [Path(path) for path in site_files]
        #: Studies whose cells were asked for in this run.
        self.studies_asked: set[str] = set()
        self.study = lru_cache(None)(self._study)
        self.cells = lru_cache(None)(self._cells)
        self.figure_names = lru_cache(None)(self._figure_names)
        self._is_made = lru_cache(None)(lambda model: recipe_file(root, model).is_file())
        self._model_inputs = lru_cache(None)(self._find_model_inputs)
        self._model_identity = lru_cache(None)(self._find_model_identity)
        self._dataset_input = lru_cache(None)(self._find_dataset_input)
        self._dataset_identity = lru_cache(None)(self._find_dataset_identity)
        self._cell_resources = lru_cache(None)(self._find_cell_resources)
        self._constants_hash = lru_cache(None)(lambda study: self.study(study).constants.hash)
        self._forecaster = lru_cache(None)(self._find_forecaster)

    @cached_property
    def site(self) -> Site:
        """The site; its folders relative where they can be, so that their spelling reruns nothing."""
        site = load_site(self._site_files)
        folders = {name: Path(self._shown(getattr(site, name))) for name in ("models", "data")}
        return site.model_copy(update=folders)

    @cached_property
    def catalogue(self) -> Catalogue:
        return load_catalogue(self.root)

    def recipes(self) -> list[str]:
        """Names of the models that can be made."""
        return sorted(path.stem for path in recipe_file(self.root, "*").parent.glob("*.yaml"))

    def pinned_files(self) -> list[str]:
        """Names of the files that can be fetched into the data folder."""
        entries = [*self.catalogue.datasets.values(), *self.catalogue.tokenizers.values()]
        return sorted({entry.file for entry in entries if entry.folder is None})

    def targets(self, study: str) -> list[str]:
        """The records of a study's cells, less those that it leaves out because they do not fit.

        Raises:
            StudyError: there is no such study, or its file has a mistake.
        """
        self.studies_asked.add(study)
        cells = self.cells(study).items()
        return [cell_target(study, path) for path, cell in cells if not self._left_out(study, cell)]

    def left_out(self, study: str) -> str:
        """Which cells a study leaves out because they do not fit: their number, and first 16 hex digits of a
        SHA-256 over their paths; empty without any."""
        paths = [path for path, cell in self.cells(study).items() if self._left_out(study, cell)]
        return f"{len(paths)} {_digest(paths)}" if paths else ""

    def forecast(self, study: str, path: str) -> CellForecast:
        """What a cell will take by the plan.

        Raises:
            StudyError: the study has no such cell.
        """
        return self._forecaster(study).cell(self.cell(study, path))

    def plan_identity(self, study: str) -> str:
        """What a study's plan is made from, as first 16 hex digits of a SHA-256; no checkpoint is.

        Raises:
            StudyError: there is no such study, or its file has a mistake.
        """
        cells = expand(self.root, study, self.study(study), self.site, with_models=False)
        models, datasets = ({getattr(cell, axis) for cell in cells} for axis in ("model", "dataset"))
        return _digest(
            (
                __version__,
                self.study(study).model_dump_json(),
                self.site.model_dump_json(exclude={"models", "data"}),
                *(repr(find_architecture(self.root, self.site.models, name)) for name in sorted(models)),
                *(self.catalogue.dataset(name).model_dump_json() for name in sorted(datasets)),
            )
        )

    def summary_is_stale(self, study: str, summary: str) -> bool:
        """Whether a summary stands while a cell of its study is missing.

        Snakemake takes an existing summary as proof that what it was made from is not needed.
        """
        if not (self.base / summary).exists():
            return False
        return any(not (self.base / target).exists() for target in self.targets(study))

    def cell(self, study: str, path: str) -> Cell:
        """A cell of a study by its path.

        Raises:
            StudyError: the study has no such cell.
        """
        self.studies_asked.add(study)
        try:
            return self.cells(study)[path]
        except KeyError:
            raise StudyError(
                f"study '{study}' has no cell {path}; `shardwatt cells {study}` lists those that it has"
            ) from None

    def made_inputs(self, study: str, path: str) -> list[str]:
        """What a cell reads that this workflow makes from a recipe: its model, or nothing.

        Raises:
            StudyError: the study has no such cell, or leaves it out because it does not fit.
        """
        cell = self._cell_to_run(study, path)
        if _is_simulated(cell) or not self._is_made(cell.model):
            return []
        return self._model_inputs(cell.model, cell.shards)

    def found_inputs(self, study: str, path: str) -> list[str]:
        """What a cell reads that is found or fetched: its data set, and a model without a recipe."""
        cell = self.cell(study, path)
        if _is_simulated(cell):
            return []
        found = [] if self._is_made(cell.model) else self._model_inputs(cell.model, cell.shards)
        return [*found, self._dataset_input(cell.dataset)]

    def cell_identity(self, study: str, path: str) -> str:
        """Constants, model and data set of a cell, of a simulated one its forecast.

        What of these changes makes its record outdated.
        """
        cell = self.cell(study, path)
        if _is_simulated(cell):
            return f"{self._constants_hash(study)} {played(self._forecaster(study).cell(cell))}"
        return " ".join(
            (
                self._constants_hash(study),
                self._model_identity(cell.model, cell.shards),
                self._dataset_identity(cell.dataset),
            )
        )

    def _cell_to_run(self, study: str, path: str) -> Cell:
        """A cell that is asked for.

        Raises:
            StudyError: the study has no such cell, or leaves it out because it does not fit.
        """
        cell = self.cell(study, path)
        unfit = self._left_out(study, cell)
        if unfit is not None:
            raise StudyError(
                f"{cell_target(study, path)}: does not fit: {unfit}; ask for a cell of more shards, a "
                "smaller batch or length, or say `unfit: run` in the study, which runs it all the same"
            )
        return cell

    def cell_resource(self, study: str, path: str, attempt: int, name: str) -> int | str | None:
        """One of the resources of a cell's job, or None where it has none of this name."""
        return self._cell_resources(study, path, attempt).get(name)

    def job_line(self, study: str, path: str, attempt: int) -> str:
        """A cell's job as the plan shows it."""
        cell = self.cell(study, path)
        return describe_job(self.site, study, cell, attempt, self._asked_of(study, cell))

    def budget(self, cells: Iterable[tuple[str, str]], limit: float | None) -> Budget:
        """What a run may take.

        Args:
            cells: study and path of each cell that is to run.
            limit: most GPU hours that are agreed; None: no limit.
        """
        named = [(study, self.cell(study, path)) for study, path in cells]
        return budget(self.site, named, limit, self._asked_of)

    def check_executor(self, is_local: bool) -> None:
        """Refuse to run cells in the wrong place.

        Args:
            is_local: Snakemake runs jobs on this machine, not through Slurm.

        Raises:
            SiteError: the site's launcher belongs to the other place.
        """
        if self.site.launcher == "local" and not is_local:
            raise SiteError(
                f"launcher: site '{self.site.name}' has `local`, and jobs go to Slurm; expected a site with "
                "launcher `slurm`: edit profiles/slurm/site.yaml, or use --profile profiles/local"
            )
        if not is_local and any(map(str.isspace, sys.executable)):
            raise SiteError(
                f"{sys.executable}: snakemake-executor-plugin-slurm starts jobs with this path unquoted; "
                "expected one without spaces: put the project, or its .venv, into another folder"
            )
        if self.site.launcher == "slurm" and is_local and "SLURM_JOB_ID" not in os.environ:
            raise SiteError(
                f"launcher: site '{self.site.name}' has `slurm`, and jobs would run on this machine; "
                "use --profile profiles/slurm"
            )

    def _find_cell_resources(self, study: str, path: str, attempt: int) -> dict[str, int | str]:
        cell = self.cell(study, path)
        return cell_resources(self.site, cell, attempt, self._asked_of(study, cell))

    def _left_out(self, study: str, cell: Cell) -> LeftOut | None:
        return left_out(self._forecaster(study), self.study(study), self.site, cell)

    def _asked_of(self, study: str, cell: Cell) -> CellForecast:
        """What a cell's job is cut to."""
        return asked_of(self._forecaster(study).cell(cell), self.site.gpus[cell.gpu], self.study(study))

    def _find_forecaster(self, study: str) -> Forecaster:
        return Forecaster(self.root, study, self.study(study), self.site)

    def _figure_names(self, study: str) -> list[str]:
        return [spec.name for spec in figures(list(self.cells(study).values()))]

    def figure_source(self, study: str, figure: str) -> str:
        """The table that a figure is drawn from.

        Raises:
            StudyError: the study has no such figure.
        """
        known = self.figure_names(study)
        if figure not in known:
            raise StudyError(
                f"study '{study}' has no figure '{figure}'{suggestion(figure, known)}; "
                f"it has {', '.join(known)}"
            )
        return f"results/{study}/cells.parquet"

    def model_sources(self, model: str) -> list[str]:
        """What a tokenizer of a model that is made is made from."""
        recipe = load_recipe(self.root, model)
        assert recipe is not None, model
        if recipe.tokenizer is not None:
            pinned = self.catalogue.tokenizer(recipe.tokenizer)
            return [self._shown(pinned.path(self.root, self.site.data))]
        return [self._dataset_input(name) for name in TRAINING_DATASETS]

    def recipe(self, model: str) -> str:
        """Path of a model's recipe."""
        return self._shown(recipe_file(self.root, model))

    def is_made(self, model: str, shards: str) -> bool | None:
        """Whether a model that is there was made from its recipe as it is now; None where it does not tell.

        Raises:
            ModelError: the recipe has a mistake.
        """
        origin = made_from(made_checkpoint(self.site.models, model, int(shards)).folder)
        recipe = load_recipe(self.root, model)
        if not isinstance(origin, dict) or recipe is None:
            return None
        return bool(origin.get("recipe") == recipe.model_dump(mode="json"))

    def _shown(self, path: Path) -> str:
        """A path as Snakemake is told: relative where it can be, so that a moved project reruns nothing."""
        return str(path.relative_to(self.base) if path.is_relative_to(self.base) else path)

    def _study(self, name: str) -> Study:
        return load_study(self.root, name)

    def _cells(self, name: str) -> dict[str, Cell]:
        return {cell.path: cell for cell in expand(self.root, name, self.study(name), self.site)}

    def _find_model_inputs(self, model: str, shards: int) -> list[str]:
        checkpoint = find_checkpoint(self.root, self.site.models, model, shards)
        if self._is_made(model):
            return [str(checkpoint.folder / MADE_FROM_FILE), str(checkpoint.tokenizer)]
        # Its files are looked at by `find_checkpoint`, once; as inputs they would be looked at for each cell.
        return [str(checkpoint.folder)]

    def _find_model_identity(self, model: str, shards: int) -> str:
        checkpoint = find_checkpoint(self.root, self.site.models, model, shards)
        return fingerprint(self.root, checkpoint, model)

    def _find_dataset_input(self, name: str) -> str:
        return self._shown(self.catalogue.dataset(name).path(self.root, self.site.data))

    def _find_dataset_identity(self, name: str) -> str:
        dataset = self.catalogue.dataset(name)
        pinned = dataset.sha256 or dataset.git_blob
        if pinned is not None:
            return pinned
        path = dataset.path(self.root, self.site.data)
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as problem:
            raise StudyError(f"data set '{name}': {path}: {problem.strerror}") from None


def _digest(texts: Iterable[str]) -> str:
    """First 16 hex digits of a SHA-256 over some texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _is_simulated(cell: Cell) -> bool:
    """Whether a cell runs no model, and so reads none."""
    return ENGINES[cell.engine].simulates is not None
