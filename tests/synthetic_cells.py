"""Cells of made-up numbers, written through the project's own writers; for tests and benchmarks.

The numbers follow simple laws, so that tests can work them out by hand:
a batch lasts `batch_s`, draws `power_w` per device, and answers each prompt with `length // 2` tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shardwatt.attempts import Failure
from shardwatt.cell import Cell
from shardwatt.cellfiles import write_table
from shardwatt.errors import Reason
from shardwatt.layout import CellPaths
from shardwatt.records import (
    CellRecord,
    Counts,
    Coverage,
    Device,
    Energy,
    Inputs,
    Mean,
    Memory,
    Method,
    Outcome,
    Provenance,
    Reading,
    Record,
    Scope,
    Status,
    Timings,
    Utilisation,
    write,
)
from shardwatt.study import Constants

STUDY = "synthetic"
CONSTANTS = Constants(prompts=20)
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_cell(**axes: Any) -> Cell:
    """A cell with everyday values for the axes that are not given."""
    usual: dict[str, Any] = {
        "engine": "reference",
        "model": "llama-7b",
        "precision": "fp16",
        "gpu": "v100",
        "shards": 1,
        "batch": 4,
        "length": 256,
        "dataset": "alpaca",
        "cap": "none",
        "repeat": 1,
    }
    return Cell(**(usual | axes))


@dataclass(frozen=True)
class Numbers:
    """What a made-up cell measures.

    Attributes:
        batch_s: duration of each batch in s; batch i takes (1 + i * `drift`) times that.
        between_s: time of the window outside the batches, in s.
        power_w: power of each device in W; None where energy is unknown.
        status: what the joules are worth.
        text: every response's text.
    """

    batch_s: float = 10.0
    drift: float = 0.0
    between_s: float = 1.0
    power_w: float | None = 100.0
    status: Status = Status.MEASURED
    text: str = "three plain words"
    model_fingerprint: str = "0123456789abcdef"
    dataset_sha256: str = "d" * 64
    commit: str | None = "0" * 40
    utilisation: Utilisation = field(
        default_factory=lambda: Utilisation(
            sm_utilisation=Mean(mean=0.95, max=1.0),
            memory_activity=Mean(mean=0.24, max=0.4),
            memory_filled=Mean(mean=0.41, max=0.43),
            cpu_utilisation=Mean(mean=None, max=None),
        )
    )


def reading(joules: float | None, numbers: Numbers, cell: Cell, scope: Scope = Scope.ALL_NODES) -> Reading:
    """A reading over all devices of a cell, two to a node; unavailable where joules are None."""
    nodes = [f"node{index:03d}" for index in range(math.ceil(cell.shards / 2))]
    devices = [
        Device(node=nodes[rank // 2], index=rank % 2, name="Tesla V100", uuid=f"GPU-{rank}")
        for rank in range(cell.shards)
    ]
    coverage = Coverage(
        nodes=nodes,
        nodes_expected=len(nodes),
        devices=devices,
        devices_expected=cell.shards,
        samples=100 * cell.shards,
        period_s=0.1,
        max_gap_s=0.3,
    )
    estimated = numbers.status is Status.ESTIMATED
    if joules is None:
        return Reading(
            joules=None,
            method=None,
            status=Status.UNAVAILABLE,
            scope=scope,
            coverage=coverage,
            detail="no meter on this machine",
        )
    return Reading(
        joules=joules,
        method=Method.ESTIMATE if estimated else Method.NVML_COUNTER,
        status=numbers.status,
        scope=scope,
        coverage=coverage,
        uncertainty_j=None if estimated else 10.0,
        detail="65 W TDP (data sheet) x CPU utilisation" if estimated else None,
    )


def write_ok(
    base: Path, cell: Cell, numbers: Numbers | None = None, constants: Constants = CONSTANTS
) -> Record:
    """Write the four files of a cell that ran through, and return its record."""
    n = numbers or Numbers()
    tokens, words = max(1, cell.length // 2), len(n.text.split(" "))
    sizes = [min(cell.batch, constants.prompts - start) for start in range(0, constants.prompts, cell.batch)]
    power_w = None if n.power_w is None else n.power_w * cell.shards
    batches: list[dict[str, Any]] = []
    now_s = 0.0
    for index, rows in enumerate(sizes):
        lasted_s = n.batch_s * (1 + index * n.drift)
        joules = None if power_w is None else power_w * lasted_s
        batches.append(
            {
                "batch": index,
                "rows": rows,
                "start_s": now_s,
                "stop_s": now_s + lasted_s,
                "prefill_s": 0.1 * lasted_s,
                "walk_s": 0.2 * lasted_s,
                "decode_s": 0.7 * lasted_s,
                "prompt_tokens": rows * 50,
                "output_tokens": rows * tokens,
                "generated_tokens": rows * cell.length,
                "words": rows * words,
                "energy_j": joules,
                "prefill_j": None if joules is None else 0.1 * joules,
                "walk_j": None if joules is None else 0.2 * joules,
                "decode_j": None if joules is None else 0.7 * joules,
            }
        )
        now_s += lasted_s
    duration_s, total = now_s + n.between_s, constants.prompts

    def joules_of(time_s: float) -> Reading:
        return reading(None if power_w is None else power_w * time_s, n, cell)

    window = joules_of(duration_s)
    record = Record(
        study=STUDY,
        cell=CellRecord.of(cell),
        constants=constants,
        constants_hash=constants.hash,
        outcome=Outcome.OK,
        nodes=len(window.coverage.nodes),
        timings=Timings(
            started_at=STARTED,
            ended_at=STARTED + timedelta(seconds=duration_s + 30),
            duration_s=duration_s,
            prefill_s=0.1 * now_s,
            walk_s=0.2 * now_s,
            decode_s=0.7 * now_s,
            between_s=n.between_s,
            job_duration_s=2 * duration_s,
            rendezvous_s=1.0,
            load_s=5.0,
            warmup_s=2.0,
        ),
        counts=Counts(
            prompts=total,
            prompt_tokens=total * 50,
            output_tokens=total * tokens,
            generated_tokens=total * cell.length,
            output_tokens_reencoded=total * (tokens + 1),
            words=total * words,
            responses=total,
            batches=len(sizes),
        ),
        energy=Energy(
            window=window,
            window_rank0_scaled=window.model_copy(update={"scope": Scope.RANK0_NODE_SCALED}),
            prefill=joules_of(0.1 * now_s),
            walk=joules_of(0.2 * now_s),
            decode=joules_of(0.7 * now_s),
            between=joules_of(n.between_s),
            job=joules_of(1.5 * duration_s),
        ),
        utilisation=n.utilisation,
        memory=Memory(peak_memory_gib=13.5, planned_memory_gib=14.0),
        inputs=inputs(n),
        provenance=provenance(window, n),
    )
    responses = [
        {
            "prompt_id": f"{cell.dataset}-{index}",
            "batch": index // cell.batch,
            "prompt_tokens": 50,
            "output_tokens": tokens,
            "words": words,
            "finish": "eos",
            "text": n.text,
        }
        for index in range(total)
    ]
    samples = [
        {"t_s": 0.1 * index, "node": "node000", "device": 0, "power_w": n.power_w} for index in range(3)
    ]
    _write(base, cell, record, responses, batches, samples)
    return record


def write_does_not_fit(
    base: Path, cell: Cell, numbers: Numbers | None = None, constants: Constants = CONSTANTS
) -> Record:
    """Write the files of a cell that ran out of device memory, and return its record."""
    n = numbers or Numbers()
    record = Record(
        study=STUDY,
        cell=CellRecord.of(cell),
        constants=constants,
        constants_hash=constants.hash,
        outcome=Outcome.DOES_NOT_FIT,
        reason="rank 0 asked for 2.00 GiB more than 32 GiB",
        nodes=math.ceil(cell.shards / 2),
        memory=Memory(peak_memory_gib=31.0, planned_memory_gib=40.0),
        inputs=inputs(n),
        provenance=provenance(reading(None, n, cell), n),
    )
    _write(base, cell, record, [], [], [])
    return record


def write_failed(base: Path, cell: Cell, constants: Constants = CONSTANTS, message: str = "") -> Failure:
    """Write the failure.json of a cell one of whose ranks died, and return it."""
    paths = CellPaths(base, STUDY, cell)
    paths.logs.mkdir(parents=True, exist_ok=True)
    failure = Failure(
        study=STUDY,
        cell=CellRecord.of(cell),
        constants_hash=constants.hash,
        job_id="17",
        reason=Reason.RANK_DIED,
        message=message or "rank 0 ended with signal 9; see its log",
        rank=0,
        exit_code=-9,
        started_at=STARTED,
        ended_at=STARTED + timedelta(seconds=5),
        log=str(paths.rank_log(0).relative_to(base)),
        log_tail=["step 1", "step 2"],
    )
    write(failure, paths.failure)
    return failure


def write_torn(base: Path, cell: Cell) -> None:
    """Write a cell whose record ends in the middle, as after a full disk."""
    write_ok(base, cell)
    path = CellPaths(base, STUDY, cell).record
    path.write_text(path.read_text()[:200])


def write_outdated(base: Path, cell: Cell) -> None:
    """Write a cell that was run with another temperature."""
    write_ok(base, cell, constants=CONSTANTS.model_copy(update={"temperature": 0.1}))


def inputs(numbers: Numbers) -> Inputs:
    """Identity of the inputs of a made-up cell."""
    return Inputs(
        model_fingerprint=numbers.model_fingerprint,
        dataset_sha256=numbers.dataset_sha256,
        prompt_ids_sha256="e" * 64,
    )


def provenance(window: Reading, numbers: Numbers) -> Provenance:
    """Where a made-up cell comes from."""
    return Provenance(
        job_id="17",
        site="testbed",
        launcher="local",
        nodes=window.coverage.nodes,
        ranks_per_node=min(2, len(window.coverage.devices)),
        threads_per_rank=1,
        device_names=[device.name for device in window.coverage.devices],
        commit=numbers.commit,
        commit_dirty=False,
        versions={"python": "3.11.2", "shardwatt": "0.1.0", "torch": "2.13.0"},
    )


def _write(
    base: Path,
    cell: Cell,
    record: Record,
    responses: list[dict[str, Any]],
    batches: list[dict[str, Any]],
    samples: list[dict[str, Any]],
) -> None:
    folder = CellPaths(base, STUDY, cell).results
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "responses.parquet", responses)
    write_table(folder / "batches.parquet", batches)
    write_table(folder / "power.parquet", samples)
    write(record, folder / "result.json")
