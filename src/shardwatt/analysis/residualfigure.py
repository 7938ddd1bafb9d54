"""Residuals of a calibration: measured over predicted, of cells that took no part in the fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from shardwatt.analysis.calibrationerrors import Approach, LeftOut, Quantity, error
from shardwatt.analysis.canvas import save, sheet
from shardwatt.analysis.panels import COLOURS, INK, MARKERS, MUTED, dress
from shardwatt.plan.digits import times

#: Title, and the words on the axes, by quantity.
_PANELS: dict[Quantity, tuple[str, str]] = {
    "duration_s": ("Time of the inference window", "predicted, s"),
    "energy_j": ("Energy over it, all devices", "predicted, J"),
}

#: The same in a sentence.
_NAMES: dict[Quantity, str] = {"duration_s": "time", "energy_j": "energy"}

#: Filled marks, and hollow ones.
_DRAWN: tuple[Approach, ...] = ("work", "forecast")

#: Ticks of measured over predicted by how far the axis reaches at most; beyond, powers of ten.
_RATIOS = {
    1.5: (0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25, 1.4),
    3.0: (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 2.0, 2.5),
    10.0: (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0),
}

#: Least reach of the axis to either side of 1, and room beyond the farthest mark, as factors.
_LEAST_REACH, _ROOM = 1.1, 1.15

#: Room beside the outermost marks, and the range from which on only powers of ten have ticks, as factors.
_BESIDE, _MANY_TICKS = 1.25, 300

#: A mark: group, who predicts, what is predicted, and measured over that.
Place: TypeAlias = "tuple[Group, Approach, float, float]"

_PANEL_IN, _BODY_IN = 4.3, 3.0

_NOTE = (
    "A mark is a cell, predicted from a fit to the others of its GPU type and engine, its repeats and other "
    "twins left out too. Filled: by the models, from the steps and tokens that were measured. Hollow: by the "
    "whole forecast, which assumes them too. Shaded: the 90 % interval that forecasts carry from now on."
)


@dataclass(frozen=True, slots=True)
class Group:
    """What one colour stands for: an engine on a GPU type.

    Attributes:
        name: e.g. `v100/reference`.
        index: its place among all groups, so that it keeps its colour.
        cells: those to draw.
        spread: its interval by quantity.
    """

    name: str
    index: int
    cells: Sequence[LeftOut]
    spread: Mapping[Quantity, tuple[float, float]]

    @property
    def colour(self) -> str:
        return COLOURS[self.index % len(COLOURS)]

    @property
    def marker(self) -> str:
        return MARKERS[self.index % len(MARKERS)]


def draw_residuals(groups: Sequence[Group], folder: Path, study: str) -> list[Path]:
    """Write calibration.svg, .pdf and .png for the cells of a study into a folder.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    return save(lambda: compose(groups, study), folder, "calibration")


