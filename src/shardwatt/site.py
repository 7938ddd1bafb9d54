"""The site: what a place offers, i.e. GPU types, where models and data lie, how ranks start."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from shardwatt.cell import AXIS_PATTERNS, NAME_WORDS
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.errors import SiteError
from shardwatt.sitepeak import Peak, SheetName
from shardwatt.siteplan import (
    Calibration,
    CalibrationFile,
    CalibrationKey,
    Carbon,
    LinkFigures,
    Links,
    Price,
    Prices,
    calibration_file,
    calibration_problem,
)
from shardwatt.sitepower import Dcgm, PowerLimits

# What jobs ask of Slurm is part of a site, and so offered from here too.
from shardwatt.sitewords import DEFAULT_RUNTIME_MIN as DEFAULT_RUNTIME_MIN
from shardwatt.sitewords import MANAGED_OPTIONS as MANAGED_OPTIONS
from shardwatt.sitewords import SlurmWords as SlurmWords
from shardwatt.yamlfile import Form, StrictModel, parse_model, read_mapping

GpuName = Annotated[str, Form(AXIS_PATTERNS["gpu"], NAME_WORDS)]


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected one line of shell; write several lines as several entries")
    return text


ShellLine = Annotated[str, AfterValidator(_one_line)]

#: Environment variables that override a site's folders, for one shell.
FOLDER_VARIABLES = {"models": "SHARDWATT_MODELS", "data": "SHARDWATT_DATA"}

#: What counts as said where it is not, when limits are compared with the most that there is: a default above
#: that is cut to it.
_UNSAID = {"runtime_min": 1, "runtime_floor_min": 1}


def _rising(limits_w: list[float]) -> list[float]:
    if limits_w != sorted(limits_w):
        raise ValueError("expected the lowest limit first")
    return limits_w


class GpuType(StrictModel):
    """A kind of device that cells can run on."""

    kind: Literal["cuda", "cpu"]
    """`cuda` for NVIDIA GPUs; `cpu` runs every shard as a process on the processor."""
    per_node: Annotated[int, Field(ge=1, le=1024, strict=True)]
    """Devices in a node. For `cpu`: how many shards one machine may hold."""
    memory_gib: Annotated[float, Field(gt=0, strict=True)]
    """Memory of one device in GiB. For `cpu`: the machine's memory over `per_node`."""
    cores_per_node: Annotated[int, Field(ge=1, strict=True)] | None = None
    """For `cpu`: cores of a machine; the plan gives a rank as much of `peak` and `tdp_w` as it has of them.
    None: with launcher `local` those of this machine; on Slurm not known, and the plan does without both."""
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
    outside is refused in the plan. None: only what no such board takes is, and the driver's word on the node
    counts."""
    environment: list[ShellLine] = []
    """Lines of shell that make a node ready for this type, e.g. `module load cuda`, `source …/bin/activate`.
    Ranks and meters run after them, with the `python` that they leave first on PATH."""
    slurm: SlurmWords | None = None
    """What jobs on this type ask of Slurm; what is left out is taken from the site's `slurm`."""
    links: Links | None = None
    """What ranks on this type exchange over; what is left out is taken from the site's `links`."""
    price_gpu_hour: Price | None = None
    """Price of an hour of one GPU of this type, or for `cpu` of one of the `per_node` shares of a machine, in
    the currency of the site's `prices`; None: theirs of a GPU hour, which processors have not."""

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
    def _peak_fits(self) -> GpuType:
        if self.peak is not None and (problem := self.peak.problem(self.kind, self.tdp_w)):
            raise ValueError(f"peak.{problem}")
        return self

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
        least_w = max(sheet.idle_w, sheet.power_min_w or 0.0)
        if self.tdp_w is not None and self.tdp_w <= least_w:
            raise ValueError(
                f"tdp_w: found {self.tdp_w:g}; expected more than {least_w:g}, the least that data_sheet "
                f"{sheet.name} draws at rest or takes as a limit"
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
    """Who sets power limits; None: nobody, and studies with a `cap` are planned, but not run."""
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
    links: Links | None = None
    """What ranks exchange over, for the plan; None: what data sheets say, otherwise stated assumptions."""
    prices: Prices | None = None
    """What time and energy cost; None: the plan names no price."""
    pue: Annotated[float, Field(ge=1, le=10, strict=True)] | None = None
    """Power usage effectiveness: energy of the whole computing centre over that of its machines; for the
    price of electricity and for carbon. None: neither is known."""
    carbon: Carbon | None = None
    """What a kWh emits; None: the plan names no carbon."""
    calibration: dict[CalibrationKey, Calibration] = {}
    """Factors fitted to finished cells, by GPU type and engine; `shardwatt calibrate` writes them into
    STEM.calibration.yaml beside the site's file STEM.yaml, from where they are read too."""

    def words(self, gpu: str) -> SlurmWords:
        """What jobs on a GPU type ask of Slurm: the type's own words over the site's."""
        own = self.gpus[gpu].slurm
        if self.slurm is None or own is None:
            return own or self.slurm or SlurmWords()
        return self.slurm.model_copy(update=own.model_dump(exclude_none=True))

    def link(self, gpu: str, where: Literal["inside", "between"]) -> LinkFigures | None:
        """What ranks on a GPU type exchange over: the type's own figures, or the site's; None: not said."""
        for links in (self.gpus[gpu].links, self.links):
            figures: LinkFigures | None = getattr(links, where, None)
            if figures is not None:
                return figures
        return None

    def gives_gpus(self, gpu: str) -> bool:
        """Whether jobs on a type hold GPUs: on processors where Slurm hands some out beside them."""
        return self.gpus[gpu].kind == "cuda" or self.words(gpu).gres is not None

    def price_gpu_hour(self, gpu: str) -> float | None:
        """Price of an hour of one device of a type, in the currency of `prices`: its own, or the site's where
        it has GPUs; None: it has none."""
        if self.prices is None or self.gpus[gpu].price_gpu_hour is not None:
            return self.gpus[gpu].price_gpu_hour
        return self.prices.gpu_hour if self.gives_gpus(gpu) else None

    @model_validator(mode="after")
    def _check_calibration(self) -> Site:
        if problem := calibration_problem(self.calibration, self.gpus):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _check_prices(self) -> Site:
        priced = [gpu for gpu, kind in self.gpus.items() if kind.price_gpu_hour is not None]
        if priced and self.prices is None:
            raise ValueError(
                f"gpus.{priced[0]}.price_gpu_hour: found a price and no `prices`; expected "
                "prices: {currency: …, source: …} in the site, which says what of and from where"
            )
        return self

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
                ("runtime_floor_min", "runtime_max_min", "min"),
            ):
                first, most = getattr(words, low) or _UNSAID.get(low), getattr(words, high)
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

    Beside each file its calibration is read, if there is one; entries of later ones replace earlier ones.

    Raises:
        SiteError: no file is given, or one is wrong, or a calibration is of a GPU type that the site has not.
    """
    if not paths:
        raise SiteError(
            "no site: expected a site file; run with --profile profiles/local, or pass one with --configfile"
        )
    content: dict[str, Any] = {}
    fitted: dict[Path, dict[str, Calibration]] = {}
    for path in paths:
        content |= read_mapping(path, SiteError)
        fitted[calibration_file(path)] = load_calibration(calibration_file(path))
    site = parse_site(content, ", ".join(str(path) for path in paths))
    for path, entries in fitted.items():
        if problem := calibration_problem(entries, site.gpus):
            raise SiteError(f"{path}: {problem}")
    return site.model_copy(
        update={"calibration": dict(ChainMap(*reversed(fitted.values()), site.calibration))}
    )


def load_calibration(path: Path) -> dict[str, Calibration]:
    """Read a calibration by GPU type and engine; empty where there is no such file.

    Raises:
        SiteError: it is no calibration.
    """
    if not path.is_file():
        return {}
    return parse_model(CalibrationFile, read_mapping(path, SiteError), path, SiteError).calibration


def parse_site(content: Mapping[str, Any], source: object) -> Site:
    """Check a site's content; `SHARDWATT_MODELS` and `SHARDWATT_DATA` replace its folders.

    Raises:
        SiteError: a key is unknown or missing, or a value is not allowed.
    """
    folders = {
        key: os.environ[variable] for key, variable in FOLDER_VARIABLES.items() if os.environ.get(variable)
    }
    return parse_model(Site, {**content, **folders}, source, SiteError)
