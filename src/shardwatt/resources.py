"""What a cell's job asks of Slurm: nodes, devices, CPUs, memory and time, in the executor's words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from shardwatt.cell import Cell
from shardwatt.engines import ENGINES
from shardwatt.errors import SiteError
from shardwatt.jobshape import gpus_held, job_shape
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.columns import PlanRow
from shardwatt.plan.digits import duration, energy_unit
from shardwatt.plan.sentences import warnings
from shardwatt.plan.totals import Totals, totals
from shardwatt.site import Site
from shardwatt.sitewords import (
    DEFAULT_MEMORY_FACTOR,
    DEFAULT_RUNTIME_FACTOR,
    DEFAULT_RUNTIME_FLOOR_MIN,
    DEFAULT_RUNTIME_MIN,
    TIME_KEYS,
    SlurmWords,
)
from shardwatt.units import rounded

#: What a retry asks for, over the attempt before it, up to the site's most.
MEMORY_GROWTH = 1.5
RUNTIME_GROWTH = 2

#: The executor's names for what a site may say or leave out.
_SAID = {
    "slurm_partition": "partition",
    "slurm_account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "gres": "gres",
    "mem_mb": "memory_per_node_gib",
}


def resource_names(site: Site) -> list[str]:
    """Names that `cell_resources` gives for one of the site's GPU types at least."""
    types = [site.words(gpu) for gpu in site.gpus]
    said = [name for name, key in _SAID.items() if any(getattr(words, key) is not None for words in types)]
    tasks = ["tasks"] if any(words.gres is None for words in types) else []
    return ["mpi", "nodes", *tasks, "cpus_per_task", "runtime", "slurm_extra", *said]


def cell_resources(
    site: Site, cell: Cell, attempt: int, forecast: CellForecast | None = None
) -> dict[str, int | str]:
    """Resources of a cell's job, for snakemake-executor-plugin-slurm; what the site leaves out is absent.

    sbatch is asked for one task a node, with the CPUs of all its ranks: so each node gives the same number,
    which tasks spread by Slurm would not ensure. The ranks are started by the supervisor's own srun;
    an empty `mpi` says that the executor need not wrap it in another.

    Args:
        site: whose words are used.
        cell: what is to run.
        attempt: 1 for the first; memory and time grow with each.
        forecast: what the plan says of the cell; None: nothing, and the site's own figures alone count.

    Returns:
        By the executor's names; `mem_mb` in MiB a node, `runtime` in minutes, `gres` devices a node.

    Raises:
        SiteError: the shards have no layout on the site's nodes.
    """
    words = site.words(cell.gpu)
    shape = job_shape(site, cell.gpu, cell.shards)
    found: dict[str, int | str | None] = {
        "mpi": "",
        "slurm_partition": words.partition,
        "slurm_account": words.account,
        "qos": words.qos,
        "constraint": words.constraint,
        "nodes": shape.nodes,
        "cpus_per_task": shape.ranks_per_node * (words.cpus_per_rank or 1),
        "mem_mb": _memory_mb(words, attempt, forecast),
        "runtime": _runtime_min(site, words, attempt, forecast),
        "slurm_extra": " ".join(_extra(site, words)),
    }
    if words.gres is None:
        # Without GPUs by name the executor asks for one task, and Slurm then gives one node.
        found["tasks"] = shape.nodes
    else:
        found["gres"] = f"{words.gres}:{shape.ranks_per_node}"
    return {name: value for name, value in found.items() if value is not None}


def _extra(site: Site, words: SlurmWords) -> list[str]:
    # The supervisor ends the cell stop_before_limit_s before the limit, since it alone knows why. This
    # signal, which reaches the ranks, is for a supervisor that hangs; Slurm may send it 60 s early.
    signal_s = max(1, int(site.stop_before_limit_s / 2))
    extra = words.extra or []
    return [
        *(["--exclusive"] if words.exclusive is not False else []),
        f"--signal=TERM@{signal_s}",
        # A job that Slurm starts again keeps what its first start said.
        "--open-mode=append",
        # The executor excludes all nodes of a job that lost one, and a small partition would have none left;
        # the last --exclude counts. Slurm itself does not use a node that is down.
        *([] if any(word.startswith("--exclude=") for word in extra) else ["--exclude="]),
        *extra,
    ]


