"""Rows of a cell's tables, a prompt or a batch each, and what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardwatt.data.tokenizer import count_words
from shardwatt.power.trace import Trace
from shardwatt.records import Counts
from shardwatt.run import spans
from shardwatt.run.energy import MINIMUM_TICKS
from shardwatt.run.exchange import BatchRun, RunReport
from shardwatt.run.job import Job
from shardwatt.run.simulation import WORDS_PER_TOKEN


def response_rows(job: Job, runs: Sequence[BatchRun]) -> list[dict[str, Any]]:
    """A row for each prompt of the batches that were run, which are the first ones."""
    rows = []
    for index, (plan, run) in enumerate(zip(job.batches, runs, strict=False)):
        for prompt_id, prompt, tokens, finish in zip(
            plan.prompt_ids, plan.prompts, run.tokens, run.finish, strict=True
        ):
            text = "" if job.tokenizer is None else job.tokenizer.decode(tokens)
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "batch": index,
                    "prompt_tokens": len(prompt),
                    "output_tokens": len(tokens),
                    "words": _words(job, text, len(tokens)),
                    "finish": finish,
                    "text": text,
                }
            )
    return rows


def _words(job: Job, text: str, tokens: int) -> int:
    """Words of a response; of one that has no text, about as many as its tokens make."""
    return count_words(text) if job.tokenizer is not None else round(tokens * WORDS_PER_TOKEN)


def batch_rows(
    job: Job, report: RunReport, trace: Trace, responses: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each batch: when it was, what it gave, and its joules, null where the meter cannot tell.

    Args:
        job: what was to be done.
        report: what rank 0 measured.
        trace: the samples of the devices.
        responses: rows of its prompts, in the same order.
    """
    rows = []
    first = 0
    for index, run in enumerate(report.batches):
        own = responses[first : first + len(run.tokens)]
        first += len(own)
        row: dict[str, Any] = {
            "batch": index,
            "rows": len(own),
            "start_s": run.start_s - report.window_start_s,
            "stop_s": run.stop_s - report.window_start_s,
            "prompt_tokens": sum(response["prompt_tokens"] for response in own),
            "output_tokens": sum(response["output_tokens"] for response in own),
            "generated_tokens": run.generated_tokens,
            "words": sum(response["words"] for response in own),
            "energy_j": trace.joules([(run.start_s, run.stop_s)], minimum_ticks=MINIMUM_TICKS),
        }
        for phase in spans.PHASES:
            own_spans = spans.phase_of_batch(run, phase)
            row[f"{phase}_s"] = spans.length_s(own_spans)
            row[f"{phase}_j"] = trace.joules(own_spans, minimum_ticks=MINIMUM_TICKS)
        rows.append(row)
    return rows


def counts(job: Job, responses: Sequence[dict[str, Any]], batches: Sequence[dict[str, Any]]) -> Counts:
    """What the rows of prompts and batches add up to."""
    return Counts(
        prompts=job.prompts,
        prompt_tokens=sum(row["prompt_tokens"] for row in batches),
        output_tokens=sum(row["output_tokens"] for row in batches),
        generated_tokens=sum(row["generated_tokens"] for row in batches),
        output_tokens_reencoded=sum(_reencoded(job, row) for row in responses),
        words=sum(row["words"] for row in batches),
        responses=len(responses),
        batches=len(batches),
    )


def _reencoded(job: Job, row: dict[str, Any]) -> int:
    """Tokens of a response's text; of one that has none, those that were planned."""
    tokens: int = row["output_tokens"] if job.tokenizer is None else job.tokenizer.count(row["text"])
    return tokens
