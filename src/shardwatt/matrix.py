"""From a study's blocks to its cells: every value checked against site, models and data sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from itertools import chain, product
from pathlib import Path
from typing import Any

from shardwatt.architectures import Architecture, ArchitectureError
from shardwatt.cell import AXES, Cell
from shardwatt.checkpoints import Checkpoint, ModelError
from shardwatt.datasets import Catalogue, CatalogueError, load_catalogue
from shardwatt.engines import ENGINES
from shardwatt.errors import SiteError, StudyError, suggestion
from shardwatt.gpulimits import cap_problem, precision_problem, unset_cap
from shardwatt.jobshape import job_shape
from shardwatt.models import find_architecture, find_checkpoint, recipe_file, unknown_shape
from shardwatt.plan.forecast import Forecaster
from shardwatt.site import Site
from shardwatt.study import FEWEST, LARGEST, Block, Study, study_file
from shardwatt.tensornames import tensor_problems


def expand(root: Path, name: str, study: Study, site: Site, *, with_models: bool = True) -> tuple[Cell, ...]:
    """List a study's cells in matrix order, each once.

    Args:
        root: the project's root, below which config/ lies.
        name: the study's name, for messages.
        study: its content.
        site: where it is to run.
        with_models: check what it takes to run beside a plan: that the checkpoints are there, for simulated
            engines that the models' shapes are known, and that somebody sets power limits.

    Raises:
        StudyError: a value is unknown, impossible for the model or the site, no cell is left, or there are
            more than the study allows.
    """
    blocks = expand_blocks(root, name, study, site, with_models=with_models)
    return tuple(dict.fromkeys(chain.from_iterable(blocks)))


def expand_blocks(
    root: Path, name: str, study: Study, site: Site, *, with_models: bool = True
) -> tuple[tuple[Cell, ...], ...]:
    """List the cells of each block of a study's matrix, each once in it; see `expand`."""
    return _Expansion(root, name, study, site, with_models=with_models).blocks()


