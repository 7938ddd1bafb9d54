"""From what ranks and meters left behind to a cell's four files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shardwatt import cellfiles
from shardwatt.efficiency import Efficiency, efficiency, peak_figures
from shardwatt.engines import ENGINES
from shardwatt.errors import CellFailure, Reason, RecordError
from shardwatt.plan.memory import cell_memory
from shardwatt.power.trace import Trace
from shardwatt.readings import Energy, PowerCap, Utilisation
from shardwatt.recordfiles import read, write
from shardwatt.records import CellRecord, Memory, Outcome, Provenance, Record, Timings
from shardwatt.run import spans
from shardwatt.run.energy import energy_of
from shardwatt.run.exchange import PARTIAL_FILE, PartialRun, RankEnd, RunReport
from shardwatt.run.job import Job
from shardwatt.run.measured import Baseline, Measured
from shardwatt.run.phasework import phase_work
from shardwatt.run.provenance import versions
from shardwatt.run.rows import batch_rows, counts, response_rows
from shardwatt.run.stretch import Stretch
from shardwatt.study import Constants


def assemble(
    job: Job,
    work: Path,
    *,
    job_id: str,
    node: str,
    started_at: datetime,
    report: RunReport,
    ends: Sequence[RankEnd],
    measured: Measured,
    was_loaded: bool = False,
) -> Baseline | None:
    """Write the four files of a cell that ended `ok` into its work folder.

    Args:
        job: what was to be done.
        work: the attempt's work folder.
        job_id: the attempt's.
        node: the supervisor's host.
        started_at: start of the attempt, UTC.
        report: what rank 0 measured.
        ends: how each rank ended.
        measured: what the meters gave.
        was_loaded: whether the ranks had run another cell before.

    Returns:
        The idle power before any rank had touched the devices, for the next cells of the job; None where
        it is not known.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        CellFailure: METER_UNAVAILABLE, other GPUs were metered than computed.
    """
    trace = measured.trace
    _check_devices(ends, trace)
    energy, baseline = energy_of(
        job.cell.path, job.constants, job.gpu_type, report, measured, was_loaded=was_loaded
    )
    responses = response_rows(job, report.batches)
    found = _Found(
        report=report,
        timings=_timings(report, measured, job.constants, started_at),
        energy=energy,
        utilisation=_utilisation(report, measured),
        batches=batch_rows(job, report, trace, responses),
        samples=trace.columns(report.window_start_s),
    )
    if job.simulation is not None:
        found = _stretched(found, job.simulation.stretch)
    cellfiles.write_table(work / "responses.parquet", responses)
    cellfiles.write_table(work / "batches.parquet", found.batches)
    cellfiles.write_columns(work / "power.parquet", found.samples)
    peaks = [end.peak_memory_gib for end in ends if end.peak_memory_gib is not None]
    record = Record(
        study=job.study,
        cell=CellRecord.of(job.cell),
        constants=job.constants,
        constants_hash=job.constants.hash,
        outcome=Outcome.OK,
        nodes=job.shape.nodes,
        timings=found.timings,
        counts=counts(job, responses, found.batches),
        energy=found.energy,
        power_cap=measured.power_cap,
        utilisation=found.utilisation,
        efficiency=_efficiency(job, found.report),
        memory=_memory(job, max(peaks) if peaks else None),
        simulated=job.simulation.record() if job.simulation else None,
        inputs=job.inputs,
        provenance=_provenance(job, job_id, node, ends, trace, report, was_loaded=was_loaded),
    )
    write(record, work / "result.json")
    return baseline


@dataclass(frozen=True, slots=True)
class _Found:
    """What a cell's files are made of, all of one time: real, or planned."""

    report: RunReport
    timings: Timings
    energy: Energy
    utilisation: Utilisation
    batches: list[dict[str, Any]]
    samples: Iterator[dict[str, cellfiles.Column]]


