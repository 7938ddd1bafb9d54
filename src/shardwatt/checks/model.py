"""What a checkpoint is, how it splits, and what memory a rank needs; whether every tensor is right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from shardwatt.architectures import Architecture, ArchitectureError
from shardwatt.checkpoints import ModelError
from shardwatt.data.tokenizer import Tokenizer, open_tokenizer
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.errors import CellFailure
from shardwatt.matrix import shard_counts
from shardwatt.models import Checkpoint, declared_eos_ids, read_architecture
from shardwatt.plan.memory import BYTES, MemoryNeed, cache_positions, memory_need
from shardwatt.tensorheaders import saved_headers
from shardwatt.tensornames import tensor_problems

#: Sizes of GPUs that there are, in GiB.
GPU_SIZES_GIB = tuple(sorted({sheet.memory_gib for sheet in DATA_SHEETS.values()}))

#: Precision of the memory plan where weights are saved in none that cells run in.
_USUAL_PRECISION = "bf16"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a checkpoint.

    Attributes:
        checkpoint: its files.
        sizes_bytes: of each file of weights, by name.
        numbers: how many numbers are saved in each type, copies in several shards counted each.
        architecture: its shape.
        tokenizer: None where it cannot be opened.
        eos_ids: ids that end a response.
        eos_source: who says so: the checkpoint or the tokenizer.
        problems: what is wrong, where something is.
    """

    checkpoint: Checkpoint
    sizes_bytes: dict[str, int]
    numbers: dict[str, int]
    architecture: Architecture
    tokenizer: Tokenizer | None
    eos_ids: frozenset[int]
    eos_source: str
    problems: list[str]

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights on disk."""
        return sum(self.sizes_bytes.values())

    @property
    def saved_shards(self) -> int | None:
        """In how many it is saved; None for whole tensors."""
        return len(self.checkpoint.weights) if self.checkpoint.layout == "meta" else None

    @property
    def precision(self) -> str:
        """What most of it is saved in, if cells run in that; otherwise what is usual."""
        usual = max(self.numbers, key=self.numbers.__getitem__, default="")
        return usual if usual in BYTES else _USUAL_PRECISION

    @property
    def tokenizer_kind(self) -> str | None:
        """Whose format the tokenizer has: sentencepiece, tiktoken or json."""
        if self.tokenizer is None:
            return None
        return type(self.tokenizer).__name__.removesuffix("Tokenizer").lower()

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        tokenizer = self.tokenizer
        return {
            "folder": str(self.checkpoint.folder),
            "layout": self.checkpoint.layout,
            "saved_shards": self.saved_shards,
            "files": [{"name": name, "size_bytes": size} for name, size in self.sizes_bytes.items()],
            "size_bytes": self.size_bytes,
            "numbers": self.numbers,
            "parameters": self.architecture.parameters,
            "architecture": {**asdict(self.architecture), "head_size": self.architecture.head_dim},
            "tokenizer": {
                "file": str(self.checkpoint.tokenizer),
                "kind": self.tokenizer_kind,
                "pieces": tokenizer.vocab_size if tokenizer else None,
                "bos_id": tokenizer.bos_id if tokenizer else None,
            },
            "eos_ids": sorted(self.eos_ids),
            "eos_source": self.eos_source,
            "allowed_shards": list(self.architecture.allowed_shards()),
            "problems": self.problems,
        }


@dataclass(frozen=True, slots=True)
class RankMemory:
    """What one of so many ranks needs.

    Attributes:
        shards: how many there are.
        need: by what takes it; an estimate.
        fits_gib: sizes of GPUs in which that fits.
    """

    shards: int
    need: MemoryNeed
    fits_gib: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        sums = {**asdict(self.need), "total_gib": self.need.total_gib}
        return {"shards": self.shards, **sums, "fits_gib": list(self.fits_gib)}


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory by number of shards.

    Attributes:
        engine: whose loop it is of.
        precision: of weights and cache.
        batch: rows.
        length: most new tokens.
        positions: T of the KV cache.
        ranks: for each count at which the engine runs the model.
    """

    engine: str
    precision: str
    batch: int
    length: int
    positions: int
    ranks: tuple[RankMemory, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**asdict(self), "ranks": [rank.as_dict() for rank in self.ranks]}


