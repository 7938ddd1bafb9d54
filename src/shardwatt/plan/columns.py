"""The columns of a plan: what is forecast of a cell, under names that carry their units.

docs/plan.md shows them; `python -m shardwatt.plan.columns docs/plan.md` writes them there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from shardwatt.cell import AXES, COUNT_AXES
from shardwatt.modelwork import PhaseName
from shardwatt.plan.cellforecast import CellForecast

Kind = Literal["text", "count", "number", "truth"]
Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class PlanRow:
    """A cell of a plan.

    Attributes:
        forecast: what it will take.
        blocks: numbers of the study's blocks that it is in, from 1.
        runs: whether the study runs it; False where it does not fit and is left out.
        currency: of its cost; None where the site has no prices.
    """

    forecast: CellForecast
    blocks: tuple[int, ...]
    runs: bool
    currency: str | None


@dataclass(frozen=True, slots=True)
class PlanColumn:
    """One column; null means unknown or not applicable, never zero.

    Attributes:
        name: carries its unit where it has one.
        kind: of its values.
        unit: unit, or kind of value.
        definition: what it is.
        value: takes it from a row.
    """

    name: str
    kind: Kind
    unit: str
    definition: str
    value: Callable[[PlanRow], Value]


_AXES = {
    "engine": "Inference loop",
    "model": "Model",
    "precision": "Floating-point format of weights and cache",
    "gpu": "GPU type as the site names it",
    "shards": "Model-parallel ranks, one device each",
    "batch": "Prompts answered together",
    "length": "Maximum number of new tokens per response",
    "dataset": "Where the prompts come from",
    "cap": "Power limit of each GPU in W as text, or `none`",
    "repeat": "Which repetition, from 1",
}


@lru_cache
def _one_text(notes: tuple[str, ...]) -> str | None:
    """Notes in one text: the same for all cells that have the same."""
    return "; ".join(notes) or None


def _axes() -> Iterator[PlanColumn]:
    for axis in AXES:
        kind: Kind = "count" if axis in COUNT_AXES else "text"
        unit = "count" if kind == "count" else "name"
        yield PlanColumn(axis, kind, unit, _AXES[axis], _of(f"cell.{axis}"))
    about = "Power limit of each GPU; null where none is set"
    yield PlanColumn("cap_w", "count", "W", about, _of("cell.cap_w"))


def _of(path: str) -> Callable[[PlanRow], Any]:
    """What the forecast has there."""
    get = attrgetter(path)
    return lambda row: get(row.forecast)


def _if_run(get: Callable[[CellForecast], Any]) -> Callable[[PlanRow], Any]:
    """Nothing where the cell is left out: what it does not do takes no time, and costs nothing unknown."""
    return lambda row: get(row.forecast) if row.runs else None


def _run(name: str) -> Callable[[PlanRow], Any]:
    return _if_run(attrgetter(name))


def _need(name: str) -> Callable[[PlanRow], Any]:
    get = attrgetter(name)
    return lambda row: None if row.forecast.need is None else get(row.forecast.need)


def _phase(name: PhaseName) -> Callable[[PlanRow], Any]:
    return _if_run(lambda found: found.phases[name].duration_s if name in found.phases else None)


def _end(name: str, end: Literal[0, 1]) -> Callable[[PlanRow], Any]:
    """The lower or upper end of an interval."""
    get = attrgetter(name)
    return _if_run(lambda found: None if get(found) is None else get(found)[end])


def _ratio(above: str, below: str) -> Callable[[PlanRow], Any]:
    numbers = attrgetter(above, below)

    def ratio(found: CellForecast) -> float | None:
        over, under = numbers(found)
        return None if over is None or not under else float(over / under)

    return _if_run(ratio)


#: Every column of plan.csv and plan.parquet, in order.
PLAN_COLUMNS: tuple[PlanColumn, ...] = (
    *_axes(),
    PlanColumn(
        "blocks",
        "text",
        "numbers",
        "Blocks of the study's matrix that the cell is in, from 1",
        lambda row: " ".join(map(str, row.blocks)),
    ),
    PlanColumn(
        "runs",
        "truth",
        "yes or no",
        "Whether the study runs the cell: it fits, that is not known, or the study has `unfit: run`. What a "
        "cell takes that is left out is null",
        lambda row: row.runs,
    ),
    PlanColumn("fits", "truth", "yes or no", "`needed_gib` is at most `had_gib`", _of("fits")),
    PlanColumn(
        "needed_gib",
        "number",
        "GiB",
        "Memory that each device needs: the sum of the four that follow; null for processors, and where the "
        "model's shape is not known",
        _need("total_gib"),
    ),
    PlanColumn("weights_gib", "number", "GiB", "Of that, weights", _need("weights_gib")),
    PlanColumn("kv_cache_gib", "number", "GiB", "Of that, keys and values", _need("kv_cache_gib")),
    PlanColumn(
        "activations_gib",
        "number",
        "GiB",
        "Of that, activations: logits, attention scores and what sampling has",
        _need("activations_gib"),
    ),
    PlanColumn(
        "workspace_gib",
        "number",
        "GiB",
        "Of that, the CUDA context and workspaces of libraries",
        _need("workspace_gib"),
    ),
    PlanColumn("had_gib", "number", "GiB", "Memory that each device has", _of("memory_gib")),
    PlanColumn("nodes", "count", "count", "Nodes of the job", _of("nodes")),
    PlanColumn("gpus", "count", "count", "GPUs that are used; 0 for processors", _of("gpus")),
    PlanColumn(
        "gpus_held",
        "count",
        "count",
        "GPUs that the job keeps from others: of exclusive nodes all",
        _of("gpus_held"),
    ),
    PlanColumn(
        "host_memory_gib", "number", "GiB", "Host memory of each node of the job", _of("host_memory_gib")
    ),
    PlanColumn("batches", "count", "count", "Batches of the inference window", _run("batches")),
    PlanColumn("prompt_tokens", "count", "tokens", "Of all prompts", _run("prompt_tokens")),
    PlanColumn(
        "output_tokens",
        "count",
        "tokens",
        "Of all responses, before their end of sequence",
        _run("output_tokens"),
    ),
    PlanColumn(
        "generated_tokens",
        "count",
        "tokens",
        "Rows x steps that the engine's loop computes",
        _run("generated_tokens"),
    ),
    PlanColumn("prefill_s", "number", "s", "Time in which prompts are taken in", _phase("prefill")),
    PlanColumn(
        "walk_s",
        "number",
        "s",
        "Time of the published loop's steps through longer prompts",
        _phase("walk"),
    ),
    PlanColumn("decode_s", "number", "s", "Time in which new tokens are made", _phase("decode")),
    PlanColumn("duration_s", "number", "s", "The inference window", _run("duration_s")),
    PlanColumn(
        "duration_low_s",
        "number",
        "s",
        "Lower end of its 90 % interval; null without a calibration",
        _end("duration_range_s", 0),
    ),
    PlanColumn("duration_high_s", "number", "s", "Upper end likewise", _end("duration_range_s", 1)),
    PlanColumn(
        "allocation_duration_s",
        "number",
        "s",
        "How long the job keeps its nodes, from its start to its end: both idle baselines, loading, warm-up "
        "and window in it, waits for cool devices not. More than `job_duration_s` of a record, which has "
        "neither baselines nor the job's own start and end",
        _run("allocation_duration_s"),
    ),
    PlanColumn(
        "longest_job_s",
        "number",
        "s",
        "`allocation_duration_s` if no response ends by itself and devices cool slowly; time limits follow "
        "from it",
        _run("longest_job_s"),
    ),
    PlanColumn("power_w", "number", "W", "Of all devices, mean over the window", _run("power_w")),
    PlanColumn("energy_j", "number", "J", "Of all devices, over the window", _run("energy_j")),
    PlanColumn(
        "energy_low_j",
        "number",
        "J",
        "Lower end of its 90 % interval; null without a calibration",
        _end("energy_range_j", 0),
    ),
    PlanColumn("energy_high_j", "number", "J", "Upper end likewise", _end("energy_range_j", 1)),
    PlanColumn(
        "tokens_per_s",
        "number",
        "tokens/s",
        "`output_tokens` / `duration_s`",
        _ratio("output_tokens", "duration_s"),
    ),
    PlanColumn(
        "energy_per_token_j",
        "number",
        "J/token",
        "`energy_j` / `output_tokens`",
        _ratio("energy_j", "output_tokens"),
    ),
    PlanColumn("gpu_hours", "number", "h", "`gpus_held` over `allocation_duration_s`", _run("gpu_hours")),
    PlanColumn("node_hours", "number", "h", "`nodes` over `allocation_duration_s`", _run("node_hours")),
    PlanColumn(
        "allocation_energy_j",
        "number",
        "J",
        "Of all devices that the job holds, used or not, over `allocation_duration_s`: `energy_j`, and rest "
        "beside it. `job_energy_j` of a record is of the devices that are used, without idle baselines",
        _run("allocation_energy_j"),
    ),
    PlanColumn(
        "cost",
        "number",
        "`currency`",
        "What the whole job costs: `gpu_hours`, or without a price of these the electricity of "
        "`allocation_energy_j` with the site's PUE; null without a price",
        _run("cost"),
    ),
    PlanColumn("currency", "text", "ISO 4217", "Currency of the site's prices", lambda row: row.currency),
    PlanColumn(
        "carbon_kg",
        "number",
        "kgCO2e",
        "What `allocation_energy_j` emits, with the site's PUE; null without its factors",
        _run("carbon_kg"),
    ),
    PlanColumn(
        "notes",
        "text",
        "sentences",
        "What is assumed, and why something is unknown",
        lambda row: _one_text(row.forecast.notes),
    ),
)

#: By name.
COLUMN = {column.name: column for column in PLAN_COLUMNS}


def values(row: PlanRow) -> dict[str, Value]:
    """A row under its columns, in order."""
    return {column.name: column.value(row) for column in PLAN_COLUMNS}


def markdown() -> str:
    """The columns as a Markdown table."""
    lines = ["| column | unit | definition |", "| --- | --- | --- |"]
    lines += [f"| `{column.name}` | {column.unit} | {column.definition} |" for column in PLAN_COLUMNS]
    return "\n".join(lines)


def with_columns(page: str) -> str:
    """A page with the table of columns between its two markers replaced.

    Raises:
        ValueError: a marker is missing.
    """
    from shardwatt.schemas import with_generated  # for this page alone: rules import this module

    return with_generated(page, "plan columns", markdown())


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_columns(page.read_text(encoding="utf-8")), encoding="utf-8")
