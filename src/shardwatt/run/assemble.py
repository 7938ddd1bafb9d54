"""From what ranks and meters left behind to a cell's four files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shardwatt import cellfiles
from shardwatt.data.tokenizer import count_words
from shardwatt.engine.protocol import PhaseName
from shardwatt.errors import CellFailure, Reason, RecordError
from shardwatt.plan.memory import memory_need
from shardwatt.power.trace import Trace
from shardwatt.records import (
    CellRecord,
    Counts,
    Energy,
    Memory,
    Outcome,
    Provenance,
    Record,
    Scope,
    Timings,
    read,
    write,
)
from shardwatt.run.exchange import PARTIAL_FILE, BatchRun, PartialRun, RankEnd, RunReport
from shardwatt.run.job import Job
from shardwatt.run.provenance import versions

#: A batch or a phase shorter than so many ticks of its meter has no joules of its own: they would be
#: interpolation, not reading (docs/results.md).
MINIMUM_TICKS = 10

Interval = tuple[float, float]


def assemble(
    job: Job,
    work: Path,
    *,
    job_id: str,
    node: str,
    started_at: datetime,
    report: RunReport,
    ends: Sequence[RankEnd],
    trace: Trace,
    job_span: Interval,
    was_loaded: bool = False,
) -> None:
    """Write the four files of a cell that ended `ok` into its work folder.

    Args:
        job: what was to be done.
        work: the attempt's work folder.
        job_id: the attempt's.
        node: the supervisor's host.
        started_at: start of the attempt, UTC.
        report: what rank 0 measured.
        ends: how each rank ended.
        trace: what the meters read.
        job_span: from before the ranks were started to after the last one ended, in s of
            `time.monotonic()`, while the meters ran.
        was_loaded: whether the ranks had run another cell before.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        CellFailure: METER_UNAVAILABLE, other GPUs were metered than computed.
    """
    _check_devices(ends, trace)
    responses = _response_rows(job, report.batches)
    batches = _batch_rows(job, report, trace, responses)
    cellfiles.write_table(work / "responses.parquet", responses)
    cellfiles.write_table(work / "batches.parquet", batches)
    cellfiles.write_table(work / "power.parquet", trace.rows(report.window_start_s))
    peaks = [end.peak_memory_gib for end in ends if end.peak_memory_gib is not None]
    record = Record(
        study=job.study,
        cell=CellRecord.of(job.cell),
        constants=job.constants,
        constants_hash=job.constants.hash,
        outcome=Outcome.OK,
        nodes=job.shape.nodes,
        timings=_timings(report, job_span, started_at),
        counts=_counts(job, responses, batches),
        energy=_energy(report, trace, job_span),
        utilisation=trace.utilisation(report.window_start_s, report.window_stop_s),
        memory=Memory(peak_memory_gib=max(peaks) if peaks else None, planned_memory_gib=_planned(job)),
        inputs=job.inputs,
        provenance=_provenance(job, job_id, node, ends, trace, report.versions, was_loaded=was_loaded),
    )
    write(record, work / "result.json")


def _check_devices(ends: Sequence[RankEnd], trace: Trace) -> None:
    """Make sure that the joules are those of the GPUs that computed: ranks and meters find them apart."""
    computed = {end.device_uuid for end in ends if end.device_uuid is not None}
    metered = {
        device.device.uuid
        for node in trace.nodes
        for device in node.devices
        if device.device.uuid is not None
    }
    if len(computed) == len(ends) and metered - computed:
        raise CellFailure(
            Reason.METER_UNAVAILABLE,
            f"the ranks computed on {', '.join(sorted(map(str, computed)))}, and the meters read "
            f"{', '.join(sorted(map(str, metered)))}: the joules would be of other GPUs; see whether "
            "CUDA_VISIBLE_DEVICES and nvidia-smi number the GPUs of a job alike",
        )


def keep_partial(job: Job, work: Path, target: Path) -> Path | None:
    """Put the responses of finished batches aside, from a cell that ended early.

    Args:
        job: what was to be done.
        work: the attempt's work folder, where rank 0 may have left partial.json.
        target: where they go, in the form of responses.parquet.

    Returns:
        The target; None where there is nothing to keep, or it cannot be written: the cell has failed
        already, and that comes first.
    """
    try:
        partial = read(PartialRun, work / PARTIAL_FILE)
        cellfiles.write_table(target, _response_rows(job, partial.batches), "responses.parquet")
    except (OSError, RecordError):
        return None
    return target


def assemble_does_not_fit(job: Job, work: Path, *, job_id: str, node: str, reason: str) -> None:
    """Write the four files of a cell whose device ran out of memory: an ordinary record, empty tables.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    for name in cellfiles.SCHEMAS:
        cellfiles.write_table(work / name, [])
    record = Record(
        study=job.study,
        cell=CellRecord.of(job.cell),
        constants=job.constants,
        constants_hash=job.constants.hash,
        outcome=Outcome.DOES_NOT_FIT,
        reason=reason,
        nodes=job.shape.nodes,
        memory=Memory(peak_memory_gib=None, planned_memory_gib=_planned(job)),
        inputs=job.inputs,
        provenance=_provenance(job, job_id, node, [], None, versions(), was_loaded=False),
    )
    write(record, work / "result.json")