def _memory_mb(words: SlurmWords, attempt: int, forecast: CellForecast | None) -> int | None:
    """Memory of a node in MiB: what the site says, or the plan where that is more; None: not asked for."""
    if words.memory_per_node_gib is None:
        return None
    first_gib = words.memory_per_node_gib
    if forecast is not None and forecast.host_memory_gib is not None:
        planned_gib = (words.memory_factor or DEFAULT_MEMORY_FACTOR) * forecast.host_memory_gib
        first_gib = planned_gib if _is_rehearsed(forecast) else max(first_gib, planned_gib)
    wanted_gib = first_gib * MEMORY_GROWTH ** (attempt - 1)
    return int(min(wanted_gib, words.most_memory_gib or wanted_gib) * 1024)


def _runtime_min(site: Site, words: SlurmWords, attempt: int, forecast: CellForecast | None) -> int:
    """Time limit in minutes: what the plan predicts with the site's factor, or what the site says itself.

    The plan's is that of responses none of which ends by itself: how soon a model ends its own is a guess.
    """
    first = words.runtime_min or DEFAULT_RUNTIME_MIN
    is_planned = forecast is not None and (words.has_planned_time or _is_rehearsed(forecast))
    if is_planned and forecast is not None and forecast.longest_job_s is not None:
        factor = words.runtime_factor or DEFAULT_RUNTIME_FACTOR
        # The cell ends itself so long before its limit.
        wanted_s = factor * forecast.longest_job_s + site.stop_before_limit_s
        floor_min = words.runtime_floor_min or DEFAULT_RUNTIME_FLOOR_MIN
        first = max(math.ceil(wanted_s / 60), floor_min)
    return min(first * int(RUNTIME_GROWTH ** (attempt - 1)), words.runtime_max_min or first)


def _is_rehearsed(forecast: CellForecast) -> bool:
    """Whether the job runs no model: what a site says of those that do is too much for it."""
    return ENGINES[forecast.cell.engine].simulates is not None


def describe_job(
    site: Site, study: str, cell: Cell, attempt: int, forecast: CellForecast | None = None
) -> str:
    """A cell's job in two lines: what it asks for, how much of it the plan predicts, and which cell it is."""
    words = site.words(cell.gpu)
    memory_mb = _memory_mb(words, attempt, forecast)
    planned_s = None if forecast is None else forecast.allocation_duration_s
    parts = [
        _place(site, cell.gpu, cell.shards),
        f"partition {words.partition or '(the default one)'}",
        f"time {_clock(60 * _runtime_min(site, words, attempt, forecast))} h",
        *([] if planned_s is None else [f"plan {_clock(planned_s)} h"]),
        *([] if memory_mb is None else [f"{round(memory_mb / 1024, 1):g} GiB a node"]),
        *([] if words.exclusive is not False else ["nodes shared"]),
        *([f"attempt {attempt}"] if attempt > 1 else []),
    ]
    return f"{study}: {', '.join(parts)}\n    {cell.path}"


def _clock(duration_s: float) -> str:
    """A time as hours and minutes, begun ones counted."""
    hours, minutes = divmod(math.ceil(duration_s / 60), 60)
    return f"{hours}:{minutes:02}"


