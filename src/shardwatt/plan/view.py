"""A plan as people read it: cells in sections, few digits, units that suit the study, and totals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from shardwatt.cell import AXES, Cell
from shardwatt.plan import sentences
from shardwatt.plan.columns import COLUMN, PlanRow
from shardwatt.plan.digits import UNKNOWN, Unit, energy_unit, in_line, time_unit
from shardwatt.plan.table import Plan
from shardwatt.plan.totals import Sum
from shardwatt.units import rounded

#: Axes that a section's name has, where the study varies them.
_SECTION_AXES = ("model", "gpu", "engine", "precision")
#: Axes that lines have, where the study varies them. Repeats, which are forecast alike, are one line.
_LINE_AXES = ("shards", "batch", "length", "dataset", "cap")

#: Columns that follow from others: what is not known of them goes without saying.
_PARTS = frozenset({"prefill", "walk", "decode", "rate", "longest"})

#: Heads up to this rank are what a study is planned by.
MAIN_RANK = 8


@dataclass(frozen=True, slots=True)
class Head:
    """Heading of a column of numbers.

    Attributes:
        name: what they are.
        unit: empty for counts.
        rank: from 1; where there is no room for all, those of the highest ranks are left out, and those up to
            MAIN_RANK last.
    """

    name: str
    unit: str
    rank: int


@dataclass(frozen=True, slots=True)
class Line:
    """Cells that differ in nothing but their repeat; those that are left out, in nothing that takes memory.

    Attributes:
        axes: values of its section's axes; `all` where the line has several.
        texts: a number for each of the view's heads, in line with those above.
        runs: False where the cells do not fit and are left out.
    """

    axes: Sequence[str]
    texts: Sequence[str]
    runs: bool


@dataclass(frozen=True, slots=True)
class Section:
    """Cells of one model on one GPU type, of one engine and precision.

    Attributes:
        name: what they have in common, as far as the study varies it, and the memory of a device.
        interval: between what 90 % of such cells are; None without a calibration.
        axes: headings before the numbers: what its cells differ in.
        lines: of the cells.
    """

    name: str
    interval: str | None
    axes: Sequence[str]
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class Sums:
    """The table of totals.

    Attributes:
        heads: of its numbers.
        lines: number, name and texts of each block, where there are several; of the study, without a number,
            in which each cell counts once.
    """

    heads: Sequence[Head]
    lines: Sequence[tuple[int | None, str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class View:
    """A plan to be shown.

    Attributes:
        summary: how many cells fit.
        standing: what the forecasts are worth.
        warnings: what of them is assumed that weighs most.
        common: axes with one value throughout, as AXIS=VALUE.
        heads: of the numbers.
        sections: the cells.
        sums: the totals.
        remarks: on signs in the tables, what is unknown throughout, and the longest job.
        notes: what the forecasts assume, each once.
    """

    summary: str
    standing: str
    warnings: Sequence[str]
    common: Sequence[str]
    heads: Sequence[Head]
    sections: Sequence[Section]
    sums: Sums
    remarks: Sequence[str]
    notes: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers: heading, column of the plan, unit, and rank as in Head."""

    name: str
    column: str
    unit: Unit
    rank: int

    @property
    def head(self) -> Head:
        return Head(self.name, self.unit.name, self.rank)

    def number(self, row: PlanRow) -> float | None:
        value = COLUMN[self.column].value(row)
        return value / self.unit.holds if isinstance(value, int | float) else None

    def text(self, row: PlanRow) -> str:
        number = self.number(row)
        if number is None:
            return UNKNOWN if row.runs else ""
        text = f"{number:,.0f}" if COLUMN[self.column].kind == "count" else rounded(number)
        if self.column == "needed_gib" and row.runs and row.forecast.fits is False:
            return text + sentences.RUN_UNFIT
        return text