def model_facts(checkpoint: Checkpoint) -> ModelFacts:
    """Look at a checkpoint's files without opening the weights themselves; torch is not needed.

    Names, shapes and types of all tensors are compared with the shape, the tokenizer and the ends of a
    response with the vocabulary.

    Raises:
        ArchitectureError: its shape is none that runs here.
        ModelError: its shape cannot be read.
        OSError: a file cannot be read.
    """
    problems: list[str] = []
    tokenizer = None
    try:
        tokenizer = open_tokenizer(checkpoint.tokenizer)
    except CellFailure as problem:
        problems.append(problem.message)
    try:
        architecture = read_architecture(checkpoint, tokenizer.vocab_size if tokenizer else None)
    except ArchitectureError as problem:
        raise ArchitectureError(f"{checkpoint.folder}: {problem}") from None
    numbers: Counter[str] = Counter()
    for path in checkpoint.weight_files:
        with suppress(ModelError):  # `tensor_problems` tells it
            for header in saved_headers(path).values():
                numbers[header.dtype] += math.prod(header.shape)
    problems += tensor_problems(checkpoint, architecture)
    if tokenizer is not None:
        try:
            tokenizer.expect_vocabulary(architecture.vocab_size, checkpoint.layout)
        except CellFailure as problem:
            problems.append(problem.message)
    said = None
    try:
        said = declared_eos_ids(checkpoint, architecture.vocab_size)
    except ModelError as problem:
        problems.append(str(problem))
    return ModelFacts(
        checkpoint=checkpoint,
        sizes_bytes={path.name: path.stat().st_size for path in checkpoint.weight_files},
        numbers=dict(numbers),
        architecture=architecture,
        tokenizer=tokenizer,
        eos_ids=said or (tokenizer.eos_ids if tokenizer else frozenset()),
        eos_source="the checkpoint" if said else "the tokenizer",
        problems=problems,
    )


def memory_plan(
    architecture: Architecture,
    *,
    engine: str,
    precision: str,
    batch: int,
    length: int,
    cache_tokens: int | None,
) -> MemoryPlan:
    """Estimate what a rank needs at each number of shards."""
    ranks = []
    for shards in shard_counts(engine, architecture):
        need = memory_need(
            architecture,
            precision=precision,
            shards=shards,
            batch=batch,
            length=length,
            cache_tokens=cache_tokens,
            engine=engine,
        )
        fits_gib = tuple(size for size in GPU_SIZES_GIB if need.total_gib <= size)
        ranks.append(RankMemory(shards, need, fits_gib))
    positions = cache_positions(architecture, length, cache_tokens)
    return MemoryPlan(engine, precision, batch, length, positions, tuple(ranks))


def deep_problems(facts: ModelFacts) -> Iterator[str]:
    """Open a checkpoint as a run does, read every tensor, and tell what is wrong.

    Files are compared with the lists of sums that lie beside them. Where something is wrong already, nothing
    is read.
    """
    if facts.problems or facts.tokenizer is None:
        yield "the weights were not opened: that comes first"
        return

    import torch  # here: it takes seconds to import

    from shardwatt.engine.sums import sum_problems
    from shardwatt.engine.weights import open_whole

    yield from sum_problems(facts.checkpoint)
    try:
        weights = open_whole(facts.checkpoint, facts.architecture, facts.tokenizer.vocab_size)
        for name in weights.names:
            values = torch.empty(weights.shape(name), dtype=weights.dtype(name))
            weights.copy_to(name, values)
            strange = values.numel() - int(values.isfinite().sum())
            if strange:
                yield f"{name}: {strange} of {values.numel()} numbers are infinite or none; get a clean copy"
    except CellFailure as problem:
        yield problem.message
