"""From a study's blocks to its cells: every value checked against site, models and data sets."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

from shardwatt.architectures import Architecture, ArchitectureError
from shardwatt.cell import AXES, Cell
from shardwatt.checkpoints import Checkpoint, ModelError
from shardwatt.datasets import Catalogue, CatalogueError, load_catalogue
from shardwatt.engines import ENGINES
from shardwatt.errors import SiteError, StudyError, suggestion
from shardwatt.gpulimits import cap_problem, precision_problem
from shardwatt.jobshape import job_shape
from shardwatt.models import find_architecture, find_checkpoint, recipe_file, unknown_shape
from shardwatt.plan.memory import fewest_shards, largest_batch
from shardwatt.site import Site
from shardwatt.study import FEWEST, LARGEST, Block, Study, study_file
from shardwatt.tensornames import tensor_problems

log = logging.getLogger(__name__)


def expand(root: Path, name: str, study: Study, site: Site, *, with_models: bool = True) -> tuple[Cell, ...]:
    """List a study's cells in matrix order, each once.

    Args:
        root: the project's root, below which config/ lies.
        name: the study's name, for messages.
        study: its content.
        site: where it is to run.
        with_models: check that the checkpoints are there, or for simulated engines that the models' shapes
            are known; results can be read where they are not.

    Raises:
        StudyError: a value is unknown, impossible for the model or the site, no cell is left, or there are
            more than the study allows.
    """
    found = expand_blocks(root, name, study, site, with_models=with_models)
    for problem in found.dropped:
        log.warning("study '%s': %s", name, problem)
    return tuple(dict.fromkeys(chain.from_iterable(found.blocks)))


@dataclass(frozen=True, slots=True)
class Expanded:
    """A study's matrix in cells.

    Attributes:
        blocks: the cells of each block, each once in it.
        dropped: which combinations are none of them, because not even one prompt fits where the largest batch
            is asked for; a sentence each.
    """

    blocks: tuple[tuple[Cell, ...], ...]
    dropped: tuple[str, ...]


def expand_blocks(root: Path, name: str, study: Study, site: Site, *, with_models: bool = True) -> Expanded:
    """List the cells of each block of a study's matrix, each once in it; see `expand`."""
    return _Expansion(root, name, study, site, with_models=with_models).expanded()


class _Expansion:
    def __init__(self, root: Path, name: str, study: Study, site: Site, *, with_models: bool) -> None:
        self.with_models = with_models
        self.file = study_file(root, name)
        self.root = root
        self.study = study
        self.site = site
        self.catalogue: Catalogue = load_catalogue(root)
        self.exclusions = [
            {axis: frozenset(map(str, values)) for axis, values in entry.items()} for entry in study.exclude
        ]
        #: Combinations of which not even a batch of one fits, in words and in order.
        self.dropped: dict[str, None] = {}
        self.architecture: Callable[[str], Architecture | None] = cache(self._architecture)
        self.check_layout: Callable[[str, str, str, int], None] = cache(self._check_layout)
        self.check_tensors: Callable[[str, Checkpoint], None] = cache(self._check_tensors)
        self.check_gpu: Callable[[str, str, str], None] = cache(self._check_gpu)
        self.fewest: Callable[[int, str, str, str, str, int, int, str], int] = cache(self._fewest)
        self.largest: Callable[[int, str, str, str, str, int, int, str], int | None] = cache(self._largest)

    def expanded(self) -> Expanded:
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
            raise StudyError(self._nothing_left())
        return Expanded(tuple(found), tuple(f"{problem}; left out" for problem in self.dropped))

    def _nothing_left(self) -> str:
        if not self.dropped:
            return f"{self.file}: exclude leaves no cell; expected at least one"
        return f"{self.file}: {next(iter(self.dropped))}, and no other cell is left; use more shards"

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
                if chosen["batch"] is None or self._excluded(chosen):
                    continue
            yield Cell(**chosen)

    def _fill_in(self, index: int, chosen: dict[str, Any]) -> None:
        """Put numbers in place of `minimum` and `maximum`.

        Fewest shards are those for the batch; where that is left open too, for one prompt, and then the
        largest batch on them: None if not even one prompt fits.
        """
        engine, model, precision, gpu = (chosen[axis] for axis in ("engine", "model", "precision", "gpu"))
        length, dataset = chosen["length"], chosen["dataset"]
        if chosen["shards"] == FEWEST:
            batch = 1 if chosen["batch"] == LARGEST else chosen["batch"]
            chosen["shards"] = self.fewest(index, engine, model, precision, gpu, batch, length, dataset)
        if chosen["batch"] == LARGEST:
            self.check_layout(engine, model, gpu, chosen["shards"])
            shards = chosen["shards"]
            chosen["batch"] = self.largest(index, engine, model, precision, gpu, shards, length, dataset)

    def _fewest(
        self,
        index: int,
        engine: str,
        model: str,
        precision: str,
        gpu: str,
        batch: int,
        length: int,
        dataset: str,
    ) -> int:
        where = f"{self.file}: matrix.{index}.shards: {FEWEST}"
        architecture = self._shape(where, model)
        memory_gib = self.site.gpus[gpu].memory_gib
        shards = fewest_shards(
            architecture,
            memory_gib=memory_gib,
            precision=precision,
            batch=batch,
            length=length,
            cache_tokens=self.study.cache_tokens,
            longest_prompt=self.catalogue.dataset(dataset).longest_prompt,
            engine=engine,
            counts=[n for n in shard_counts(engine, architecture) if self._has_layout(gpu, n)],
        )
        if shards is None:
            raise StudyError(
                f"{where}: {model} at batch {batch}, length {length} fits on no number "
                f"of {gpu} with {memory_gib:g} GiB that site '{self.site.name}' can give; "
                "use a smaller batch or another GPU type"
            )
        return shards

    def _largest(
        self,
        index: int,
        engine: str,
        model: str,
        precision: str,
        gpu: str,
        shards: int,
        length: int,
        dataset: str,
    ) -> int | None:
        where = f"{self.file}: matrix.{index}.batch: {LARGEST}"
        memory_gib = self.site.gpus[gpu].memory_gib
        batch = largest_batch(
            self._shape(where, model),
            memory_gib=memory_gib,
            precision=precision,
            shards=shards,
            length=length,
            cache_tokens=self.study.cache_tokens,
            longest_prompt=self.catalogue.dataset(dataset).longest_prompt,
            engine=engine,
            most=self.study.prompts,
        )
        if batch is None:
            self.dropped[
                f"matrix.{index}.batch: {LARGEST}: {model} at batch 1, length {length} does not fit "
                f"on {shards} {gpu} with {memory_gib:g} GiB"
            ] = None
        return batch

    def _shape(self, where: str, model: str) -> Architecture:
        """A model's shape, which the memory model cannot do without."""
        architecture = self.architecture(model)
        if architecture is None:
            missing = unknown_shape(self.root, self.site.models, model)
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
        problem = precision_problem(self.site, gpu, precision) or cap_problem(self.site, gpu, cap)
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
