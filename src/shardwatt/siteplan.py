"""What a site says for the plan: links between devices, prices, carbon, and factors fitted to its cells."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from shardwatt.cell import AXIS_PATTERNS, Cell
from shardwatt.engines import MODEL_ENGINES
from shardwatt.errors import suggestion
from shardwatt.yamlfile import Form, StrictModel

Positive = Annotated[float, Field(gt=0, strict=True)]
NotNegative = Annotated[float, Field(ge=0, strict=True)]
#: In any currency, the smallest ones too; more is a slip of the pen.
Price = Annotated[float, Field(ge=0, le=100_000_000, strict=True)]
Source = Annotated[str, Field(min_length=1)]
#: A share of what data sheets say; above 1 where a device does more than that, and by how much at most.
Share = Annotated[float, Field(gt=0, le=10, strict=True)]

#: What a calibration is about, in its file: one engine on one of the site's GPU types.
CalibrationKey = Annotated[
    str,
    Form(
        f"{AXIS_PATTERNS['gpu']}/{AXIS_PATTERNS['engine']}",
        "a GPU type and an engine with / between them, e.g. v100/reference",
    ),
]

#: The efficiency factors of the plan's models, by name (`shardwatt.plan.device.Factors`).
FactorName = Literal["compute", "bandwidth", "network", "launch", "power"]


def _rising(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError("expected the lower end first")
    return interval


Interval = Annotated[tuple[Positive, Positive], AfterValidator(_rising)]
Count = Annotated[int, Field(ge=1, strict=True)]
Range = Annotated[tuple[Count, Count], AfterValidator(_rising)]


class LinkFigures(StrictModel):
    """What one way between ranks can do."""

    gb_s: Positive
    """Bandwidth in GB/s (10^9 B/s) in one direction, of one rank's own share: of an interface that all GPUs
    of a node use, the interface's over their number."""
    latency_us: NotNegative
    """Latency of one message in microseconds."""
    source: Source
    """Where the figures come from: a data sheet, or how they were measured."""


class Links(StrictModel):
    """What ranks exchange over."""

    inside: LinkFigures | None = None
    """Between devices of a node; None: what the data sheet says, or a stated assumption."""
    between: LinkFigures | None = None
    """Between nodes; None: a stated assumption."""


class Prices(StrictModel):
    """What time and energy cost."""

    currency: Annotated[str, Form(r"[A-Z]{3}", "three capital letters such as EUR")]
    """Currency of all prices, as ISO 4217 has it."""
    gpu_hour: Price | None = None
    """Price of an hour of one GPU that a job holds; a GPU type's `price_gpu_hour` replaces it. Where it is
    given, it is what a cell costs, and electricity is taken to be part of it."""
    kwh: Price | None = None
    """Price of a kWh of electricity: what a cell costs where no GPU hour has a price, and on processors
    without a price of their own."""
    source: Source
    """Where the prices come from, and of when."""


class Carbon(StrictModel):
    """What a kWh of electricity emits."""

    g_per_kwh: Annotated[float, Field(ge=0, le=5000, strict=True)]
    """Grams of CO2 equivalent per kWh."""
    source: Source
    """Who says so, and for which grid."""
    year: Annotated[int, Field(ge=1990, le=2100, strict=True)]
    """Year that the factor is of."""


