"""The site: what a place offers, i.e. GPU types, where models and data lie, how ranks start."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from shardwatt.cell import AXIS_PATTERNS, NAME_WORDS
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.errors import SiteError
from shardwatt.sitepeak import Peak, SheetName
from shardwatt.sitepower import Dcgm, PowerLimits
from shardwatt.yamlfile import Form, StrictModel, parse_model, read_mapping

GpuName = Annotated[str, Form(AXIS_PATTERNS["gpu"], NAME_WORDS)]

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


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected one line of shell; write several lines as several entries")
    return text


ShellLine = Annotated[str, AfterValidator(_one_line)]

#: Environment variables that override a site's folders, for one shell.
FOLDER_VARIABLES = {"models": "SHARDWATT_MODELS", "data": "SHARDWATT_DATA"}


def _rising(limits_w: list[float]) -> list[float]:
    if limits_w != sorted(limits_w):
        raise ValueError("expected the lowest limit first")
    return limits_w


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
    """Host memory in GiB that a job asks of each node at its first attempt; None leaves it to Slurm."""
    memory_per_node_max_gib: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Host memory in GiB that a node has for jobs: retries ask for more, up to this. None: no growth."""
    runtime_min: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Time limit in minutes of a job's first attempt; default 120."""
    runtime_max_min: Annotated[int, Field(ge=1, strict=True)] | None = None
    """Longest time limit in minutes that the partition allows: retries ask for more, up to this.
    None: no growth."""