def view(plan: Plan) -> View:
    """Lay a plan out for people."""
    cells = [row.forecast.cell for row in plan.rows]
    values = {axis: list(dict.fromkeys(str(getattr(cell, axis)) for cell in cells)) for axis in AXES}
    varied = [axis for axis in AXES if len(values[axis]) > 1]
    axes = [axis for axis in _LINE_AXES if axis in varied]
    grouped = [_lines(rows, axes, values["dataset"]) for rows in _sections(plan.rows)]
    columns, unknown = _columns(plan)
    has_longest = any(one.name == "longest" for one in columns)
    firsts = [same[0] for lines in grouped for same in lines]
    texts = zip(*(in_line([column.text(row) for row in firsts]) for column in columns), strict=True)
    repeats = "repeat" in varied
    sections = []
    for lines in grouped:
        rows = [row for same in lines for row in same]
        own_axes = [axis for axis in axes if len({getattr(row.forecast.cell, axis) for row in rows}) > 1]
        shown = []
        for same in lines:
            own = [_value(axis, same) for axis in own_axes]
            if repeats:
                own.append(str(len({row.forecast.cell.repeat for row in same})))
            shown.append(Line(own, next(texts, ()), same[0].runs))
        fixed = [axis for axis in axes if axis not in own_axes]
        name = _name(rows[0], varied, fixed)
        heads = [*own_axes, *(["repeats"] if repeats else [])]
        sections.append(Section(name, sentences.interval(rows), heads, shown))
    return View(
        summary=sentences.summary(plan),
        standing=sentences.standing(plan.rows),
        warnings=sentences.warnings(plan.rows),
        common=[f"{axis}={found[0]}" for axis, found in values.items() if len(found) == 1],
        heads=[column.head for column in columns],
        sections=sections,
        sums=_sums(plan),
        remarks=sentences.remarks(plan, unknown, explains_longest=has_longest),
        notes=sentences.notes(plan.rows),
    )


def _sections(rows: Iterable[PlanRow]) -> list[list[PlanRow]]:
    """Rows of each section, in the study's order."""
    sections: dict[tuple[str, ...], list[PlanRow]] = {}
    for row in rows:
        key = tuple(getattr(row.forecast.cell, axis) for axis in _SECTION_AXES)
        sections.setdefault(key, []).append(row)
    return list(sections.values())


def _lines(rows: Iterable[PlanRow], axes: Sequence[str], datasets: Sequence[str]) -> list[list[PlanRow]]:
    """Rows of each line: numbers ascend, caps fall from none, data sets stay as the study has them.

    Where no cell of some shards, batch and length fits, they are one line: they need the same memory.
    """

    def place(row: PlanRow) -> tuple[Any, ...]:
        cell = row.forecast.cell
        cap = (cell.cap_w is not None, -(cell.cap_w or 0))
        return cell.shards, cell.batch, cell.length, datasets.index(cell.dataset), cap, cell.repeat

    lines = []
    for _, alike in groupby(sorted(rows, key=place), key=lambda row: place(row)[:3]):
        of_memory = list(alike)
        if not any(row.runs for row in of_memory):
            lines.append(of_memory)
            continue
        by_axes: dict[tuple[object, ...], list[PlanRow]] = {}
        for row in of_memory:
            by_axes.setdefault(tuple(getattr(row.forecast.cell, axis) for axis in axes), []).append(row)
        lines += by_axes.values()
    return lines


def _value(axis: str, rows: Iterable[PlanRow]) -> str:
    """What a line shows of an axis."""
    found = {str(getattr(row.forecast.cell, axis)) for row in rows}
    return found.pop() if len(found) == 1 else "all"


def _name(row: PlanRow, varied: Sequence[str], fixed: Sequence[str]) -> str:
    """What a section's cells have in common and others have not; fixed: axes that lines have elsewhere."""
    cell: Cell = row.forecast.cell
    own = [getattr(cell, axis) for axis in _SECTION_AXES if axis in varied]
    memory = [] if row.forecast.need is None else [f"{row.forecast.memory_gib:g} GiB each"]
    return ", ".join([*own, *memory, *(f"{axis} {getattr(cell, axis)}" for axis in fixed)])


