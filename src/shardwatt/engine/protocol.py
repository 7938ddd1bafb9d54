"""What an engine is: the small protocol behind which every inference loop stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

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
        seed: seeds the draw, together with the batch's index.
    """

    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Prompts to be answered together.

    Attributes:
        index: position of the batch in the run; -1 for the warm-up.
        prompts: token ids of each row, begin of sequence included; [rows][tokens].
        length: maximum number of new tokens per row that count.
        positions: positions T of the KV cache; every prompt is shorter.
    """

    index: int
    prompts: list[list[int]]
    length: int
    positions: int


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a batch; start and stop in s of `time.monotonic()`, devices synchronised."""

    name: PhaseName
    start_s: float
    stop_s: float


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
        """

    def synchronize(self) -> None:
        """Wait until the device has finished all that was asked of it."""

    def forget_peak_memory(self) -> None:
        """Let `peak_memory_gib` count from now on."""

    def peak_memory_gib(self) -> float:
        """Largest memory so far in GiB: allocated by torch on CUDA, resident on CPUs."""
