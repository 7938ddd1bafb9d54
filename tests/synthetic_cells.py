"""Cells of made-up numbers, written through the project's own writers; for tests and benchmarks.

The numbers follow simple laws, so that tests can work them out by hand:
a batch lasts `batch_s`, draws `power_w` per device, and answers each prompt with `length // 2` tokens;
what the meters say is in synthetic_energy.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from shardwatt.attempts import Failure
from shardwatt.cell import Cell
from shardwatt.cellfiles import write_table
from shardwatt.engines import ENGINES
from shardwatt.errors import Reason
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import write
from shardwatt.records import (
    CellRecord,
    Counts,
    Inputs,
    Memory,
    Outcome,
    Provenance,
    Record,
    Simulated,
    Timings,
)
from shardwatt.study import Constants
from synthetic_efficiency import efficiency_of
from synthetic_energy import (
    EnergyNumbers,
    device_power_w,
    devices_of,
    energy_of,
    node_names,
    power_cap_of,
)

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
class Numbers(EnergyNumbers):
    """What a made-up cell measures.

    Attributes:
        batch_s: duration of each batch in s; batch i takes (1 + i * `drift`) times that.
        between_s: time of the window outside the batches, in s.
        text: every response's text.
        job_id: the job in which it ran.
        was_loaded: whether its ranks had run another cell of the job before.
        cool_down_s: time it waited for the devices to cool.
        decode_share: of the peak memory bandwidth that decode reads; None where no data sheet is known.
        engine_notes: what the engine says of how it ran.
    """

    batch_s: float = 10.0
    drift: float = 0.0
    between_s: float = 1.0
    text: str = "three plain words"
    job_id: str = "17"
    was_loaded: bool = False
    cool_down_s: float | None = None
    decode_share: float | None = 0.6
    engine_notes: dict[str, str] = field(default_factory=dict)
    model_fingerprint: str = "0123456789abcdef"
    dataset_sha256: str = "d" * 64
    commit: str | None = "0" * 40


def write_ok(
    base: Path, cell: Cell, numbers: Numbers | None = None, constants: Constants = CONSTANTS
) -> Record:
    """Write the four files of a cell that ran through, and return its record."""
    n = numbers or Numbers()
    tokens, words = max(1, cell.length // 2), len(n.text.split(" "))
    portion = constants.prompts if ENGINES[cell.engine].queue else cell.batch
    sizes = [min(portion, constants.prompts - start) for start in range(0, constants.prompts, portion)]
    powers_w = device_power_w(cell, n)
    power_w = None if powers_w is None else sum(powers_w)
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

    record = Record(
        study=STUDY,
        cell=CellRecord.of(cell),
        constants=constants,
        constants_hash=constants.hash,
        outcome=Outcome.OK,
        nodes=len(node_names(cell)),
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
            cool_down_s=n.cool_down_s,
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
        energy=energy_of(cell, n, batches_s=now_s, between_s=n.between_s),
        power_cap=power_cap_of(cell, n),
        utilisation=n.utilisation,
        efficiency=efficiency_of(
            cell,
            prompts=total,
            batches=len(sizes),
            batches_s=now_s,
            window_s=duration_s,
            decode_share=n.decode_share,
        ),
        memory=Memory(peak_memory_gib=13.5, planned_memory_gib=14.75, planned_allocated_gib=14.0),
        simulated=simulated_of(cell),
        inputs=inputs(n),
        provenance=provenance(cell, n),
    )
    responses = [
        {
            "prompt_id": f"{cell.dataset}-{index}",
            "batch": index // portion,
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
        nodes=len(node_names(cell)),
        memory=Memory(peak_memory_gib=31.0, planned_memory_gib=40.0, planned_allocated_gib=39.25),
        simulated=simulated_of(cell),
        inputs=inputs(n),
        provenance=provenance(cell, n),
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


def simulated_of(cell: Cell) -> Simulated | None:
    """How a made-up cell was simulated; None for an engine that runs models."""
    engine = ENGINES[cell.engine].simulates
    if engine is None:
        return None
    return Simulated(
        engine=engine,
        window_s=2.0,
        time_lapse=100.0,
        watts="the plan's, replayed",
        fits=True,
        notes=["not calibrated: assumed shares of a data sheet's figures"],
    )


def inputs(numbers: Numbers) -> Inputs:
    """Identity of the inputs of a made-up cell."""
    return Inputs(
        model_fingerprint=numbers.model_fingerprint,
        dataset_sha256=numbers.dataset_sha256,
        prompt_ids_sha256="e" * 64,
    )


def provenance(cell: Cell, numbers: Numbers) -> Provenance:
    """Where a made-up cell comes from."""
    devices = devices_of(cell, numbers)
    return Provenance(
        job_id=numbers.job_id,
        site="testbed",
        launcher="local",
        nodes=node_names(cell),
        ranks_per_node=min(2, len(devices)),
        threads_per_rank=1,
        was_loaded=numbers.was_loaded,
        device_names=[device.name for device in devices],
        commit=numbers.commit,
        commit_dirty=False,
        versions={"python": "3.11.2", "shardwatt": "0.1.0", "torch": "2.13.0"},
        prompt_order=ENGINES[cell.engine].order,
        engine=numbers.engine_notes,
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
