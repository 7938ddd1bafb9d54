"""The cell: one point of a study's matrix, and the path that is its name."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from shardwatt.errors import ShardwattError

_NAME = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
_COUNT = r"[1-9][0-9]{0,5}"

#: Strict pattern of each axis value, in path order: nothing that reaches a shell or a path is free text.
AXIS_PATTERNS: dict[str, str] = {
    "engine": _NAME,
    "model": _NAME,
    "precision": r"(?:fp32|bf16|fp16)",
    "gpu": _NAME,
    "shards": _COUNT,
    "batch": _COUNT,
    "length": _COUNT,
    "dataset": _NAME,
    "cap": rf"(?:none|{_COUNT})",
    "repeat": _COUNT,
}

#: What a name of an axis may hold, as said to users.
NAME_WORDS = "lower-case letters and digits, with single . _ - between them"

AXES: tuple[str, ...] = tuple(AXIS_PATTERNS)

#: Axes whose values are whole numbers.
COUNT_AXES: frozenset[str] = frozenset(axis for axis, pattern in AXIS_PATTERNS.items() if pattern == _COUNT)

#: Regular expression of a cell's path, for a Snakemake wildcard constraint.
PATH_PATTERN = "/".join(f"{axis}={pattern}" for axis, pattern in AXIS_PATTERNS.items())

#: Regular expression of a study's name.
STUDY_PATTERN = _NAME

_PATH = re.compile("/".join(f"{axis}=({pattern})" for axis, pattern in AXIS_PATTERNS.items()))
_AXIS = {axis: re.compile(pattern) for axis, pattern in AXIS_PATTERNS.items()}


class CellError(ShardwattError):
    """A cell's path or axis value that does not have the strict form."""


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One point of the matrix = one pass over the study's prompts.

    Attributes:
        engine: the inference loop, e.g. `reference`.
        model: a model's folder name, e.g. `llama-65b`.
        precision: `fp32`, `bf16` or `fp16`.
        gpu: a GPU type that the site names; `cpu` where there is none.
        shards: model-parallel ranks, one device each.
        batch: prompts answered together.
        length: maximum number of new tokens per response.
        dataset: where the prompts come from.
        cap: power limit of each GPU in watts as text, or `none`.
        repeat: which repetition, from 1.
    """

    engine: str
    model: str
    precision: str
    gpu: str
    shards: int
    batch: int
    length: int
    dataset: str
    cap: str
    repeat: int

    @property
    def path(self) -> str:
        """The cell's name: `engine=…/model=…/…/repeat=…`."""
        return "/".join([f"{axis}={getattr(self, axis)}" for axis in AXES])

    @property
    def cap_w(self) -> int | None:
        """Power limit of each GPU in W; None where no limit is set."""
        return None if self.cap == "none" else int(self.cap)

    @classmethod
    def parse(cls, path: str) -> Cell:
        """Read a cell from its path.

        Raises:
            CellError: the path does not name every axis in order with a value of the strict form.
        """
        match = _PATH.fullmatch(path)
        if match is None:
            raise CellError(
                f"'{path}' is no cell; expected {'/'.join(f'{axis}=…' for axis in AXES)} "
                "with lower-case names and whole numbers"
            )
        values: dict[str, Any] = {
            axis: int(value) if axis in COUNT_AXES else value
            for axis, value in zip(AXES, match.groups(), strict=True)
        }
        return cls(**values)


assert tuple(f.name for f in fields(Cell)) == AXES


def is_axis_value(axis: str, value: str) -> bool:
    """Whether a value, as text, has the strict form of its axis."""
    return _AXIS[axis].fullmatch(value) is not None