class _Expansion:
    def __init__(self, root: Path, name: str, study: Study, site: Site, *, with_models: bool) -> None:
        self.with_models = with_models
        self.file = study_file(root, name)
        self.root = root
        self.name = name
        self.study = study
        self.site = site
        self.catalogue: Catalogue = load_catalogue(root)
        self.exclusions = [
            {axis: frozenset(map(str, values)) for axis, values in entry.items()} for entry in study.exclude
        ]
        self.architecture: Callable[[str], Architecture | None] = cache(self._architecture)
        self.check_layout: Callable[[str, str, str, int], None] = cache(self._check_layout)
        self.check_tensors: Callable[[str, Checkpoint], None] = cache(self._check_tensors)
        self.check_gpu: Callable[[str, str, str], None] = cache(self._check_gpu)
        self.fewest: Callable[[int, Cell], int] = cache(self._fewest)
        self.largest: Callable[[int, Cell], int] = cache(self._largest)

    @cached_property
    def forecaster(self) -> Forecaster:
        """What tells whether a cell fits, as it does in the plan."""
        return Forecaster(self.root, self.name, self.study, self.site)

    def blocks(self) -> tuple[tuple[Cell, ...], ...]:
        self._check_size()
        self._check_exclusions()
        found = []
        for index, block in enumerate(self.study.matrix):
            self._check_names(index, block)
            cells = tuple(dict.fromkeys(self._product(index, block)))
            for cell in cells:
                self.check_layout(cell.engine, cell.model, cell.gpu, cell.shards)
                self.check_gpu(cell.gpu, cell.precision, cell.cap)
            found.append(cells)
        if not any(found):
            raise StudyError(f"{self.file}: exclude leaves no cell; expected at least one")
        return tuple(found)

    def _check_size(self) -> None:
        """Refuse a matrix that would take minutes and gigabytes to expand, before it does."""
        count = sum(math.prod(len(getattr(block, axis)) for axis in AXES) for block in self.study.matrix)
        if count > self.study.max_cells:
            raise StudyError(
                f"{self.file}: matrix: found {count:,} cells, exclusions and doubles counted; expected at "
                f"most {self.study.max_cells:,}: take values out, or raise the limit, max_cells: {count}"
            )

    def _product(self, index: int, block: Block) -> Iterator[Cell]:
        """The block's cells, less the excluded ones."""
        axes = [getattr(block, axis) for axis in AXES]
        for values in product(*axes):
            chosen = dict(zip(AXES, values, strict=True))
            chosen["cap"] = str(chosen["cap"])
            if self._excluded(chosen):
                continue  # what is excluded need not be possible
            if chosen["shards"] == FEWEST or chosen["batch"] == LARGEST:
                self._fill_in(index, chosen)
                if self._excluded(chosen):
                    continue
            yield Cell(**chosen)

    def _fill_in(self, index: int, chosen: dict[str, Any]) -> None:
        """Put numbers in place of `minimum` and `maximum`.

        Fewest shards are those for the batch; where that is left open too, for one prompt, and then the
        largest batch on them.
        """
        open_axes = [axis for axis, word in (("shards", FEWEST), ("batch", LARGEST)) if chosen[axis] == word]
        cell = Cell(**{**chosen, "cap": "none", "repeat": 1, **dict.fromkeys(open_axes, 1)})
        if "shards" in open_axes:
            cell = replace(cell, shards=self.fewest(index, cell))
        if "batch" in open_axes:
            self.check_layout(cell.engine, cell.model, cell.gpu, cell.shards)
            cell = replace(cell, batch=self.largest(index, cell))
        chosen.update(shards=cell.shards, batch=cell.batch)

    def _fewest(self, index: int, cell: Cell) -> int:
        """The fewest shards that fit; where none do, the most there are, which the plan then leaves out."""
        architecture = self._shape(f"{self.file}: matrix.{index}.shards: {FEWEST}", cell)
        counts = [n for n in shard_counts(cell.engine, architecture) if self._has_layout(cell.gpu, n)]
        return next((n for n in counts if self.forecaster.fits(replace(cell, shards=n))), counts[-1])

    def _largest(self, index: int, cell: Cell) -> int:
        """The largest power of two of prompts that fits; where not even 1 does, that, which is left out."""
        self._shape(f"{self.file}: matrix.{index}.batch: {LARGEST}", cell)
        batch = 1
        while 2 * batch <= self.study.prompts and self.forecaster.fits(replace(cell, batch=2 * batch)):
            batch *= 2
        return batch

    def _shape(self, where: str, cell: Cell) -> Architecture:
        """The shape of a cell's model, without which nobody knows whether it fits into its devices.

        Raises:
            StudyError: it is not known, or the devices are processors.
        """
        if self.site.gpus[cell.gpu].kind != "cuda":
            raise StudyError(
                f"{where}: found gpu '{cell.gpu}' of kind `cpu`; whether a cell fits is not known of "
                "processors: write a number, in a block of their own if GPUs stand beside them"
            )
        architecture = self.architecture(cell.model)
        if architecture is None:
            missing = unknown_shape(self.root, self.site.models, cell.model)
            raise StudyError(f"{where}: {missing}, or write a number")
        return architecture

    def _has_layout(self, gpu: str, shards: int) -> bool:
        try:
            job_shape(self.site, gpu, shards)
        except SiteError:
            return False
        return True

    def _check_names(self, index: int, block: Block) -> None:
        for name in map(str, block.engine):
            if name not in ENGINES:
                listed = "".join(f"\n  {engine}: {facts.about}" for engine, facts in ENGINES.items())
                raise StudyError(
                    f"{self.file}: matrix.{index}.engine: found '{name}'{suggestion(name, ENGINES)}; "
                    f"allowed:{listed}"
                )
        for axis, known in (
            ("gpu", tuple(self.site.gpus)),
            ("dataset", tuple(self.catalogue.datasets)),
        ):
            for value in map(str, getattr(block, axis)):
                if value not in known:
                    of_site = (
                        f" (site '{self.site.name}'); for another site pass --site FILE, or set "
                        "SHARDWATT_SITE; Snakemake takes it with its --profile"
                    )
                    raise StudyError(
                        f"{self.file}: matrix.{index}.{axis}: found '{value}'"
                        f"{suggestion(value, known)}; allowed: {', '.join(known)}"
                        f"{of_site if axis == 'gpu' else ''}"
                    )

    def _check_exclusions(self) -> None:
        """Refuse an exclusion of a value that no block has: a misspelt one would leave nothing out."""
        for index, entry in enumerate(self.exclusions):
            for axis, values in entry.items():
                known = {str(value) for block in self.study.matrix for value in getattr(block, axis)}
                if known & {FEWEST, LARGEST}:
                    continue  # which numbers these are depends on the site
                for value in sorted(values - known):
                    raise StudyError(
                        f"{self.file}: exclude.{index}.{axis}: found '{value}'{suggestion(value, known)}; "
                        f"expected a value that a block has: {', '.join(sorted(known))}"
                    )

    def _architecture(self, model: str) -> Architecture | None:
        try:
            return find_architecture(self.root, self.site.models, model)
        except (ModelError, ArchitectureError) as problem:
            raise StudyError(f"{self.file}: model '{model}': {problem}") from None

    def _check_layout(self, engine: str, model: str, gpu: str, shards: int) -> None:
        """Check that the model splits so, that its checkpoint is there, and that the shards fill nodes.

        A simulated engine needs no checkpoint, but the model's shape.
        """
        architecture = self.architecture(model)
        if architecture is not None and shards not in shard_counts(engine, architecture):
            raise StudyError(f"{self.file}: {_refused(engine, model, architecture, shards)}")
        is_simulated = ENGINES[engine].simulates is not None
        if architecture is None and is_simulated and self.with_models:
            missing = unknown_shape(self.root, self.site.models, model)
            raise StudyError(f"{self.file}: engine {engine}: {missing}")
        try:
            job_shape(self.site, gpu, shards)
            if self.with_models and not is_simulated:
                self.check_tensors(model, find_checkpoint(self.root, self.site.models, model, shards))
        except (SiteError, ModelError, CatalogueError) as problem:
            raise StudyError(f"{self.file}: {problem}") from None

    def _check_tensors(self, model: str, checkpoint: Checkpoint) -> None:
        """Look at what the files say that they hold: a last shard that is missing shows nowhere else.

        Raises:
            ModelError: it is not what the model's shape implies.
        """
        if recipe_file(self.root, model).is_file():
            return  # it may have to be made first, which keeps to the recipe
        problems = tensor_problems(checkpoint, self.architecture(model))
        if problems:
            more = f"; `shardwatt model inspect {model}` tells {len(problems) - 1} more"
            raise ModelError(f"model '{model}': {problems[0]}{more if problems[1:] else ''}")

    def _check_gpu(self, gpu: str, precision: str, cap: str) -> None:
        """Check that GPUs of the type calculate in the precision and take the cap."""
        problem = (
            precision_problem(self.site, gpu, precision)
            or (unset_cap(self.site, gpu, cap) if self.with_models else None)
            or cap_problem(self.site, gpu, cap)
        )
        if problem is not None:
            raise StudyError(f"{self.file}: {problem}")

    def _excluded(self, chosen: Mapping[str, str | int]) -> bool:
        return any(
            all(str(chosen[axis]) in values for axis, values in entry.items()) for entry in self.exclusions
        )