def _response_rows(job: Job, runs: Sequence[BatchRun]) -> list[dict[str, Any]]:
    """A row for each prompt of the batches that were run, which are the first ones."""
    rows = []
    for index, (plan, run) in enumerate(zip(job.batches, runs, strict=False)):
        for prompt_id, prompt, tokens, finish in zip(
            plan.prompt_ids, plan.prompts, run.tokens, run.finish, strict=True
        ):
            text = job.tokenizer.decode(tokens)
            rows.append(
                {
                    "prompt_id": prompt_id,
                    "batch": index,
                    "prompt_tokens": len(prompt),
                    "output_tokens": len(tokens),
                    "words": count_words(text),
                    "finish": finish,
                    "text": text,
                }
            )
    return rows


def _batch_rows(
    job: Job, report: RunReport, trace: Trace, responses: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    first = 0
    for index, run in enumerate(report.batches):
        own = responses[first : first + len(run.tokens)]
        first += len(own)
        energy = trace.reading([(run.start_s, run.stop_s)], Scope.ALL_NODES, minimum_ticks=MINIMUM_TICKS)
        row: dict[str, Any] = {
            "batch": index,
            "rows": len(own),
            "start_s": run.start_s - report.window_start_s,
            "stop_s": run.stop_s - report.window_start_s,
            "prompt_tokens": sum(response["prompt_tokens"] for response in own),
            "output_tokens": sum(response["output_tokens"] for response in own),
            "generated_tokens": run.generated_tokens,
            "words": sum(response["words"] for response in own),
            "energy_j": energy.joules,
        }
        for phase in _PHASES:
            spans = list(_spans(run, phase))
            row[f"{phase}_s"] = _length(spans)
            row[f"{phase}_j"] = trace.reading(spans, Scope.ALL_NODES, minimum_ticks=MINIMUM_TICKS).joules
        rows.append(row)
    return rows


_PHASES: tuple[PhaseName, ...] = ("prefill", "walk", "decode")


def _spans(run: BatchRun, phase: PhaseName) -> Iterator[Interval]:
    return ((p.start_s, p.stop_s) for p in run.phases if p.name == phase)


def _all_spans(report: RunReport, phase: PhaseName) -> list[Interval]:
    return [span for run in report.batches for span in _spans(run, phase)]


def _between(report: RunReport) -> list[Interval]:
    """The parts of the window that belong to no phase."""
    spans = sorted((p.start_s, p.stop_s) for run in report.batches for p in run.phases)
    borders = [report.window_start_s, *(t for span in spans for t in span), report.window_stop_s]
    return [(start, stop) for start, stop in zip(borders[::2], borders[1::2], strict=True) if stop > start]


def _length(spans: Sequence[Interval]) -> float:
    return sum(stop - start for start, stop in spans)


def _timings(report: RunReport, job_span: Interval, started_at: datetime) -> Timings:
    phases = {f"{phase}_s": _length(_all_spans(report, phase)) for phase in _PHASES}
    return Timings(
        started_at=started_at,
        ended_at=datetime.now(UTC),
        duration_s=report.window_stop_s - report.window_start_s,
        between_s=_length(_between(report)),
        job_duration_s=job_span[1] - job_span[0],
        rendezvous_s=max(0.0, report.rendezvous_s),
        load_s=report.load_s,
        warmup_s=report.warmup_s,
        **phases,
    )


def _counts(job: Job, responses: Sequence[dict[str, Any]], batches: Sequence[dict[str, Any]]) -> Counts:
    return Counts(
        prompts=job.prompts,
        prompt_tokens=sum(row["prompt_tokens"] for row in batches),
        output_tokens=sum(row["output_tokens"] for row in batches),
        generated_tokens=sum(row["generated_tokens"] for row in batches),
        output_tokens_reencoded=sum(job.tokenizer.count(row["text"]) for row in responses),
        words=sum(row["words"] for row in batches),
        responses=len(responses),
        batches=len(batches),
    )


def _energy(report: RunReport, trace: Trace, job_span: Interval) -> Energy:
    window = [(report.window_start_s, report.window_stop_s)]
    phases = {
        phase: trace.reading(_all_spans(report, phase), Scope.ALL_NODES, minimum_ticks=MINIMUM_TICKS)
        for phase in _PHASES
    }
    return Energy(
        window=trace.reading(window, Scope.ALL_NODES),
        window_rank0_scaled=trace.reading(window, Scope.RANK0_NODE_SCALED),
        between=trace.reading(_between(report), Scope.ALL_NODES, minimum_ticks=MINIMUM_TICKS),
        job=trace.reading([job_span], Scope.ALL_NODES),
        **phases,
    )


def _planned(job: Job) -> float | None:
    """What the memory model says for one GPU; None for processors, which it does not describe."""
    if job.gpu_type.kind == "cpu":
        return None
    return memory_need(
        job.architecture,
        precision=job.cell.precision,
        shards=job.cell.shards,
        batch=job.cell.batch,
        length=job.cell.length,
        cache_tokens=max(batch.positions for batch in job.batches),
    ).total_gib


def _provenance(
    job: Job,
    job_id: str,
    supervisor_node: str,
    ends: Sequence[RankEnd],
    trace: Trace | None,
    found_versions: dict[str, str],
    *,
    was_loaded: bool,
) -> Provenance:
    nodes = trace.nodes if trace else []
    commit, dirty = job.commit
    return Provenance(
        job_id=job_id,
        site=job.site.name,
        launcher=job.site.launcher,
        nodes=sorted({end.node for end in ends} or {supervisor_node}),
        ranks_per_node=job.shape.ranks_per_node,
        threads_per_rank=job.threads_per_rank,
        was_loaded=was_loaded,
        device_names=sorted({device.device.name for node in nodes for device in node.devices}),
        commit=commit,
        commit_dirty=dirty,
        versions=found_versions,
    )
