"""The site: what a place offers, i.e. GPU types, where models and data lie, how ranks start."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from shardwatt.cell import AXIS_PATTERNS, NAME_WORDS
from shardwatt.errors import SiteError
from shardwatt.yamlfile import Form, StrictModel, parse_model, read_mapping

GpuName = Annotated[str, Form(AXIS_PATTERNS["gpu"], NAME_WORDS)]

#: Environment variables that override a site's folders, for one shell.
FOLDER_VARIABLES = {"models": "SHARDWATT_MODELS", "data": "SHARDWATT_DATA"}


class GpuType(StrictModel):
    """A kind of device that cells can run on."""

    kind: Literal["cuda", "cpu"]
    """`cuda` for NVIDIA GPUs; `cpu` runs every shard as a process on the processor."""
    per_node: Annotated[int, Field(ge=1, strict=True)]
    """Devices in a node. For `cpu`: how many shards one machine may hold."""
    memory_gib: Annotated[float, Field(gt=0, strict=True)]
    """Memory of one device in GiB. For `cpu`: the machine's memory over `per_node`."""
    tdp_w: Annotated[float, Field(gt=0, strict=True)] | None = None
    """For `cpu`: thermal design power in W of the machine's processors together, from their data sheet.
    Their energy is estimated with it; without it that is reported as unavailable. Not used for `cuda`."""
    tdp_source: str | None = None
    """Where `tdp_w` comes from; written into every estimate made with it."""


class Site(StrictModel):
    """What the place offers. Nothing about it stands in a study."""

    name: Annotated[str, Form(r"[a-z0-9][a-z0-9-]*", "lower-case letters, digits and -")]
    """Short name of the place, written into every record."""
    launcher: Literal["local"]
    """How ranks start: `local` uses submitit on this machine."""
    models: Path
    """Folder with a folder for each model, in Meta's layout."""
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
