"""What a site says that a GPU type can do at most: a data sheet's name, or figures of its own."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from shardwatt.datasheets import DATA_SHEETS
from shardwatt.errors import suggestion
from shardwatt.yamlfile import StrictModel

Rate = Annotated[float, Field(gt=0, strict=True)]


def _in_the_catalogue(name: str) -> str:
    if name not in DATA_SHEETS:
        known = [one for one in DATA_SHEETS if one.startswith(name)] or DATA_SHEETS
        raise ValueError(f"no data sheet of this name{suggestion(name, known)}; known: {', '.join(known)}")
    return name


#: The name of a data sheet; config/README.md lists them.
SheetName = Annotated[str, AfterValidator(_in_the_catalogue)]


class Tflops(StrictModel):
    """Operations in 10^12 a second, by precision; dense, as the matrix products of inference are."""

    fp32: Rate | None = None
    """In float32."""
    bf16: Rate | None = None
    """In bfloat16."""
    fp16: Rate | None = None
    """In float16."""


class Peak(StrictModel):
    """Figures of the site's own for what a device can do at most, in place of a data sheet."""

    memory_bandwidth_gb_s: Rate | None = None
    """Memory bandwidth in GB/s (10^9 B/s): of one GPU, or for `cpu` of the whole machine."""
    tflops: Tflops | None = None
    """Dense operations in 10^12 a second by precision (`fp32`, `bf16`, `fp16`), likewise; those left out are
    unknown."""
    idle_w: Rate | None = None
    """Power in W of one GPU at rest with its driver loaded, or for `cpu` of the machine's processors
    together: with `tdp_w` the plan predicts watts from it. None: an assumption."""
    clock_mhz: Rate | None = None
    """Boost clock in MHz of a GPU, at which it does its `tflops`; with `lowest_clock_mhz`."""
    lowest_clock_mhz: Rate | None = None
    """Lowest core clock in MHz of a GPU: how far a power cap can slow it down. None: an assumption."""
    power_min_w: Rate | None = None
    """Lowest power limit in W that a GPU takes: a study's `cap` below it is refused, unless the type's
    `power_limits_w` says otherwise. None: not known."""
    source: Annotated[str, Field(min_length=1)]
    """Where the figures come from: a data sheet, or how they were measured. Written into every record."""

    @model_validator(mode="after")
    def _says_something(self) -> Peak:
        if self.memory_bandwidth_gb_s is None and self.tflops in (None, Tflops()):
            raise ValueError("expected memory_bandwidth_gb_s, tflops, or both")
        return self

    @model_validator(mode="after")
    def _clocks_fit(self) -> Peak:
        lowest, boost = self.lowest_clock_mhz, self.clock_mhz
        if (lowest is None) != (boost is None):
            raise ValueError("expected clock_mhz and lowest_clock_mhz, or neither: their ratio counts")
        if lowest is not None and boost is not None and lowest >= boost:
            raise ValueError(
                f"lowest_clock_mhz: found {lowest:g}, and clock_mhz {boost:g}; expected a lower one"
            )
        return self

    def problem(self, kind: str, tdp_w: float | None) -> str | None:
        """What cannot be of the device that it is given for, in words; None: nothing.

        Args:
            kind: `cuda` or `cpu`.
            tdp_w: the type's; None where it is not given.
        """
        if kind == "cpu":
            own = [key for key in ("clock_mhz", "power_min_w") if getattr(self, key) is not None]
            if own:
                return f"{own[0]}: found with kind: cpu; expected it of GPUs alone"
        watts = {"idle_w": self.idle_w, "power_min_w": self.power_min_w, "tdp_w": tdp_w}
        known = [(key, value) for key, value in watts.items() if value is not None]
        for (low, less), (high, more) in pairwise(known):
            if less >= more:
                return f"{low}: found {less:g}, and {high} {more:g}; expected less"
        return None