class Measured(StrictModel):
    """What the cells were that a calibration was fitted to: a forecast of any other is extrapolated."""

    models: Annotated[list[str], Field(min_length=1)]
    """Their models."""
    precisions: list[str] = []
    """Their precisions; empty, as in the next two: not known, and not compared."""
    datasets: list[str] = []
    """Their data sets."""
    caps: list[Annotated[str, Form(AXIS_PATTERNS["cap"], "watts or none")]] = []
    """Their power caps in W, or `none`; what lies between counts as measured."""
    shards: Range
    """Fewest and most shards."""
    batch: Range
    """Smallest and largest batch."""
    length: Range
    """Shortest and longest maximum length in tokens."""

    def outside(self, cell: Cell) -> list[str]:
        """In what a cell lies outside of it, each with what was measured; empty where it lies inside.

        Args:
            cell: of the engine and the GPU type that the calibration is of.
        """
        found = [
            f"{axis} {getattr(cell, axis)} ({', '.join(known)})"
            for axis, known in (
                ("model", self.models),
                ("precision", self.precisions),
                ("dataset", self.datasets),
            )
            if known and getattr(cell, axis) not in known
        ]
        for axis in ("shards", "batch", "length"):
            low, high = getattr(self, axis)
            if not low <= getattr(cell, axis) <= high:
                within = f"{low}" if low == high else f"{low} to {high}"
                found.append(f"{axis} {getattr(cell, axis)} ({within})")
        limits = [watts(cap) for cap in self.caps]
        if limits and not min(limits) <= watts(cell.cap) <= max(limits):
            found.append(f"cap {cell.cap} ({', '.join(self.caps)})")
        return found


def watts(cap: str) -> float:
    """A cell's power cap in W; infinite without one."""
    return math.inf if cap == "none" else float(cap)


class Calibration(StrictModel):
    """Efficiency factors of one engine on one GPU type, fitted to finished cells by `shardwatt calibrate`."""

    compute: Share
    """Share of the operations a second that large matrix products reach."""
    bandwidth: Share
    """Share of the memory bandwidth that weights and cache are read at."""
    network: Share
    """Share of a link's bandwidth that collectives reach; the lower it is, the longer latencies are."""
    launch: NotNegative
    """Times the assumed launch time of a kernel."""
    power: Positive
    """Times the predicted power above idle."""
    fitted: list[FactorName]
    """Those of the five that the cells could tell; the others, but for `at_bound`, are the plan's own
    assumptions."""
    at_bound: list[FactorName] = []
    """Those that the cells put at the bound of the search, a tenth or ten times the assumption, or beyond it:
    not told, and used so all the same, since with the assumption the cells fit clearly worse."""
    spread: dict[Literal["duration_s", "energy_j"], Interval] = {}
    """Measured over predicted, by quantity: lower and upper factor of a 90 % interval."""
    cells: Annotated[int, Field(ge=1, strict=True)]
    """Finished cells that it was fitted to."""
    measured: Measured | None = None
    """Models, precisions, data sets, caps, shards, batches and lengths of those cells; forecasts of others
    are extrapolated."""
    figures: dict[str, NotNegative] = {}
    """What the factors are relative to, by a name with its unit: where the site has another figure now, the
    entry is not used. Empty: not compared."""
    source: Source
    """Which studies these are of."""
    fitted_on: date
    """When."""
    errors: dict[str, NotNegative] = {}
    """How far predictions were off for cells that were left out of the fit, by a name with its unit."""


class CalibrationFile(StrictModel):
    """Contents of STEM.calibration.yaml beside a site file STEM.yaml."""

    schema_version: Literal[1] = 1
    """Version of this form; a file of another one was written by another shardwatt: calibrate again."""
    calibration: dict[CalibrationKey, Calibration]
    """By GPU type and engine, e.g. `v100/reference`."""


def calibration_problem(keys: Iterable[str], gpus: Collection[str]) -> str | None:
    """What is wrong with the keys of a calibration, in words; None: nothing.

    Args:
        keys: a GPU type and an engine each.
        gpus: the site's GPU types.
    """
    for key in keys:
        gpu, _, engine = key.partition("/")
        for what, name, known in (("GPU type of the site", gpu, gpus), ("engine", engine, MODEL_ENGINES)):
            if name not in known:
                return (
                    f"calibration.{key}: '{name}' is no {what}{suggestion(name, known)}; expected one of "
                    f"{', '.join(known)}: correct it, or remove the entry"
                )
    return None


def calibration_file(site_file: Path) -> Path:
    """Where the calibration of a site file lies: beside it, as STEM.calibration.yaml."""
    return site_file.with_name(f"{site_file.stem}.calibration.yaml")
