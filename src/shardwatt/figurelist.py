"""Which figures a study has: their names, kinds and cells, known before any cell has run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from shardwatt.cell import Cell

#: Batch size and maximum length of the published throughput and power figures (arXiv 2310.03003).
PAPER_BATCH = 64
PAPER_LENGTH = 256

#: Regular expression of a figure's name, for a Snakemake wildcard constraint. Parts are joined by `--`,
#: which no axis value can hold: two figures never share a name.
FIGURE_PATTERN = r"[a-z0-9]+(?:(?:[._-]|--)[a-z0-9]+)*"

#: File name extensions that every figure is written with.
FORMATS = ("svg", "pdf", "png")

AxisValue: TypeAlias = str | int


class Kind(StrEnum):
    """What a figure shows, with the published figures that it is the counterpart of."""

    ENGINES = "engines"  # the same work by other inference loops
    THROUGHPUT = "throughput"  # figure 2
    POWER = "power"  # figure 3
    POWER_BY_SHARDS = "power-by-shards"  # figures 4 and 5
    ENERGY_PER_TOKEN = "energy-per-token"  # noqa: S105 - figures 6 and 7
    ENERGY_PER_RESPONSE = "energy-per-response"  # figures 8 and 9
    RATIOS = "ratios"  # what the paper's accounting makes of the same energy


#: Kinds that compare models and GPU types, each at its fewest shards.
COMPARISONS = (Kind.THROUGHPUT, Kind.POWER)

#: Kinds that follow one model on one GPU type over shards and batch sizes.
SCALINGS = (Kind.POWER_BY_SHARDS, Kind.ENERGY_PER_TOKEN, Kind.ENERGY_PER_RESPONSE)

TITLES = {
    Kind.THROUGHPUT: "Throughput",
    Kind.POWER: "Power",
    Kind.POWER_BY_SHARDS: "Power by shards",
    Kind.ENERGY_PER_TOKEN: "Energy per output token",
    Kind.ENERGY_PER_RESPONSE: "Energy per response",
    Kind.ENGINES: "Engines side by side",
    Kind.RATIOS: "Two accountings of the same energy",
}

#: GPU type of a cell that runs on processors.
_PROCESSORS = "cpu"

#: Axes of which a figure holds one value each; they enter its name where the study has several values. The
#: figure of the engines holds all of them.
_CONDITIONS = ("engine", "precision", "cap")
_CONDITIONS_OF_ENGINES = ("precision", "cap")


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """One figure of a study.

    Attributes:
        name: unique in the study, usable as a file name.
        kind: what it shows.
        fixed: axis and value pairs that all its cells share.
    """

    name: str
    kind: Kind
    fixed: tuple[tuple[str, AxisValue], ...]

    @property
    def title(self) -> str:
        """One line that says what is shown, of what."""
        values = dict(self.fixed)
        if self.kind is Kind.RATIOS:
            return TITLES[self.kind]
        if self.kind in COMPARISONS:
            return f"{TITLES[self.kind]} by model and GPU type"
        return f"{TITLES[self.kind]}: {values['model']} on {values['gpu']}"

    @property
    def conditions(self) -> str:
        """What all cells of the figure share, in words."""
        values = dict(self.fixed)
        if self.kind is Kind.RATIOS:
            return "every cell of the study that has them"
        words = []
        if "batch" in values:
            words.append(f"batch {values['batch']}")
        words.append(f"at most {values['length']} new tokens")
        words.append(str(values["precision"]))
        words.append("no power cap" if values["cap"] == "none" else f"capped at {values['cap']} W per GPU")
        if "engine" in values:
            words.append(f"engine {values['engine']}")
        return ", ".join(words)

    def holds(self, cell: Cell) -> bool:
        """Whether a cell belongs to the figure."""
        return all(getattr(cell, axis) == value for axis, value in self.fixed)


def figures(cells: Iterable[Cell]) -> list[FigureSpec]:
    """List the figures of a study from its cells, the same list whatever has run.

    The comparisons take the batch size nearest 64 and the maximum length nearest 256 among those that
    most pairs of model and GPU type have. Engine, precision and cap enter a name where the study
    varies them. Engines are set side by side where a study has several of them for the same model, GPU type
    and maximum length; there a figure that would hold a single mark of theirs is left out. A study that runs
    on processors alone has no ratios: only an estimate is made there.
    """
    known = tuple(cells)
    varied = [axis for axis in _CONDITIONS if len({getattr(cell, axis) for cell in known}) > 1]
    by_condition: dict[tuple[AxisValue, ...], list[Cell]] = defaultdict(list)
    for cell in known:
        by_condition[tuple(getattr(cell, axis) for axis in _CONDITIONS)].append(cell)
    specs = _side_by_side(known, [axis for axis in varied if axis != "engine"])
    compared = tuple(specs)
    for condition, members in sorted(by_condition.items()):
        shared = dict(zip(_CONDITIONS, condition, strict=True))
        ending = [_name_part(axis, shared[axis]) for axis in varied]
        batch, length = _comparison_point(members)
        at_point = (cell for cell in members if (cell.batch, cell.length) == (batch, length))
        if not _is_one_mark(at_point, ("model", "gpu"), compared):
            for kind in COMPARISONS:
                specs.append(_spec(kind, [], {"batch": batch, "length": length, **shared}, ending))
        for model, gpu, at_length in sorted({(c.model, c.gpu, c.length) for c in members}):
            own: dict[str, AxisValue] = {"model": model, "gpu": gpu, "length": at_length}
            parts = [_name_part(axis, value) for axis, value in own.items()]
            of_own = (c for c in members if (c.model, c.gpu, c.length) == (model, gpu, at_length))
            if not _is_one_mark(of_own, ("shards", "batch"), compared):
                specs.extend(_spec(kind, parts, {**own, **shared}, ending) for kind in SCALINGS)
    if any(cell.gpu != _PROCESSORS for cell in known):
        specs.append(_spec(Kind.RATIOS, [], {}, []))
    return sorted(specs, key=lambda spec: list(Kind).index(spec.kind))


def _side_by_side(cells: tuple[Cell, ...], varied: list[str]) -> list[FigureSpec]:
    """The figures that compare engines, each of one model, GPU type and maximum length."""
    axes = ("model", "gpu", "length", *_CONDITIONS_OF_ENGINES)
    engines: dict[tuple[AxisValue, ...], set[str]] = defaultdict(set)
    for cell in cells:
        engines[tuple(getattr(cell, axis) for axis in axes)].add(cell.engine)
    specs = []
    for values, found in sorted(engines.items()):
        if len(found) > 1:
            fixed = dict(zip(axes, values, strict=True))
            parts = [_name_part(axis, fixed[axis]) for axis in (*axes[:3], *varied)]
            specs.append(_spec(Kind.ENGINES, parts, fixed, []))
    return specs


def _is_one_mark(cells: Iterable[Cell], axes: tuple[str, str], compared: tuple[FigureSpec, ...]) -> bool:
    """Whether a figure of these cells would hold one mark a panel that a figure of engines holds too."""
    if not compared:
        return False
    marks = {tuple(getattr(cell, axis) for axis in axes): cell for cell in cells}
    return len(marks) == 1 and any(spec.holds(cell) for spec in compared for cell in marks.values())


def _spec(kind: Kind, parts: list[str], fixed: Mapping[str, AxisValue], ending: list[str]) -> FigureSpec:
    return FigureSpec("--".join([kind, *parts, *ending]), kind, tuple(fixed.items()))


def _name_part(axis: str, value: AxisValue) -> str:
    return f"{axis}-{value}" if axis in ("length", "cap") else str(value)


def _comparison_point(cells: list[Cell]) -> tuple[int, int]:
    """Batch size and maximum length at which most pairs of model and GPU type can be compared."""
    pairs: dict[tuple[int, int], set[tuple[str, str]]] = defaultdict(set)
    for cell in cells:
        pairs[cell.batch, cell.length].add((cell.model, cell.gpu))

    def preference(point: tuple[int, int]) -> tuple[float, ...]:
        batch, length = point
        away = abs(math.log(batch / PAPER_BATCH)), abs(math.log(length / PAPER_LENGTH))
        return (-len(pairs[point]), *away, batch, length)

    return min(pairs, key=preference)