class GpuType(StrictModel):
    """A kind of device that cells can run on."""

    kind: Literal["cuda", "cpu"]
    """`cuda` for NVIDIA GPUs; `cpu` runs every shard as a process on the processor."""
    per_node: Annotated[int, Field(ge=1, strict=True)]
    """Devices in a node. For `cpu`: how many shards one machine may hold."""
    memory_gib: Annotated[float, Field(gt=0, strict=True)]
    """Memory of one device in GiB. For `cpu`: the machine's memory over `per_node`."""
    meter: Literal["nvml", "rapl", "estimate"] | None = None
    """Where the headline energy comes from; None: `nvml` for `cuda`; for `cpu` RAPL where it can be read,
    otherwise an estimate. `nvml` with `cpu` reads the node's GPUs whatever the ranks compute on."""
    tdp_w: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Thermal design power in W from the data sheet: of one GPU, or for `cpu` of the machine's processors
    together. Energy that cannot be measured is estimated with it; without it that is unavailable."""
    tdp_source: str | None = None
    """Where `tdp_w` comes from; written into every estimate made with it."""
    data_sheet: SheetName | None = None
    """Name of the GPU's data sheet in the catalogue below, e.g. `a100-sxm-80gb`: utilisation is measured
    against its memory bandwidth and operations a second, and unknown without them."""
    peak: Peak | None = None
    """Figures of the site's own instead, for a device without a data sheet there, such as a processor."""
    compute_capability: Annotated[str, Form(r"[0-9]{1,2}\.[0-9]", "two numbers such as 8.0")] | None = None
    """NVIDIA's compute capability, e.g. '7.0' for a V100: `shardwatt check-site` compares torch with it, and
    bf16 is refused below 8.0. None: that of the `data_sheet`."""
    power_limits_w: (
        Annotated[
            list[Annotated[float, Field(gt=0, strict=True)]],
            Field(min_length=2, max_length=2),
            AfterValidator(_rising),
        ]
        | None
    ) = None
    """Lowest and highest power limit in W that one GPU takes (`nvidia-smi -q -d POWER`): a study's `cap`
    outside is refused in the plan. None: the driver's word on the node counts."""
    environment: list[ShellLine] = []
    """Lines of shell that make a node ready for this type, e.g. `module load cuda`, `source …/bin/activate`.
    Ranks and meters run after them, with the `python` that they leave first on PATH."""
    slurm: SlurmWords | None = None
    """What jobs on this type ask of Slurm; what is left out is taken from the site's `slurm`."""

    @model_validator(mode="after")
    def _meter_fits(self) -> GpuType:
        if self.kind == "cuda" and self.meter in ("rapl", "estimate"):
            raise ValueError(
                f"meter: {self.meter} reads processors; expected nvml, or no `meter`, with kind: cuda"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _capability_of_its_sheet(cls, content: Any) -> Any:
        """Take the compute capability from the data sheet, where the type does not say it."""
        if not isinstance(content, Mapping) or content.get("compute_capability") is not None:
            return content
        sheet = DATA_SHEETS.get(str(content.get("data_sheet")))
        if sheet is None or sheet.compute_capability is None:
            return content
        return {**content, "compute_capability": sheet.compute_capability}

    @model_validator(mode="after")
    def _sheet_fits(self) -> GpuType:
        """Find a data sheet that cannot be this type's."""
        if self.data_sheet is None:
            return self
        sheet = DATA_SHEETS[self.data_sheet]
        if self.peak is not None:
            raise ValueError("data_sheet and peak: found both; expected one of them")
        if self.kind == "cpu":
            raise ValueError(
                f"data_sheet: {sheet.name} is a GPU's; expected figures in `peak` with kind: cpu"
            )
        if self.compute_capability != sheet.compute_capability:
            raise ValueError(
                f"compute_capability: found {self.compute_capability}, and data_sheet {sheet.name} has "
                f"{sheet.compute_capability or 'none'}; one of them is another GPU's"
            )
        if self.memory_gib > sheet.memory_gib:
            raise ValueError(
                f"memory_gib: found {self.memory_gib:g}, and data_sheet {sheet.name} has "
                f"{sheet.memory_gib:g}; one of them is another GPU's"
            )
        return self


class Site(StrictModel):
    """What the place offers. Nothing about it stands in a study."""

    name: Annotated[str, Form(r"[a-z0-9][a-z0-9-]*", "lower-case letters, digits and -")]
    """Short name of the place, written into every record."""
    launcher: Literal["local", "slurm"]
    """How ranks start: `local` uses submitit on this machine; `slurm` uses srun on a job's nodes."""
    models: Path
    """Folder with a folder for each model, in Meta's layout or Hugging Face's."""
    data: Path
    """Folder with the data sets' files; what is missing is downloaded there."""
    gpus: Annotated[dict[GpuName, GpuType], Field(min_length=1)]
    """The GPU types, under the names that studies use."""
    threads_per_rank: Annotated[int, Field(ge=1, strict=True)] | None = None
    """CPU threads of one rank; None shares the machine's processors evenly among its ranks."""
    start_timeout_s: Annotated[float, Field(gt=0, strict=True)] = 300.0
    """Longest time in s from starting the ranks until all have met."""
    collective_timeout_s: Annotated[float, Field(gt=0, strict=True)] = 600.0
    """Longest time in s that a rank waits for the others before the cell fails."""
    slurm: SlurmWords | None = None
    """What all jobs ask of Slurm."""
    dcgm: Dcgm | None = None
    """DCGM beside NVML; None: not asked."""
    power_limits: PowerLimits | None = None
    """Who sets power limits; None: nobody, and studies with a `cap` are refused."""
    network_interface: (
        Annotated[str, Form(r"[A-Za-z0-9][A-Za-z0-9_.-]*", "an interface such as ib0")] | None
    ) = None
    """Network interface between the nodes for NCCL and gloo; None takes the one that carries the address
    of the node's host name."""
    staging: Path | None = None
    """Folder on each node's own disk to which a rank copies the files that its slices lie in before it
    loads them; None reads them from where they lie."""
    stop_before_limit_s: Annotated[float, Field(gt=0, strict=True)] = 120.0
    """Time in s before a job's time limit at which the cell ends by itself, with what it has put aside.
    Slurm's own warning to the ranks comes after half of it: from 120 s on surely later."""
    max_gpu_hours: Annotated[float, Field(gt=0, strict=True)] | None = None
    """Most GPU hours that one run of Snakemake may submit: the first attempts of its cells, each counted
    with its time limit and all GPUs that it holds, of exclusive nodes all. None: no limit."""
    leftover_jobs: Literal["wait", "cancel"] = "wait"
    """What a run does with jobs of an earlier, killed run that still go on for its cells."""

    def words(self, gpu: str) -> SlurmWords:
        """What jobs on a GPU type ask of Slurm: the type's own words over the site's."""
        merged: dict[str, Any] = {}
        for words in (self.slurm, self.gpus[gpu].slurm):
            if words is not None:
                merged |= {key: value for key, value in words.model_dump().items() if value is not None}
        return SlurmWords(**merged)

    @model_validator(mode="after")
    def _check_words(self) -> Site:
        """Check what jobs of each type ask of Slurm, site's and type's words together."""
        if self.launcher != "slurm":
            return self
        for gpu, kind in self.gpus.items():
            words = self.words(gpu)
            where = f"gpus.{gpu}.slurm"
            if kind.kind == "cuda" and words.gres is None and words.exclusive is False:
                raise ValueError(
                    f"{where}: no gres, and exclusive is false; expected the GPUs' name in Slurm, e.g. "
                    "gres: gpu:v100, or whole nodes (exclusive: true)"
                )
            for low, high, unit in (
                ("memory_per_node_gib", "memory_per_node_max_gib", "GiB"),
                ("runtime_min", "runtime_max_min", "min"),
            ):
                first, most = getattr(words, low), getattr(words, high)
                if low == "runtime_min":
                    first = first or DEFAULT_RUNTIME_MIN
                if most is not None and (first is None or most < first):
                    found = "no" if first is None else f"{first:g} {unit} of"
                    raise ValueError(
                        f"{where}.{high}: found {most:g} {unit}, and {found} {low}; "
                        f"expected a {low} of at most {most:g}"
                    )
            limit_s = 60 * (words.runtime_min or DEFAULT_RUNTIME_MIN)
            if self.stop_before_limit_s >= limit_s:
                raise ValueError(
                    f"stop_before_limit_s: found {self.stop_before_limit_s:g} s, and a time limit of "
                    f"{limit_s:g} s for {gpu}; expected less, so that a cell can run at all"
                )
        return self


def load_site(paths: Sequence[Path]) -> Site:
    """Read a site from its files; top-level keys of later files replace those of earlier ones.

    Raises:
        SiteError: no file is given, or one is wrong.
    """
    if not paths:
        raise SiteError(
            "no site: expected a site file; run with --profile profiles/local, or pass one with --configfile"
        )
    content: dict[str, Any] = {}
    for path in paths:
        content |= read_mapping(path, SiteError)
    return parse_site(content, ", ".join(str(path) for path in paths))


def parse_site(content: Mapping[str, Any], source: object) -> Site:
    """Check a site's content; `SHARDWATT_MODELS` and `SHARDWATT_DATA` replace its folders.

    Raises:
        SiteError: a key is unknown or missing, or a value is not allowed.
    """
    folders = {
        key: os.environ[variable] for key, variable in FOLDER_VARIABLES.items() if os.environ.get(variable)
    }
    return parse_model(Site, {**content, **folders}, source, SiteError)