def _columns(plan: Plan) -> tuple[list[_Column], list[str]]:
    """The columns of numbers that are known of a cell at least, and the names of the others."""
    time = time_unit(_middle("duration_s", plan.rows))
    energy = energy_unit(_middle("energy_j", plan.rows))
    uses_gpus = any(row.forecast.gpus_held for row in plan.rows)
    uses_nodes = any(row.forecast.nodes > 1 for row in plan.rows)
    can_be_longer = _can_be_longer(plan.rows)
    columns = [
        *([_Column("nodes", "nodes", Unit(""), 2)] if uses_nodes else []),
        _Column("needed", "needed_gib", Unit("GiB"), 1),
        _Column("prefill", "prefill_s", time, 14),
        _Column("walk", "walk_s", time, 15),
        _Column("decode", "decode_s", time, 13),
        _Column("window", "duration_s", time, 8),
        _Column("job", "allocation_duration_s", time, 3),
        *([_Column("longest", "longest_job_s", time, 9)] if can_be_longer else []),
        _Column("power", "power_w", Unit("W"), 5),
        _Column("energy", "energy_j", energy, 4),
        _Column("energy", "energy_per_token_j", Unit("J/token"), 6),
        _Column("rate", "tokens_per_s", Unit("token/s"), 12),
        *([_Column("GPUs", "gpu_hours", Unit("h"), 7)] if uses_gpus else []),
        _Column("cost", "cost", Unit(plan.currency or ""), 10),
        _Column("carbon", "carbon_kg", Unit("kgCO2e"), 11),
    ]
    known = [one for one in columns if any(one.number(row) is not None for row in plan.rows)]
    names = {one.name for one in known}
    return known, list(dict.fromkeys(one.name for one in columns if one.name not in {*names, *_PARTS}))


def _can_be_longer(rows: Iterable[PlanRow]) -> bool:
    """Whether a job takes longer, in the digits shown, if none of its responses ends by itself."""
    times = ((row.forecast.longest_job_s, row.forecast.allocation_duration_s) for row in rows if row.runs)
    return any(longest and job and rounded(longest) != rounded(job) for longest, job in times)


def _middle(column: str, rows: Iterable[PlanRow]) -> float:
    """The median of what is known; 0 where nothing is."""
    values = [COLUMN[column].value(row) for row in rows]
    return median([value for value in values if isinstance(value, int | float)] or [0.0])


def _sums(plan: Plan) -> Sums:
    """Totals of blocks that have cells here, and of the study."""
    parts = [block for block in plan.blocks if block.cells] if len(plan.blocks) > 1 else []
    lines = [*parts, plan.total]
    names: list[tuple[int | None, str]] = [
        (number, block.name) for number, block in enumerate(plan.blocks, start=1) if block in parts
    ]
    names.append((None, "together, each cell once" if parts else "together"))
    time = time_unit(plan.total.sums["allocation_duration_s"].value or 0.0)
    energy = energy_unit(plan.total.sums["energy_j"].value or 0.0)
    columns = [
        ("jobs", "allocation_duration_s", time, 4),
        ("GPUs", "gpu_hours", Unit("h"), 2),
        ("nodes", "node_hours", Unit("h"), 8),
        ("energy", "energy_j", energy, 3),
        ("cost", "cost", Unit(plan.currency or ""), 6),
        ("carbon", "carbon_kg", Unit("kgCO2e"), 7),
    ]
    shown = {column for column, found in plan.total.sums.items() if found.value is not None}
    if not plan.total.sums["gpu_hours"].value:
        shown -= {"gpu_hours"}  # processors alone
    known = [one for one in columns if one[1] in shown]
    heads = [Head("cells", "", 1), *([Head("left out", "", 5)] if plan.total.left_out else [])]
    heads += [Head(name, unit.name, rank) for name, _, unit, rank in known]
    table = [in_line([f"{line.cells:,}" for line in lines])]
    if plan.total.left_out:
        table.append(in_line([f"{line.left_out:,}" for line in lines]))
    table += [in_line([_sum(line.sums[column], unit) for line in lines]) for _, column, unit, _ in known]
    texts = zip(*table, strict=True)
    return Sums(heads, [(*name, own) for name, own in zip(names, texts, strict=True)])


def _sum(found: Sum, unit: Unit) -> str:
    if found.value is None:
        return UNKNOWN if found.unknown else ""
    return rounded(found.value / unit.holds) + (sentences.AT_LEAST if found.unknown else "")
