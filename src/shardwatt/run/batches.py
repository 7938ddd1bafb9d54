"""The batches of a cell on one rank: those of the warm-up, and those of the window."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shardwatt.engine.protocol import BatchRequest, BatchResult, Engine, Sampling
from shardwatt.errors import CellFailure, Reason
from shardwatt.run.exchange import BatchPlan, BatchRun, PhaseTime
from shardwatt.run.tell import Teller

if TYPE_CHECKING:
    from shardwatt.engine.parallel import Ranks


#: Each finished batch with its start and stop in s of `time.monotonic()`.
TimedResults = list[tuple[BatchResult, tuple[float, float]]]


def warm_up_requests(batches: Sequence[BatchPlan], new_tokens: int) -> list[BatchRequest]:
    """What is answered before the window, so that kernels are loaded and memory is taken.

    For each number of rows in the run the prefill of most tokens, as long as it will be, and a few new
    tokens after it. The walk through longer prompts takes the same steps as these.

    Args:
        batches: those of the run.
        new_tokens: of each row; 0 for no warm-up.
    """
    if new_tokens == 0:
        return []
    widest: dict[int, list[list[int]]] = {}
    positions: dict[int, int] = {}
    for batch in batches:
        rows, prefill = len(batch.prompts), min(map(len, batch.prompts))
        if rows not in widest or prefill > len(widest[rows][0]):
            widest[rows] = [prompt[:prefill] for prompt in batch.prompts]
            positions[rows] = min(prefill + new_tokens, batch.positions)
    return [
        BatchRequest(index=-1, prompts=prompts, length=new_tokens, positions=positions[rows])
        for rows, prompts in widest.items()
    ]


def answer(
    batches: Sequence[BatchPlan],
    length: int,
    engine: Engine,
    sampling: Sampling,
    teller: Teller,
    results: TimedResults,
) -> None:
    """Answer every batch, in order; each is added to the results as soon as it is done.

    Raises:
        DoesNotFit: the device ran out of memory.
        CellFailure: HOST_OOM, RANK_DIED or COLLECTIVE_TIMEOUT.
    """

    def on_step(tokens: int) -> None:
        teller.generated_tokens += tokens

    for index, batch in enumerate(batches):
        request = BatchRequest(index, batch.prompts, length, batch.positions)
        began_s = time.monotonic()
        result = engine.generate(request, sampling, on_step)
        results.append((result, (began_s, time.monotonic())))
        teller.prompts_done += len(batch.prompts)


def batch_run(result: BatchResult, times: tuple[float, float]) -> BatchRun:
    """A result and its start and stop in s, as rank 0 reports them."""
    return BatchRun(
        start_s=times[0],
        stop_s=times[1],
        phases=[PhaseTime(name=p.name, start_s=p.start_s, stop_s=p.stop_s) for p in result.phases],
        tokens=result.tokens,
        finish=result.finish,
        generated_tokens=result.generated_tokens,
    )


def check_agreement(group: Ranks, results: Sequence[BatchResult]) -> None:
    """Compare what the ranks sampled; all call it.

    Raises:
        CellFailure: RANKS_DISAGREE, or that one of them has gone.
    """
    digest = hashlib.sha256(repr([result.tokens for result in results]).encode()).hexdigest()
    if not group.all_agree(digest):
        raise CellFailure(
            Reason.RANKS_DISAGREE,
            "the ranks sampled different tokens; expected the same on every rank. "
            "Check that all nodes run the same versions on the same kind of device",
        )