def compose(groups: Sequence[Group], study: str) -> Figure:
    """Lay time and energy out beside each other; energy only where it was metered."""
    shown: list[Quantity] = [quantity for quantity in _PANELS if _places(groups, quantity)]
    notes = [_NOTE, *(_errors(group, shown) for group in groups)]
    notes += [words for group in groups if (words := _beyond(group, groups, shown))]
    if "energy_j" not in shown:
        notes.append("No cell's energy was metered and is predicted: only time is shown.")
    made = sheet(
        "Residuals of the calibration",
        f"Study {study}; cells that were left out of the fit",
        notes,
        width=max(6.6, _PANEL_IN * len(shown)),
        body=_BODY_IN,
    )
    for axes, quantity in zip(made.figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw(axes, groups, quantity)
    handles = [
        Line2D([], [], color=group.colour, marker=group.marker, ls="", ms=6, mec=INK, mew=0.6)
        for group in groups
    ]
    made.figure.legend(
        handles,
        [group.name for group in groups],
        loc="upper left",
        bbox_to_anchor=(made.left, made.top),
        ncols=len(groups),
        frameon=False,
        fontsize=8.5,
        borderaxespad=0,
        borderpad=0,
        handletextpad=0.4,
        columnspacing=1.5,
    )
    return made.figure


def _errors(group: Group, shown: Sequence[Quantity]) -> str:
    """What a group's marks come to, in words."""
    words = []
    for quantity in shown:
        work, whole = (error(group.cells, approach, quantity) for approach in _DRAWN)
        if work is not None:
            said = f"{_NAMES[quantity]}: median {work.median_percent:.1f} %, 90th percentile "
            said += f"{work.p90_percent:.1f} %"
            if whole is not None:
                said += f" (as forecast {whole.median_percent:.1f} % and {whole.p90_percent:.1f} %)"
            words.append(said)
    return f"{group.name}, errors |ln(measured / predicted)| of {len(group.cells)} cells. {'; '.join(words)}."


def _beyond(group: Group, groups: Sequence[Group], shown: Sequence[Quantity]) -> str | None:
    """A group's intervals that do not end on the axis, in words; None where all do."""
    words = [
        f"{_NAMES[quantity]} {times(interval[0])} to {times(interval[1])} times the forecast"
        for quantity in shown
        if (interval := group.spread.get(quantity))
        if _farthest(interval) > _reach(groups, quantity)
    ]
    return f"{group.name}, 90 % intervals beyond the axis: {', '.join(words)}." if words else None


def _places(groups: Sequence[Group], quantity: Quantity) -> list[Place]:
    """Every mark."""
    return [
        (group, approach, getattr(one.cell, quantity) / math.exp(off), math.exp(off))
        for group in groups
        for one in group.cells
        for approach in _DRAWN
        if (off := one.off(approach, quantity)) is not None
    ]


def _draw(axes: Any, groups: Sequence[Group], quantity: Quantity) -> None:
    title, x_label = _PANELS[quantity]
    dress(axes, title, [], "measured / predicted")
    axes.set_xlabel(x_label)
    axes.axhline(1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=2)
    for group in groups:
        if interval := group.spread.get(quantity):
            axes.axhspan(*interval, color=group.colour, alpha=0.10, linewidth=0, zorder=1)
    places = _places(groups, quantity)
    for group, approach, predicted, ratio in places:
        look = {"mfc": group.colour, "mec": INK, "mew": 0.6}
        if approach == "forecast":
            look = {"mfc": "none", "mec": group.colour, "mew": 1.1}
        axes.plot(predicted, ratio, ls="", marker=group.marker, ms=5.5, zorder=4, **look)
    _scale(axes, [predicted for *_, predicted, _ in places], _reach(groups, quantity))


def _reach(groups: Sequence[Group], quantity: Quantity) -> float:
    """How far the axis of the ratios goes to either side of 1, as a factor: to the marks, and to the ends of
    intervals that leave them half of it. A few cells make an interval as wide as they like."""
    marks = _farthest([ratio for *_, ratio in _places(groups, quantity)])
    ends = [_farthest(interval) for group in groups if (interval := group.spread.get(quantity))]
    return max(_LEAST_REACH, _ROOM * max([marks, *(end for end in ends if end <= (_ROOM * marks) ** 2)]))


def _farthest(ratios: Iterable[float]) -> float:
    """Of ratios that which is farthest from 1, as a factor above it."""
    return max(max(one, 1 / one) for one in ratios)


def _scale(axes: Any, predicted: Sequence[float], reach: float) -> None:
    """Logarithmic axes."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(predicted) / _BESIDE, max(predicted) * _BESIDE)
    axes.set_ylim(1 / reach, reach)
    ratios = next((ratios for most, ratios in _RATIOS.items() if reach <= most), None)
    axes.yaxis.set_major_locator(
        LogLocator() if ratios is None else FixedLocator([one for one in ratios if 1 / reach <= one <= reach])
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"×{value:g}"))  # noqa: RUF001
    axes.yaxis.set_minor_locator(NullLocator())
    wide = max(predicted) / min(predicted) > _MANY_TICKS
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
