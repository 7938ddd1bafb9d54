"""From a study's blocks to its cells: every value checked against site, models and data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path

from shardwatt.architectures import Architecture, ArchitectureError
from shardwatt.cell import AXES, Cell
from shardwatt.checkpoints import Checkpoint, ModelError
from shardwatt.datasets import Catalogue, CatalogueError, load_catalogue
from shardwatt.devices import has_gpus
from shardwatt.engines import BF16_CAPABILITY, ENGINES
from shardwatt.errors import SiteError, StudyError, suggestion
from shardwatt.jobshape import job_shape
from shardwatt.models import find_architecture, find_checkpoint, recipe_file
from shardwatt.plan.memory import fewest_shards
from shardwatt.site import Site
from shardwatt.study import Block, Study, study_file
from shardwatt.tensornames import tensor_problems


def expand(root: Path, name: str, study: Study, site: Site, *, with_models: bool = True) -> tuple[Cell, ...]:
    """List a study's cells in matrix order, each once.

    Args:
        root: the project's root, below which config/ lies.
        name: the study's name, for messages.
        study: its content.
        site: where it is to run.
        with_models: check that the checkpoints are there; results can be read where they are not.

    Raises:
        StudyError: a value is unknown, impossible for the model or the site, or no cell is left.
    """
    return _Expansion(root, name, study, site, with_models=with_models).cells()


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
        self.architecture: Callable[[str], Architecture | None] = cache(self._architecture)
        self.check_layout: Callable[[str, str, str, int], None] = cache(self._check_layout)
        self.check_tensors: Callable[[str, Checkpoint], None] = cache(self._check_tensors)
        self.check_precision: Callable[[str, str], None] = cache(self._check_precision)
        self.check_cap: Callable[[str, str], None] = cache(self._check_cap)

    def cells(self) -> tuple[Cell, ...]:
        self._check_exclusions()
        found: dict[Cell, None] = {}
        for index, block in enumerate(self.study.matrix):
            self._check_names(index, block)
            for cell in self._product(index, block):
                self.check_layout(cell.engine, cell.model, cell.gpu, cell.shards)
                self.check_precision(cell.gpu, cell.precision)
                self.check_cap(cell.gpu, cell.cap)
                found[cell] = None
        if not found:
            raise StudyError(f"{self.file}: exclude leaves no cell; expected at least one")
        return tuple(found)

    def _product(self, index: int, block: Block) -> Iterator[Cell]:
        """The block's cells, less the excluded ones."""
        axes = [getattr(block, axis) for axis in AXES]
        for values in product(*axes):
            chosen = dict(zip(AXES, values, strict=True))
            chosen["cap"] = str(chosen["cap"])
            if chosen["shards"] == "minimum" and not self._excluded(chosen):
                chosen["shards"] = self._fewest(index, chosen)
            if not self._excluded(chosen):
                yield Cell(**chosen)

    def _fewest(self, index: int, chosen: dict[str, str | int]) -> int:
        engine, model, gpu = (str(chosen[axis]) for axis in ("engine", "model", "gpu"))
        where = f"{self.file}: matrix.{index}.shards: minimum"
        architecture = self.architecture(model)
        if architecture is None:
            raise StudyError(
                f"{where}: the shape of model '{model}' is not known here; "
                "put its params.json or config.json into the site's models folder, or write a number"
            )
        memory_gib = self.site.gpus[gpu].memory_gib
        shards = fewest_shards(
            architecture,
            memory_gib=memory_gib,
            precision=str(chosen["precision"]),
            batch=int(chosen["batch"]),
            length=int(chosen["length"]),
            cache_tokens=self.study.cache_tokens,
            engine=engine,
            counts=[n for n in shard_counts(engine, architecture) if self._has_layout(gpu, n)],
        )
        if shards is None:
            raise StudyError(
                f"{where}: {model} at batch {chosen['batch']}, length {chosen['length']} fits on no number "
                f"of {gpu} with {memory_gib:g} GiB that site '{self.site.name}' can give; "
                "use a smaller batch or another GPU type"
            )
        return shards

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
                    raise StudyError(
                        f"{self.file}: matrix.{index}.{axis}: found '{value}'"
                        f"{suggestion(value, known)}; allowed: {', '.join(known)}"
                    )

    def _check_exclusions(self) -> None:
        """Refuse an exclusion of a value that no block has: a misspelt one would leave nothing out."""
        for index, entry in enumerate(self.exclusions):
            for axis, values in entry.items():
                known = {str(value) for block in self.study.matrix for value in getattr(block, axis)}
                if "minimum" in known:
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
        """Check that the model splits so, that its checkpoint is there, and that the shards fill nodes."""
        architecture = self.architecture(model)
        if architecture is not None and shards not in shard_counts(engine, architecture):
            raise StudyError(f"{self.file}: {_refused(engine, model, architecture, shards)}")
        try:
            job_shape(self.site, gpu, shards)
            if self.with_models:
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

    def _check_precision(self, gpu: str, precision: str) -> None:
        """Refuse bf16 where GPUs do not calculate in it: torch would emulate it without a word."""
        gpu_type = self.site.gpus[gpu]
        capability = gpu_type.compute_capability
        if precision != "bf16" or gpu_type.kind != "cuda" or capability is None:
            return
        major, minor = map(int, capability.split("."))
        if (major, minor) < BF16_CAPABILITY:
            raise StudyError(
                f"{self.file}: precision: bf16 on {gpu}: these GPUs have compute capability {capability} at "
                f"site '{self.site.name}', and bfloat16 arithmetic needs 8.0; use fp16 or fp32"
            )

    def _check_cap(self, gpu: str, cap: str) -> None:
        """Check that the site can set a power limit: a cell that only carries its name would be false."""
        if cap == "none":
            return
        gpu_type = self.site.gpus[gpu]
        where = f"{self.file}: cap: {cap} on {gpu}"
        if self.site.power_limits is None:
            raise StudyError(
                f"{where}: site '{self.site.name}' sets no power limits; use `none`, or say in the site's "
                "key power_limits who sets them (docs/power-caps.md)"
            )
        if not has_gpus(gpu_type):
            raise StudyError(
                f"{where}: site '{self.site.name}' has processors there, which have no power limit to set; "
                "use `none`, or a GPU type of kind `cuda`"
            )
        if gpu_type.power_limits_w is None:
            return
        least_w, most_w = gpu_type.power_limits_w
        if not least_w <= int(cap) <= most_w:
            raise StudyError(
                f"{where}: one GPU takes {least_w:g} to {most_w:g} W at site '{self.site.name}' (its key "
                f"gpus.{gpu}.power_limits_w); use a cap within that"
            )

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