def _place(site: Site, gpu: str, shards: int) -> str:
    shape = job_shape(site, gpu, shards)
    return f"{shape.nodes} {'node' if shape.nodes == 1 else 'nodes'} x {shape.ranks_per_node} {gpu}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run is about to submit.

    Attributes:
        cells: number of cells.
        gpu_hours: that all their first attempts may take: their time limits with all GPUs that they hold; of
            types without GPUs none.
        limit: most GPU hours that are agreed; None: no limit.
        parts: cells of one kind and their GPU hours together, by their name, in the order of the plan.
        predicted: what the plan says that they take together; None without forecasts.
        simulated: the same of those of them that are simulated.
        currency: of their cost; None where the site has no prices.
        late: how many will run into the time limit of their first attempt by the plan.
        warnings: what the plan assumes that weighs most.
    """

    cells: int
    gpu_hours: float
    limit: float | None
    parts: dict[str, tuple[int, float]]
    predicted: Totals | None = None
    simulated: Totals | None = None
    currency: str | None = None
    late: int = 0
    warnings: Sequence[str] = ()

    def __str__(self) -> str:
        cells = "1 cell" if self.cells == 1 else f"{self.cells} cells"
        text = f"{cells} to submit, at most {_hours(self.gpu_hours)} GPU hours at the first attempt"
        if self.limit is not None and self.gpu_hours > self.limit:
            return f"{text}: more than max_gpu_hours, {self.limit:g}; a run will be refused"
        return text if self.limit is None else f"{text} (max_gpu_hours: {self.limit:g})"

    def outlook(self) -> str | None:
        """Warnings, what the plan predicts, and what will run into a limit, a line each; None: nothing."""
        if self.predicted is None or self.simulated is None:
            return None
        words: dict[str, Callable[[float], str]] = {
            "allocation_duration_s": lambda value: f"{duration(value)} of jobs one after the other",
            "gpu_hours": lambda value: f"{rounded(value)} GPU hours",
            "energy_j": _energy,
            "cost": lambda value: f"{rounded(value)} {self.currency}",
            "carbon_kg": lambda value: f"{rounded(value)} kgCO2e",
        }
        # Nothing of what simulated cells stand for is spent: of the real ones all may be known.
        parts = [
            f"{'at least ' if found.unknown > simulated.unknown else ''}{say(found.value)}"
            f"{' (simulated cells aside)' if simulated.unknown else ''}"
            for found, simulated, say in (
                (self.predicted.sums[name], self.simulated.sums[name], say) for name, say in words.items()
            )
            if found.value
        ]
        lines = [f"warning: {text}" for text in self.warnings]
        lines += [f"the plan predicts {', '.join(parts)}"] if parts else []
        if self.late:
            cells = "1 cell takes" if self.late == 1 else f"{self.late} cells take"
            lines.append(f"{cells} longer by the plan than its first time limit: see runtime_max_min")
        return "\n".join(lines) or None

    def check(self, more: str = "for this run: --config max_gpu_hours=N, last on the line") -> None:
        """Refuse to go on over the limit.

        Args:
            more: how to agree to more.

        Raises:
            SiteError: says by how much, and with which cells.
        """
        if self.limit is None or self.gpu_hours <= self.limit:
            return
        parts = sorted(self.parts.items(), key=lambda part: (-part[1][1], part[0]))
        raise SiteError(
            f"this run may take {_hours(self.gpu_hours)} GPU hours, and max_gpu_hours is {self.limit:g}; "
            f"nothing was submitted. Ask for fewer targets, lower {TIME_KEYS}, or agree to more {more}"
            + "".join(f"\n    {_hours(hours)} h: {count} x {name}" for name, (count, hours) in parts)
        )


def _energy(energy_j: float) -> str:
    unit = energy_unit(energy_j)
    return f"{rounded(energy_j / unit.holds)} {unit.name}"


def _hours(hours: float) -> str:
    return f"{round(hours, 1):.12g}"


def agreed_gpu_hours(value: object) -> float | None:
    """Most GPU hours that a run may take, from the site or the command line; None: no limit.

    Raises:
        SiteError: it is no positive number.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SiteError(f"max_gpu_hours: found {value!r}; expected a number of GPU hours above 0")
    return float(value)


def budget(
    site: Site,
    cells: Iterable[tuple[str, Cell]],
    limit: float | None,
    forecast: Callable[[str, Cell], CellForecast | None] = lambda study, cell: None,
) -> Budget:
    """Sum up what cells may take, and what the plan says that they will.

    Args:
        site: where they run.
        cells: those that are to run, each with its study.
        limit: most GPU hours that are agreed; None: no limit.
        forecast: of a study's cell; None: the plan says nothing of it.
    """
    # Cells are many; their GPU types and numbers of shards are few.
    words, held = lru_cache(None)(site.words), lru_cache(None)(partial(gpus_held, site))
    place = lru_cache(None)(partial(_place, site))
    parts: dict[str, tuple[int, float]] = {}
    rows, late = [], 0
    currency = None if site.prices is None else site.prices.currency
    for study, cell in cells:
        found = forecast(study, cell)
        limit_min = _runtime_min(site, words(cell.gpu), 1, found)
        hours = held(cell.gpu, cell.shards) * limit_min / 60
        name = f"{study}: {cell.model} on {place(cell.gpu, cell.shards)}"
        count, others = parts.get(name, (0, 0.0))
        parts[name] = count + 1, others + hours
        if found is not None:
            rows.append(PlanRow(found, (), runs=True, currency=currency))
            late += _is_late(site, limit_min, found)
    return Budget(
        sum(count for count, _ in parts.values()),
        sum(hours for _, hours in parts.values()),
        limit,
        parts,
        totals("", rows) if rows else None,
        totals("", [row for row in rows if _is_rehearsed(row.forecast)]) if rows else None,
        currency,
        late,
        warnings(rows),
    )


def _is_late(site: Site, limit_min: int, forecast: CellForecast) -> bool:
    """Whether an attempt with this time limit ends itself before it is done, by the plan."""
    limit_s = 60 * limit_min - site.stop_before_limit_s
    return forecast.allocation_duration_s is not None and forecast.allocation_duration_s > limit_s
