"""Guards the work of phases: added up over batches and stretches, with logits where they are made."""

from __future__ import annotations

import pytest

from shardwatt.efficiency import PhaseWork
from shardwatt.modelwork import Work
from shardwatt.run.exchange import BatchPlan, BatchRun, PhaseTime
from shardwatt.run.phasework import phase_work


def plan(*prompts: int, rows: int | None = None) -> BatchPlan:
    """A batch of prompts of these lengths."""
    return BatchPlan(
        prompt_ids=[f"p{index}" for index in range(len(prompts))],
        prompts=[[1] * length for length in prompts],
        positions=64,
        rows=rows or len(prompts),
    )


def phase(name: str, start_s: float, stop_s: float, steps: int, tokens: int, attended: int) -> PhaseTime:
    return PhaseTime.model_validate(
        {
            "name": name,
            "start_s": start_s,
            "stop_s": stop_s,
            "steps": steps,
            "tokens": tokens,
            "attended": attended,
        }
    )


def run(*phases: PhaseTime, lengths: list[int], ended: bool = False) -> BatchRun:
    """What a batch gave: responses of these lengths, that ended by themselves or filled their length."""
    return BatchRun(
        start_s=0,
        stop_s=9,
        phases=list(phases),
        tokens=[[7] * length for length in lengths],
        finish=["eos" if ended else "length"] * len(lengths),
        generated_tokens=1,
    )


#: Two prompts of 3 tokens and responses of 2: both are fed whole, and then one token each.
EVEN = run(phase("prefill", 0, 1, 1, 6, 12), phase("decode", 1, 4, 1, 2, 8), lengths=[2, 2])

#: Prompts of 2 and 4: the walk feeds positions 2 and 3 of both; the first row's responses end in it.
WALKED = run(
    phase("prefill", 0, 2, 1, 4, 6),
    phase("walk", 2, 3, 2, 4, 14),
    phase("decode", 3, 5, 1, 2, 10),
    lengths=[2, 2],
)


def test_batches_add_up_phase_by_phase() -> None:
    work = phase_work("reference", [plan(3, 3), plan(2, 4)], [EVEN, WALKED])
    assert work["prefill"] == PhaseWork(
        duration_s=3,
        steps=2,
        executed=Work(6 + 4, 2 + 2, 12 + 6, 6 + 4),
        useful=Work(6 + 4, 2 + 1, 12 + 6, 2 + 1),
    )
    # Of the walk, position 3 of the first row is of no use: its response had its two tokens by then.
    assert work["walk"] == PhaseWork(
        duration_s=1, steps=2, executed=Work(4, 4, 14, 4), useful=Work(3, 1 + 1, 3 + 3 + 4, 1 + 1)
    )
    # Of the second batch's decode only the second row's token is.
    assert work["decode"] == PhaseWork(
        duration_s=5, steps=2, executed=Work(2 + 2, 4, 18, 4), useful=Work(2 + 1, 3, 8 + 5, 3)
    )


@pytest.mark.parametrize(
    ("engine", "logits", "finished"),
    [("reference", 2, 6), ("reference-v2", 6, 6), ("fast", 2, 2), ("fast-drop", 2, 2), ("hf", 2, 6)],
)
def test_a_prefill_goes_to_the_end_with_as_many_positions_as_the_engine_takes_there(
    engine: str, logits: int, finished: int
) -> None:
    """Llama 2's loop makes logits of all; `fast` alone leaves the rest of the last layer out."""
    work = phase_work(engine, [plan(3, 3)], [EVEN])
    assert work["prefill"].executed == Work(6, logits, 12, finished)
    assert work["decode"].executed == Work(2, 2, 8, 2)
    # An answer needs the same of every engine.
    assert work["prefill"].useful == Work(6, 2, 12, 2)


def test_stretches_of_a_phase_add_up_where_places_are_filled_anew() -> None:
    """Three prompts on two places: the third is prefilled once one has ended."""
    refilled = run(
        phase("prefill", 0, 1, 1, 6, 12),
        phase("decode", 1, 2, 1, 2, 8),
        phase("prefill", 2, 3, 1, 5, 15),
        phase("decode", 3, 5, 2, 3, 15),
        lengths=[1, 3, 2],
        ended=True,
    )
    work = phase_work("fast-refill", [plan(3, 3, 5, rows=2)], [refilled])
    assert (work["prefill"].duration_s, work["prefill"].steps) == (2, 2)
    assert work["prefill"].executed == Work(11, 3, 27, 3) == work["prefill"].useful
    assert (work["decode"].duration_s, work["decode"].steps) == (3, 3)
    assert work["decode"].executed == Work(5, 5, 23, 5)
    assert work["walk"] == PhaseWork()


def test_padding_is_computed_and_of_no_use() -> None:
    """Two prompts of 2 and 4, padded to 4 each."""
    padded = run(phase("prefill", 0, 1, 1, 8, 13), phase("decode", 1, 2, 1, 2, 8), lengths=[2, 2])
    work = phase_work("hf", [plan(2, 4)], [padded])["prefill"]
    assert (work.executed.tokens, work.useful.tokens) == (8, 6)


def test_runs_that_are_not_those_of_the_plan_are_refused() -> None:
    with pytest.raises(ValueError, match="argument"):
        phase_work("fast", [plan(3, 3)], [EVEN, EVEN])
