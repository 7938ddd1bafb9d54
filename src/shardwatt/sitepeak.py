"""What a site says that a GPU type can do at most: a data sheet's name, or figures of its own."""

from __future__ import annotations

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
    source: Annotated[str, Field(min_length=1)]
    """Where the figures come from: a data sheet, or how they were measured. Written into every record."""

    @model_validator(mode="after")
    def _says_something(self) -> Peak:
        if self.memory_bandwidth_gb_s is None and self.tflops in (None, Tflops()):
            raise ValueError("expected memory_bandwidth_gb_s, tflops, or both")
        return self
