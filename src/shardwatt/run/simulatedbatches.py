"""The batches of a simulated cell: prompts and responses of the plan's lengths, without a word in them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from shardwatt.cell import Cell
from shardwatt.engine.protocol import Finish
from shardwatt.modelwork import PhaseName
from shardwatt.plan.lengths import Lengths
from shardwatt.plan.workload import Workload
from shardwatt.run.batches import plan_batches
from shardwatt.run.exchange import BatchPlan, BatchRun, PhaseTime
from shardwatt.run.spans import PHASES

#: Stands for every token: there is no text.
_TOKEN = 0


@dataclass(frozen=True, slots=True)
class Response:
    """How long a response is, and why it ended."""

    tokens: int
    finish: Finish


@dataclass(frozen=True, slots=True)
class SimulatedBatches:
    """The batches of a cell, as its engine would take them.

    Attributes:
        plans: prompts of each, of tokens without a meaning.
        responses: by prompt id.
    """

    plans: list[BatchPlan]
    responses: Mapping[str, Response]


def simulated_batches(
    cell: Cell,
    lengths: Lengths,
    *,
    prompts: int,
    output_tokens: int,
    context: int,
    cache_tokens: int | None,
    seed: int,
) -> SimulatedBatches:
    """Make prompts and responses up, of the lengths that the plan expects, and put them into batches.

    Lengths are the quantiles of the plan's distributions at equal distances, in an order that the seed draws:
    so they have the plan's means without any noise. Responses are then corrected by single tokens until
    they have as many together as the plan says.

    Args:
        cell: its engine, batch and length.
        lengths: what the plan expects of the data set's.
        prompts: how many.
        output_tokens: of all responses, as planned.
        context: positions that the model takes.
        cache_tokens: what the study fixes for the cache, or None.
        seed: the study's.
    """
    most = min(context, cache_tokens or context)
    # A prompt leaves room for a token.
    uncut = _quantiles(lengths.prompts.quantile, prompts, f"{seed} prompts")
    sizes = [min(round(size), most - 1) for size in uncut]
    wanted = _quantiles(lengths.responses.quantile, prompts, f"{seed} responses")
    limits = [min(cell.length, most - size) for size in sizes]
    cut = [min(round(length), limit) for length, limit in zip(wanted, limits, strict=True)]
    tokens = _corrected(cut, limits, output_tokens)
    ids = [f"simulated-{number}" for number in range(prompts)]
    return SimulatedBatches(
        plan_batches(ids, [[_TOKEN] * size for size in sizes], cell, context, cache_tokens),
        {
            one: Response(count, _finish(count, limit, cell.length))
            for one, count, limit in zip(ids, tokens, limits, strict=True)
        },
    )


def simulated_runs(
    batches: SimulatedBatches, load: Workload, phases_s: Mapping[PhaseName, float], duration_s: float
) -> list[BatchRun]:
    """When the batches would be answered: each phase's planned time and work shared out among them.

    A batch has an equal share of a phase's time and steps, and of the prefill's one by its prompts' tokens.
    What the plan says of the window beyond its phases lies at the ends of the batches.

    Args:
        batches: in order.
        load: the planned work of all of them.
        phases_s: planned time of each phase in s, all batches together.
        duration_s: planned time of the window in s.

    Returns:
        times in planned s since the window has begun.
    """
    plans = batches.plans
    sizes = [sum(map(len, plan.prompts)) for plan in plans]
    rows = [len(plan.prompts) for plan in plans]
    even = [1] * len(plans)
    rest_s = max(duration_s - sum(phases_s.get(name, 0.0) for name in PHASES), 0.0) / len(plans)
    # [phase][batch]
    lasting_s = {
        name: _shares_s(phases_s.get(name, 0.0), sizes if name == "prefill" else even) for name in PHASES
    }
    work = {
        name: list(
            zip(
                _split(load.phases[name].steps, even),
                _split(load.phases[name].work.tokens, sizes if name == "prefill" else rows),
                _split(load.phases[name].work.attended, rows),
                strict=True,
            )
        )
        for name in PHASES
        if name in load.phases
    }
    generated = _split(load.generated_tokens, rows)
    runs = []
    now_s = 0.0
    for index, plan in enumerate(plans):
        start_s = now_s
        phases = []
        for name in PHASES:
            if name not in work or not lasting_s[name][index]:
                continue
            stop_s = now_s + lasting_s[name][index]
            steps, tokens, attended = work[name][index]
            phases.append(
                PhaseTime(
                    name=name, start_s=now_s, stop_s=stop_s, steps=steps, tokens=tokens, attended=attended
                )
            )
            now_s = stop_s
        now_s += rest_s
        own = [batches.responses[one] for one in plan.prompt_ids]
        runs.append(
            BatchRun(
                start_s=start_s,
                stop_s=now_s,
                phases=phases,
                tokens=[[_TOKEN] * response.tokens for response in own],
                finish=[response.finish for response in own],
                generated_tokens=generated[index],
            )
        )
    return runs


def _quantiles(quantile: Callable[[float], float], count: int, seed: str) -> list[float]:
    """The middles of so many equal shares of a distribution, shuffled."""
    order = sorted(range(count), key=lambda number: hashlib.sha256(f"{seed} {number}".encode()).digest())
    return [quantile((number + 0.5) / count) for number in order]


def _corrected(tokens: Sequence[int], limits: Sequence[int], total: int) -> list[int]:
    """Lengths changed by a token here and there until they sum up to the total, as far as limits let them."""
    corrected = list(tokens)
    missing = total - sum(corrected)
    while missing:
        before = missing
        for place, limit in enumerate(limits):
            # One that is cut stays so, and one that has ended goes on.
            if missing > 0 and corrected[place] < limit - 1:
                corrected[place] += 1
                missing -= 1
            elif missing < 0 and 0 < corrected[place] < limit:
                corrected[place] -= 1
                missing += 1
            if not missing:
                break
        if missing == before:
            break
    return corrected


def _finish(tokens: int, limit: int, length: int) -> Finish:
    if tokens < limit:
        return "eos"
    return "length" if limit == length else "context"


def _shares_s(whole_s: float, weights: Sequence[int]) -> list[float]:
    total = sum(weights)
    return [whole_s * weight / total for weight in weights]


def _split(count: int, weights: Sequence[int]) -> list[int]:
    """A count in whole parts by weight, which sum up to it."""
    total, parts, passed = sum(weights), [], 0
    for weight in weights:
        before = count * passed // total
        passed += weight
        parts.append(count * passed // total - before)
    return parts
