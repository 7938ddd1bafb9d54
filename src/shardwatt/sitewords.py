"""What a site's jobs ask of Slurm, in the words of a site file."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from shardwatt.yamlfile import Form, StrictModel

NAME = r"[A-Za-z0-9_][A-Za-z0-9_.,-]*"
NAME_IN_SLURM = "letters, digits, _ . , and -"

#: sbatch's options that are not a site's to add, by what to use instead. Snakemake's executor writes most.
MANAGED_OPTIONS = {
    "the key `partition`": ("partition",),
    "the key `account`": ("account",),
    "the key `qos`": ("qos",),
    "the key `constraint`": ("constraint",),
    "the key `exclusive`": ("exclusive", "oversubscribe"),
    "the key `gres`": ("gres", "gpus", "gpus-per-node", "gpus-per-socket", "gpus-per-task"),
    "`shards` in the study and `per_node` of the GPU type": (
        *("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu", "ntasks-per-core", "ntasks-per-socket"),
        "tasks-per-node",
    ),
    "the key `cpus_per_rank`": ("cpus-per-task", "cpus-per-gpu"),
    "the keys `memory_per_node_gib` and `memory_per_node_max_gib`": ("mem", "mem-per-cpu", "mem-per-gpu"),
    "the keys `runtime_min` and `runtime_max_min`": ("time",),
    "the site's key `stop_before_limit_s`": ("signal",),
    "the GPU type's key `environment`": ("export", "export-file"),
    "`slurm-requeue` in the profile": ("requeue", "no-requeue"),
    "`slurm-jobname-prefix` in the profile": ("job-name",),
    "`slurm-logdir` in the profile": ("output", "error", "open-mode"),
    "a site file for each cluster": ("clusters",),
    "the folder in which Snakemake runs": ("chdir",),
    "`snakemake -n` or `shardwatt check-site`": ("test-only",),
    "nothing: Snakemake's executor needs it": ("array", "comment", "parsable", "wait", "wrap"),
}

#: The executor would take these ends of a word for an option of its own, and refuse every job.
_TAKEN_FOR_OPTIONS = re.compile(r"-J|-[oeDApnctCN]$")

#: Time limit in minutes where a site names none.
DEFAULT_RUNTIME_MIN = 120

#: What the plan's forecasts are multiplied with before they become limits, and the shortest of these, where a
#: site does not say it.
DEFAULT_RUNTIME_FACTOR = 2.0
DEFAULT_RUNTIME_FLOOR_MIN = 10
DEFAULT_MEMORY_FACTOR = 1.5

#: Keys that make a time limit longer or shorter, in words.
TIME_KEYS = "runtime_factor and runtime_floor_min (runtime_min where the plan does not set the limit)"


def _unmanaged(word: str) -> str:
    """A word for sbatch that is a site's to add; sbatch takes beginnings of an option's name for it."""
    name = word.removeprefix("--").partition("=")[0]
    for instead, options in MANAGED_OPTIONS.items():
        if any(option.startswith(name) for option in options):
            raise ValueError(f"sbatch's --{name} is not for `extra`; use {instead}")
    if _TAKEN_FOR_OPTIONS.search(word):
        raise ValueError(
            "expected no -J and no end such as -n: Snakemake's executor takes it for an option of sbatch"
        )
    return word


class SlurmWords(StrictModel):
    """What jobs ask of Slurm; a GPU type's own words replace the site's, key by key."""

    partition: Annotated[str, Form(NAME, NAME_IN_SLURM)] | None = None
    """Partition; None leaves it to Slurm."""
    account: Annotated[str, Form(NAME, NAME_IN_SLURM)] | None = None
    """Account to charge; None leaves it to Slurm."""
    qos: Annotated[str, Form(NAME, NAME_IN_SLURM)] | None = None
    """Quality of service."""
    gres: (
        Annotated[str, Form(r"gpu(:[A-Za-z0-9_.]+)?", "gpu or gpu:TYPE; for a type with a hyphen: gpu")]
        | None
    ) = None
    """Name of the GPUs without their number, e.g. `gpu:v100`; None asks for whole nodes by constraint
    alone, where Slurm knows no GPUs; where it does, steps of a job see only those that were asked for.
    A type with a hyphen does not work: use `gpu` and a constraint."""
    constraint: Annotated[str, Form(r"[A-Za-z0-9_.|&()\[\]*-]+", "features, joined by & or |")] | None = None
    """Features that nodes must have, e.g. `a100&nvlink`."""
    exclusive: bool | None = None
    """Whether a job has its nodes to itself; default: yes, because neighbours spoil watts and seconds."""
    extra: (
        list[
            Annotated[
                str,
                Form(r"--[a-z][a-z-]+(=[A-Za-z0-9=:,._+/@%-]+)?", "a long option such as --nice=10"),
                AfterValidator(_unmanaged),
            ]
        ]
        | None
    ) = None
    """Further words for sbatch, e.g. `--reservation=paper`; those of a GPU type replace the site's."""
    nodes: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Nodes that there are; a cell that needs more is refused in the plan. None: not known."""
    cpus_per_rank: Annotated[int, Field(ge=1, strict=True)] | None = None
    """CPUs that each rank is bound to; None: the job asks for one a rank, and the ranks share all that it
    gets, of exclusive nodes all there are."""
    memory_per_node_gib: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Host memory in GiB that a job asks of each node at its first attempt, or more where the plan says so
    and `memory_per_node_max_gib` allows it; None leaves it to Slurm."""
    memory_per_node_max_gib: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Host memory in GiB that a node has for jobs: retries ask for more, up to this. None: no growth."""
    memory_factor: Annotated[float, Field(ge=1, strict=True)] | None = None
    """What the plan's host memory is multiplied with; default 1.5."""
    runtime_min: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Time limit in minutes of a job's first attempt; default 120. With `runtime_factor` or
    `runtime_floor_min` only of jobs whose time the plan does not know."""
    runtime_max_min: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Longest time limit in minutes that the partition allows: retries ask for more, up to this.
    None: no growth."""
    runtime_factor: Annotated[float, Field(ge=1, strict=True)] | None = None
    """A job's time limit over the time that the plan predicts for it if no response ends by itself; default
    2. It is used where this key, or `runtime_floor_min`, is given, or no `runtime_min` is."""
    runtime_floor_min: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Shortest time limit in minutes that is made so; default 10."""

    @property
    def most_memory_gib(self) -> float | None:
        """Most host memory in GiB that a job ever asks of a node; None: it does not ask."""
        if self.memory_per_node_gib is None:
            return None
        return self.memory_per_node_max_gib or self.memory_per_node_gib

    @property
    def has_planned_time(self) -> bool:
        """Whether the plan sets time limits: not where a site says nothing but a limit of its own."""
        return self.runtime_min is None or (self.runtime_factor, self.runtime_floor_min) != (None, None)
