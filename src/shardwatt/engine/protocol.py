"""What an engine is: the small protocol behind which every inference loop stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from shardwatt.architectures import Architecture
from shardwatt.models import Checkpoint
from shardwatt.study import CudaGraphs

PhaseName = Literal["prefill", "walk", "decode"]
Finish = Literal["eos", "length", "context"]

#: Called after each step with the number of tokens that it generated (rows of the batch).
OnStep = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: the smallest set of tokens whose probability reaches this is sampled from.
        seed: keys the random numbers, together with prompt id, position and token id.
    """

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class ModelOnRank:
    """What an engine loads, seen from one rank; the ranks have met in `shardwatt.engine.parallel.join`.

    Attributes:
        architecture: the model's shape.
        checkpoint: its files, saved in any number of shards.
        precision: `fp32`, `bf16` or `fp16`.
        device: `cpu` or `cuda:N`.
        rank: this one, from 0.
        ranks: how many there are.
        vocab_size: pieces of the tokenizer.
        eos_ids: ids that end a response.
        cuda_graphs: `one-shard` captures decode steps in CUDA graphs where one rank is alone, `always` also
            where there are several, `never` nowhere.
        collective_timeout_s: longest time in s that one rank waits for the others; as given to `join`.
        rows: of the largest batch that is answered first, which weights are laid out for as they are read; 0
            where it is not known.
    """

    architecture: Architecture
    checkpoint: Checkpoint
    precision: str
    device: str
    rank: int
    ranks: int
    vocab_size: int
    eos_ids: frozenset[int]
    cuda_graphs: CudaGraphs = "one-shard"
    collective_timeout_s: float = 600.0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Prompts to be answered together.

    Attributes:
        index: position of the batch in the run; -1 for the warm-up.
        prompt_ids: of each prompt; they and the study's seed key the random numbers.
        prompts: token ids of each row, begin of sequence included; [rows][tokens].
        length: maximum number of new tokens per row that count.
        positions: positions T of the KV cache; every prompt is shorter.
        rows: prompts that are answered at a time, where an engine is given more of them than that.
    """

    index: int
    prompt_ids: list[str]
    prompts: list[list[int]]
    length: int
    positions: int
    rows: int

    @property
    def warms_up(self) -> bool:
        """Whether it comes before the run: what batches of so many rows may need later is made ready then."""
        return self.index < 0


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a batch, and the work that was done in it.

    Attributes:
        name: which kind.
        start_s: in s of `time.monotonic()`, devices synchronised.
        stop_s: likewise.
        steps: forward passes.
        tokens: token positions that went through the model in all rows, padding and rows that had ended
            included.
        attended: sum over those of the cache positions that hold something for them, their own included: in
            a step of single tokens, what has to be read of the cache.
    """

    name: PhaseName
    start_s: float
    stop_s: float
    steps: int
    tokens: int
    attended: int


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch gave.

    Attributes:
        tokens: sampled ids of each row before the end of sequence, at most `length`; [rows][tokens].
        finish: why each row ended: `eos`, `length`, or `context` where the cache was full before.
        generated_tokens: rows x steps actually computed.
        phases: in order of time, without overlap.
    """

    tokens: list[list[int]]
    finish: list[Finish]
    generated_tokens: int
    phases: list[Phase]


class Engine(Protocol):
    """A loaded model on this rank's device, ready to answer batches.

    Every rank calls every method in the same order; tokens are the same on all ranks.
    """

    def allocate(self, rows: int, positions: int) -> None:
        """Make room for batches of at most so many rows and cache positions."""

    def generate(self, request: BatchRequest, sampling: Sampling, on_step: OnStep) -> BatchResult:
        """Answer a batch.

        Raises:
            DoesNotFit: the device ran out of memory.
            CellFailure: NOT_FINITE, HOST_OOM, RANK_DIED or COLLECTIVE_TIMEOUT.
        """

    def notes(self) -> dict[str, str]:
        """How it ran, for the record: which kernels, CUDA graphs or why not; after the last batch."""

    def synchronize(self) -> None:
        """Wait until the device has finished all that was asked of it."""

    def forget_peak_memory(self) -> None:
        """Let `peak_memory_gib` count from now on."""

    def peak_memory_gib(self) -> float:
        """Largest memory so far in GiB: allocated by torch on CUDA, resident on CPUs."""
