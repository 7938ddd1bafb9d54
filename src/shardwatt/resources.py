"""What a cell's job asks of Slurm: nodes, devices, CPUs, memory and time, in the executor's words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from shardwatt.cell import Cell
from shardwatt.errors import SiteError
from shardwatt.jobshape import job_shape
from shardwatt.site import DEFAULT_RUNTIME_MIN, Site, SlurmWords

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


def cell_resources(site: Site, cell: Cell, attempt: int) -> dict[str, int | str]:
    """Resources of a cell's job, for snakemake-executor-plugin-slurm; what the site leaves out is absent.

    sbatch is asked for one task a node, with the CPUs of all its ranks: so each node gives the same number,
    which tasks spread by Slurm would not ensure. The ranks are started by the supervisor's own srun;
    an empty `mpi` says that the executor need not wrap it in another.

    Args:
        site: whose words are used.
        cell: what is to run.
        attempt: 1 for the first; memory and time grow with each.

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
        "mem_mb": _memory_mb(words, attempt),
        "runtime": _runtime_min(words, attempt),
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


def _memory_mb(words: SlurmWords, attempt: int) -> int | None:
    if words.memory_per_node_gib is None:
        return None
    most_gib = words.memory_per_node_max_gib or words.memory_per_node_gib
    return int(min(words.memory_per_node_gib * MEMORY_GROWTH ** (attempt - 1), most_gib) * 1024)


def _runtime_min(words: SlurmWords, attempt: int) -> int:
    first = words.runtime_min or DEFAULT_RUNTIME_MIN
    return min(first * int(RUNTIME_GROWTH ** (attempt - 1)), words.runtime_max_min or first)


def gpu_hours(site: Site, cell: Cell) -> float:
    """GPU hours that a cell's first attempt may take: its time limit with all GPUs that it holds.

    Zero for a type without GPUs.
    """
    kind, words = site.gpus[cell.gpu], site.words(cell.gpu)
    if kind.kind == "cpu" and words.gres is None:
        return 0.0
    shape = job_shape(site, cell.gpu, cell.shards)
    held = shape.ranks_per_node if words.exclusive is False else kind.per_node
    return shape.nodes * held * _runtime_min(words, 1) / 60


def describe_job(site: Site, study: str, cell: Cell, attempt: int) -> str:
    """A cell's job in two lines: what it asks for, and which cell it is."""
    words = site.words(cell.gpu)
    hours, minutes = divmod(_runtime_min(words, attempt), 60)
    memory_mb = _memory_mb(words, attempt)
    parts = [
        _place(site, cell),
        f"partition {words.partition or '(the default one)'}",
        f"time {hours}:{minutes:02} h",
        *([] if memory_mb is None else [f"{memory_mb / 1024:g} GiB a node"]),
        *([] if words.exclusive is not False else ["nodes shared"]),
        *([f"attempt {attempt}"] if attempt > 1 else []),
    ]
    return f"{study}: {', '.join(parts)}\n    {cell.path}"


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run is about to submit.

    Attributes:
        cells: number of cells.
        gpu_hours: of all their first attempts.
        limit: most GPU hours that are agreed; None: no limit.
        parts: cells of one kind and their GPU hours together, by their name, in the order of the plan.
    """

    cells: int
    gpu_hours: float
    limit: float | None
    parts: dict[str, tuple[int, float]]

    def __str__(self) -> str:
        cells = "1 cell" if self.cells == 1 else f"{self.cells} cells"
        text = f"{cells} to submit, at most {_hours(self.gpu_hours)} GPU hours at the first attempt"
        if self.limit is not None and self.gpu_hours > self.limit:
            return f"{text}: more than max_gpu_hours, {self.limit:g}; a run will be refused"
        return text if self.limit is None else f"{text} (max_gpu_hours: {self.limit:g})"

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
            f"nothing was submitted. Ask for fewer targets, lower runtime_min, or agree to more {more}"
            + "".join(f"\n    {_hours(hours)} h: {count} x {name}" for name, (count, hours) in parts)
        )


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


def budget(site: Site, cells: Iterable[tuple[str, Cell]], limit: float | None) -> Budget:
    """Sum up what cells may take.

    Args:
        site: where they run.
        cells: those that are to run, each with its study.
        limit: most GPU hours that are agreed; None: no limit.
    """
    parts: dict[str, tuple[int, float]] = {}
    for study, cell in cells:
        name = f"{study}: {cell.model} on {_place(site, cell)}"
        count, hours = parts.get(name, (0, 0.0))
        parts[name] = count + 1, hours + gpu_hours(site, cell)
    return Budget(
        sum(count for count, _ in parts.values()), sum(hours for _, hours in parts.values()), limit, parts
    )


def _place(site: Site, cell: Cell) -> str:
    shape = job_shape(site, cell.gpu, cell.shards)
    return f"{shape.nodes} {'node' if shape.nodes == 1 else 'nodes'} x {shape.ranks_per_node} {cell.gpu}"
