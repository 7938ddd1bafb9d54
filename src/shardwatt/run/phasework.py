"""The work of a cell's phases: what rank 0 counted, beside what the responses need of it."""

from __future__ import annotations

from collections.abc import Sequence

from shardwatt.efficiency import PhaseWork
from shardwatt.engines import ENGINES
from shardwatt.modelwork import Answer, PhaseName, Work, useful_work
from shardwatt.run import spans
from shardwatt.run.exchange import BatchPlan, BatchRun


def phase_work(
    engine: str, plans: Sequence[BatchPlan], runs: Sequence[BatchRun]
) -> dict[PhaseName, PhaseWork]:
    """Add the work of all batches up, phase by phase.

    Args:
        engine: the engine's name.
        plans: the batches as they were asked for.
        runs: the same batches as they were run.
    """
    facts = ENGINES[engine]
    total = {phase: PhaseWork() for phase in spans.PHASES}
    for plan, run in zip(plans, runs, strict=True):
        useful = useful_work(_answers(plan, run), walked=any(phase.name == "walk" for phase in run.phases))
        for phase in spans.PHASES:
            own = [one for one in run.phases if one.name == phase]
            tokens = sum(one.tokens for one in own)
            # A step feeds a token of each row, so each of them is a row's last.
            ends = len(plan.prompts) if phase == "prefill" else tokens
            total[phase] += PhaseWork(
                duration_s=spans.length_s(spans.phase_of_batch(run, phase)),
                steps=sum(one.steps for one in own),
                executed=Work(
                    tokens=tokens,
                    logits=ends if facts.logits == "last" else tokens,
                    attended=sum(one.attended for one in own),
                    finished=ends if facts.finished == "last" else tokens,
                ),
                useful=useful[phase],
            )
    return total


def _answers(plan: BatchPlan, run: BatchRun) -> list[Answer]:
    return [
        Answer(len(prompt), len(tokens), ended=finish == "eos")
        for prompt, tokens, finish in zip(plan.prompts, run.tokens, run.finish, strict=True)
    ]
