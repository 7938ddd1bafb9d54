"""The batches of a cell: put together, and answered on one rank in the warm-up and in the window."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from shardwatt.cell import Cell
from shardwatt.data.tokenizer import cache_positions
from shardwatt.engine.protocol import BatchRequest, BatchResult, Engine, Sampling
from shardwatt.engines import ENGINES
from shardwatt.errors import CellFailure, Reason
from shardwatt.run.exchange import BatchPlan, BatchRun, PhaseTime
from shardwatt.run.tell import Teller

if TYPE_CHECKING:
    from shardwatt.engine.parallel import Ranks


#: Each finished batch with its start and stop in s of `time.monotonic()`.
TimedResults = list[tuple[BatchResult, tuple[float, float]]]


def plan_batches(
    ids: Sequence[str],
    tokens: Sequence[list[int]],
    cell: Cell,
    context: int,
    cache_tokens: int | None,
) -> list[BatchPlan]:
    """Put prompts into batches, in the order and the portions in which the cell's engine takes them.

    Args:
        ids: of the prompts, as they were sampled.
        tokens: of each; [prompts][tokens].
        cell: its engine and batch.
        context: positions that the model takes.
        cache_tokens: what the study fixes for the cache, or None.
    """
    engine = ENGINES[cell.engine]
    order = list(range(len(ids)))
    if engine.order == "length":
        order.sort(key=lambda number: -len(tokens[number]))
    portion = len(ids) if engine.queue else cell.batch
    plans = []
    for start in range(0, len(ids), portion):
        chosen = order[start : start + portion]
        prompts = [tokens[number] for number in chosen]
        plans.append(
            BatchPlan(
                prompt_ids=[ids[number] for number in chosen],
                prompts=prompts,
                positions=cache_positions(prompts, cell.length, context, cache_tokens),
                rows=min(cell.batch, len(prompts)),
            )
        )
    return plans


def warm_up_requests(batches: Sequence[BatchPlan], new_tokens: int, *, walks: bool) -> list[BatchRequest]:
    """What is answered before the window, so that kernels are loaded and memory is taken.

    For each number of rows in the run the prefill of most tokens, as long as it will be, and a few new
    tokens after it; and where places are filled anew, the prefill of the shortest prompt alone.

    Args:
        batches: those of the run.
        new_tokens: of each row; 0 for no warm-up.
        walks: whether the engine prefills the shortest prompt's length of every row and walks the rest: the
            walk takes the same steps as new tokens do.
    """
    if new_tokens == 0:
        return []
    widest: dict[int, BatchRequest] = {}
    for batch in batches:
        # Where places are filled anew, the first ones are prefilled together, and the later ones one by one.
        prompts = batch.prompts[: batch.rows]
        if walks:
            shortest = min(map(len, prompts))
            prompts = [prompt[:shortest] for prompt in prompts]
        known = widest.get(len(prompts))
        if known is None or sum(map(len, prompts)) > sum(map(len, known.prompts)):
            widest[len(prompts)] = BatchRequest(
                index=-1,
                prompt_ids=batch.prompt_ids[: batch.rows],
                prompts=prompts,
                length=new_tokens,
                positions=min(max(map(len, prompts)) + new_tokens, batch.positions),
                rows=len(prompts),
            )
    requests = list(widest.values())
    later = [
        (len(prompt), number, row)
        for number, batch in enumerate(batches)
        for row, prompt in enumerate(batch.prompts)
        if row >= batch.rows
    ]
    if later:
        size, number, row = min(later)
        requests.append(
            BatchRequest(
                index=-1,
                prompt_ids=[batches[number].prompt_ids[row]],
                prompts=[batches[number].prompts[row]],
                length=1,
                positions=min(size + 1, batches[number].positions),
                rows=1,
            )
        )
    return requests


def make_room(engine: Engine, batches: Sequence[BatchPlan]) -> None:
    """Let an engine allocate what the largest of these batches takes; peak memory counts from there on.

    Not from before: an engine that stays for another cell still holds the last one's cache.

    Raises:
        DoesNotFit: the device ran out of memory.
        CellFailure: HOST_OOM.
    """
    engine.allocate(max(batch.rows for batch in batches), max(batch.positions for batch in batches))
    engine.forget_peak_memory()


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
        CellFailure: NOT_FINITE, HOST_OOM, RANK_DIED or COLLECTIVE_TIMEOUT.
    """

    def on_step(tokens: int) -> None:
        teller.generated_tokens += tokens

    for index, batch in enumerate(batches):
        request = BatchRequest(index, batch.prompt_ids, batch.prompts, length, batch.positions, batch.rows)
        began_s = time.monotonic()
        result = engine.generate(request, sampling, on_step)
        results.append((result, (began_s, time.monotonic())))
        teller.prompts_done += len(batch.prompts)


def batch_run(result: BatchResult, times: tuple[float, float]) -> BatchRun:
    """A result and its start and stop in s, as rank 0 reports them."""
    return BatchRun(
        start_s=times[0],
        stop_s=times[1],
        phases=[PhaseTime(**asdict(phase)) for phase in result.phases],
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