def _stretched(found: _Found, stretch: Stretch) -> _Found:
    """From the real time of a simulated cell to the planned one."""
    return _Found(
        report=stretch.report(found.report),
        timings=stretch.timings(found.timings),
        energy=stretch.energy(found.energy),
        utilisation=stretch.utilisation(found.utilisation),
        batches=stretch.batches(found.batches),
        samples=stretch.samples(found.samples),
    )


def _utilisation(report: RunReport, measured: Measured) -> Utilisation:
    """That of the devices, and with GPUs the nodes' processors beside them."""
    window = (report.window_start_s, report.window_stop_s)
    devices, host = measured.trace.utilisation(*window), measured.host.utilisation(*window)
    if devices.cpu_utilisation.mean is not None:
        return devices
    return devices.model_copy(update={"cpu_utilisation": host.cpu_utilisation})


def _efficiency(job: Job, report: RunReport) -> Efficiency:
    """The work of the run's phases against what the job's devices can do."""
    cell = job.cell
    return efficiency(
        job.architecture,
        phase_work(cell.engine, job.batches, report.batches),
        peak_figures(job.gpu_type, precision=cell.precision, shards=cell.shards, nodes=job.shape.nodes),
        precision=cell.precision,
        shards=cell.shards,
        duration_s=report.window_stop_s - report.window_start_s,
    )


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
        cellfiles.write_table(target, response_rows(job, partial.batches), "responses.parquet")
    except (OSError, RecordError):
        return None
    return target


def assemble_does_not_fit(
    job: Job, work: Path, *, job_id: str, node: str, reason: str, power_cap: PowerCap | None = None
) -> None:
    """Write the four files of a cell whose device ran out of memory: an ordinary record, empty tables.

    Args:
        job: what was to be done.
        work: the attempt's work folder.
        job_id: the attempt's.
        node: the supervisor's host.
        reason: which rank ran out of memory, and what it asked for.
        power_cap: under which limits it did.

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
        power_cap=power_cap,
        memory=_memory(job, None),
        simulated=job.simulation.record() if job.simulation else None,
        inputs=job.inputs,
        provenance=_provenance(job, job_id, node, [], None, None, was_loaded=False),
    )
    write(record, work / "result.json")


def _timings(report: RunReport, measured: Measured, constants: Constants, started_at: datetime) -> Timings:
    phases = {f"{phase}_s": spans.length_s(spans.phase_of(report, phase)) for phase in spans.PHASES}
    return Timings(
        started_at=started_at,
        ended_at=datetime.now(UTC),
        duration_s=report.window_stop_s - report.window_start_s,
        between_s=spans.length_s(spans.between(report)),
        job_duration_s=spans.length_s(spans.job_of(report, measured.job_span, constants.idle_settle_s)),
        rendezvous_s=max(0.0, report.rendezvous_s),
        load_s=report.load_s,
        warmup_s=report.warmup_s,
        cool_down_s=measured.cool_down.waited_s if measured.cool_down else None,
        **phases,
    )


def _memory(job: Job, peak_gib: float | None) -> Memory:
    """The peak beside what the memory model says for one GPU; it does not describe processors."""
    if job.gpu_type.kind == "cpu":
        return Memory(peak_memory_gib=peak_gib, planned_memory_gib=None, planned_allocated_gib=None)
    need = cell_memory(job.cell, job.architecture, job.constants, job.longest_prompt)
    return Memory(
        peak_memory_gib=peak_gib,
        planned_memory_gib=need.total_gib,
        planned_allocated_gib=need.allocated_gib,
    )


def _provenance(
    job: Job,
    job_id: str,
    supervisor_node: str,
    ends: Sequence[RankEnd],
    trace: Trace | None,
    report: RunReport | None,
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
        versions=report.versions if report else versions(),
        prompt_order=ENGINES[job.cell.engine].order,
        engine=report.engine_notes if report else {},
    )