def shard_counts(engine: str, architecture: Architecture) -> tuple[int, ...]:
    """Shard counts at which an engine runs a model."""
    counts = architecture.allowed_shards()
    if ENGINES[engine].loop == "transformers":
        # Its tensor parallelism holds no key and value head twice.
        counts = tuple(n for n in counts if architecture.n_kv_heads % n == 0)
    return counts


def _refused(engine: str, model: str, architecture: Architecture, shards: int) -> str:
    """Say why a model is not split so, and how it can be."""
    counts = shard_counts(engine, architecture)
    if shards in architecture.allowed_shards():
        return (
            f"shards: {shards} does not divide {model}'s {architecture.n_kv_heads} KV heads, and engine "
            f"{engine} replicates none; use {_or(counts)}, or another engine"
        )
    sizes = {
        "heads": architecture.n_heads,
        "hidden units": architecture.hidden_dim,
        "vocabulary entries": architecture.vocab_size,
        "dimensions": architecture.dim,
    }
    undivided = [f"{size} {name}" for name, size in sizes.items() if size % shards]
    words = f"does not divide {model}'s {', '.join(undivided)}"
    if not undivided:
        words = (
            f"does not fit {model}'s {architecture.n_kv_heads} KV heads, which are split evenly, or above "
            "their number replicated evenly"
        )
    return f"shards: {shards} {words}; use {_or(counts)}"


def _or(numbers: tuple[int, ...]) -> str:
    words = [str(number) for number in numbers]
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
