"""How a site measures and limits power: DCGM, and who may set power limits."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from shardwatt.yamlfile import Form, StrictModel

#: What a word of the site's own command may hold besides `{watts}` and `{gpus}`.
_COMMAND_WORD = r"[A-Za-z0-9_./=,:@%+{}-]+"


def _placeholders(word: str) -> str:
    unknown = set(re.findall(r"\{([^{}]*)\}", word)) - {"watts", "gpus"}
    rest = re.sub(r"\{[^{}]*\}", "", word)
    if unknown or "{" in rest or "}" in rest:
        raise ValueError("expected no braces but {watts} and {gpus}")
    return word


CommandWord = Annotated[
    str,
    Form(_COMMAND_WORD, "letters, digits, _ . / = , : @ % + -, {watts} and {gpus}"),
    AfterValidator(_placeholders),
]


class Dcgm(StrictModel):
    """DCGM's job statistics on the node of rank 0, through `dcgmi`: the paper's way to measure."""

    command: Annotated[str, Form(r"[A-Za-z0-9_./-]+", "a program's name or path")] = "dcgmi"
    """The program, found on the node's PATH."""
    interval_ms: Annotated[int, Field(ge=100, le=60_000, strict=True)] = 100
    """Time in ms between DCGM's samples. 30000 is what `dcgmi` takes by itself: it loses most of a short
    run's energy, and is there to show that."""
    profiling: bool = False
    """Whether to sample the profiling fields too (SM, tensor and DRAM active): they need a GPU and a
    permission for it, and disturb other profilers."""


class PowerLimits(StrictModel):
    """Who sets power limits, for cells with a `cap`."""

    set_by: Literal["nvml", "command", "prolog"]
    """`nvml`: the cell itself, where the driver lets it (as root, or by the site's permission);
    `command`: the site's own command; `prolog`: Slurm's prolog, before the job starts: the cell then only
    looks whether the limit is there."""
    command: list[CommandWord] | None = None
    """For `command`: its words, e.g. `[sudo, /usr/local/sbin/set-gpu-power, "{watts}", "{gpus}"]`;
    `{watts}` is a whole number, `{gpus}` the UUIDs of GPUs, joined by commas. It is run on each node,
    before the cap is set with the limits that were found, and to set them back: it must take those too."""
    leases: Path = Path("/var/tmp/shardwatt-power-limits")  # noqa: S108 - power/limits/lease.py trusts no stranger
    """Folder on each node's own disk that remembers limits to be set back, for what a killed job leaves."""

    @model_validator(mode="after")
    def _command_fits(self) -> PowerLimits:
        if (self.set_by == "command") != (self.command is not None):
            raise ValueError("expected `command` with `set_by: command`, and only there")
        if self.command is not None:
            text = " ".join(self.command)
            if not self.command or "{watts}" not in text or "{gpus}" not in text:
                raise ValueError("expected a command with {watts} and {gpus} in it")
            if "{" in self.command[0]:
                raise ValueError(
                    f"command: found '{self.command[0]}' as its first word; expected a program's name or path"
                )
        if not self.leases.is_absolute():
            raise ValueError(
                f"leases: found {self.leases}; expected an absolute path, on each node's own disk"
            )
        return self
