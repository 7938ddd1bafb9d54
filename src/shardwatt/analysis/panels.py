"""One panel of a figure: grouped bars or markers with whiskers, and marks where there is no value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from shardwatt.analysis.marking import extent
from shardwatt.analysis.points import Point
from shardwatt.analysis.survey import PREDICTED, State
from shardwatt.units import rounded

#: Okabe and Ito 2008: colours that stay apart under colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "+++", "ooo")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK, MUTED, ALERT, _GRID = "#1a1a1a", "#5f6368", "#B34700", "#dfe1e5"

#: Width of a group of bars and of a single bar, where two groups are 1 apart.
_GROUP, _WIDEST_BAR = 0.84, 0.36

#: Free space above the highest mark, as a share of the panel: for a value, and for the tag beside it.
_HEADROOM, _TAG_HEADROOM = 0.12, 0.2

#: Width in inches of a letter of the values over marks, and of the narrowest bar.
_LETTER_IN, _BAR_IN = 0.058, 0.27

#: A white ground that keeps small letters legible over grid lines.
_GROUND = {"boxstyle": "square,pad=0.08", "fc": "white", "ec": "none"}


@dataclass(frozen=True, slots=True)
class Series:
    """What one colour stands for.

    Attributes:
        label: its words in the legend.
        index: its place among all values of the study, so that a value keeps its colour.
    """

    label: str
    index: int

    @property
    def colour(self) -> str:
        return COLOURS[self.index % len(COLOURS)]

    @property
    def hatch(self) -> str:
        return HATCHES[self.index % len(HATCHES)]

    @property
    def marker(self) -> str:
        return MARKERS[self.index % len(MARKERS)]


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: over the panel; empty for none.
        groups: labels of the groups along x.
        series: what the marks of a group stand for.
        points: [group][series]; None where the study has no such cell.
        y_label: quantity and unit.
        x_label: what the groups are.
        log: markers on a logarithmic axis instead of bars from zero.
    """

    title: str
    groups: Sequence[str]
    series: Sequence[Series]
    points: Sequence[Sequence[Point | None]]
    y_label: str
    x_label: str
    log: bool = False

    @property
    def known(self) -> list[Point]:
        """The points that have a value."""
        return [point for group in self.points for point in group if point and point.value is not None]

    @property
    def tag(self) -> str | None:
        """What is written into the panel about where its values come from."""
        words = extent(point.simulated for point in self.known), self._estimates
        return ", ".join(filter(None, words)) or None

    @property
    def _estimates(self) -> str | None:
        estimated = [point.estimated for point in self.known]
        if not any(estimated):
            return None
        return "estimated" if all(estimated) else "estimated where marked e"

    def value_text(self, point: Point) -> str:
        """What is written over a mark."""
        if point.value is None:
            return ""
        return rounded(point.value) + (" e" if point.estimated and self._estimates != "estimated" else "")

    @property
    def value_width_in(self) -> float:
        """Inches that the longest value over a mark takes."""
        return _LETTER_IN * max((len(self.value_text(point)) for point in self.known), default=0)

    @property
    def width_in(self) -> float:
        """Inches that it takes: room for every bar, and for the longest label of a group."""
        bars = sum(point is not None for group in self.points for point in group)
        longest = max(len(line) for group in self.groups for line in group.split("\n"))
        for_bars = 0.9 + max(_BAR_IN, self.value_width_in) * bars + 0.2 * len(self.groups)
        for_labels = 0.9 + len(self.groups) * 0.085 * longest
        return min(10.0, max(3.1, for_bars, for_labels))


@dataclass(frozen=True, slots=True)
class _Mark:
    x: float
    series: Series
    point: Point


def draw_row(axes_row: Sequence[Any], panels: Sequence[Panel], *, columns: int, width_in: float) -> None:
    """Draw panels that share their y axis into matplotlib axes, so many beside each other, each so wide."""
    for index, (axes, panel) in enumerate(zip(axes_row, panels, strict=True)):
        bar = min(_WIDEST_BAR, _GROUP / max(1, _most(panel)))
        for mark in _marks(panel, bar):
            _draw_mark(axes, mark, bar, log=panel.log)
        dress(axes, panel.title, panel.groups, panel.y_label if index % columns == 0 else "")
        axes.set_xlabel(panel.x_label)
        if panel.tag:
            write_tag(axes, panel.tag)
    _scale(axes_row[0], panels)
    for axes, panel in zip(axes_row, panels, strict=True):
        _write_values(axes, panel, width_in)


def _most(panel: Panel) -> int:
    return max(sum(point is not None for point in group) for group in panel.points)


def _marks(panel: Panel, bar: float) -> list[_Mark]:
    """Places of the marks; only what the study has takes room in a group."""
    marks = []
    for group, points in enumerate(panel.points):
        present = [(one, point) for one, point in zip(panel.series, points, strict=True) if point]
        for place, (series, point) in enumerate(present):
            marks.append(_Mark(group + (place - (len(present) - 1) / 2) * bar, series, point))
    return marks


def _draw_mark(axes: Any, mark: _Mark, bar: float, *, log: bool) -> None:
    point, series = mark.point, mark.series
    if point.value is None:
        _draw_absence(axes, mark)
        return
    look = {"color": series.colour, "zorder": 3}
    if log:
        axes.plot([mark.x], [point.value], marker=series.marker, ms=7.5, mec=INK, mew=0.7, **look)
    else:
        axes.bar(mark.x, point.value, bar * 0.9, hatch=series.hatch, edgecolor=INK, linewidth=0.6, **look)
    if point.low is None or point.high is None:
        return
    low = point.value if log and point.low <= 0 else point.low
    reach = [[max(0.0, point.value - low)], [max(0.0, point.high - point.value)]]
    axes.errorbar(
        [mark.x], [point.value], yerr=reach, fmt="none", ecolor=INK, elinewidth=1, capsize=2.4, zorder=4
    )


def _draw_absence(axes: Any, mark: _Mark) -> None:
    """Mark, at its place, a cell that does not fit, has no result, or whose energy is unknown."""
    foot = axes.get_xaxis_transform()  # x in groups, y as a share of the panel
    words = {"transform": foot, "ha": "center", "va": "bottom", "zorder": 5, "bbox": _GROUND}
    if mark.point.outcome is State.DOES_NOT_FIT:
        axes.plot([mark.x], [0.04], transform=foot, marker="x", color=INK, ms=5.5, mew=1.5)
        text = "does not fit" + (f" ({PREDICTED})" if mark.point.reason == PREDICTED else "")
        axes.text(mark.x, 0.09, text, rotation=90, size=7.5, color=INK, **words)
    else:
        sign = "?" if mark.point.outcome is State.OK else "○"
        axes.text(mark.x, 0.015, sign, size=8.5, color=ALERT, weight="bold", **words)


def dress(axes: Any, title: str, groups: Sequence[str], y_label: str) -> None:
    """Give axes their title, the labels of groups 1 apart, and a grid; empty words are left out."""
    if title:
        axes.set_title(title, loc="left", size=9.5, weight="bold", color=INK)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0, pad=4)
    spare = 0.6 if len(groups) > 1 else 0.8
    axes.set_xlim(-spare, max(0, len(groups) - 1) + spare)
    if y_label:
        axes.set_ylabel(y_label)
    axes.grid(axis="y", color=_GRID, linewidth=0.7)


def write_tag(axes: Any, words: str) -> None:
    """Write into the upper right corner what is simulated or estimated."""
    frame = {"boxstyle": "round,pad=0.28", "fc": "white", "ec": ALERT, "lw": 0.9}
    where = {"transform": axes.transAxes, "ha": "right", "va": "top", "zorder": 6}
    axes.text(0.985, 0.975, words, size=8, weight="bold", color=ALERT, bbox=frame, **where)


def _scale(axes: Any, panels: Sequence[Panel]) -> None:
    """Set the limits and ticks of a shared y axis: from zero, or logarithmic about the values."""
    known = [point for panel in panels for point in panel.known]
    free = _HEADROOM + (_TAG_HEADROOM if any(panel.tag for panel in panels) else 0)
    ends = [end for point in known for end in (point.value, point.high) if end is not None]
    highest = max(ends, default=0)
    if not known or highest <= 0:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_locator(NullLocator())
        return
    if panels[0].log:
        lows = [end for point in known for end in (point.value, point.low) if end is not None and end > 0]
        bottom = min(lows) / 2
        # The same share of the axis stays free as on a linear one; never less than a factor of two.
        span = max(math.log10(2 * highest / bottom), 1.0)
        axes.set_yscale("log")
        axes.set_ylim(bottom, bottom * 10 ** (span / (1 - free)))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, highest / (1 - free))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _write_values(axes: Any, panel: Panel, width_in: float) -> None:
    """Write each value over its mark, where marks are far enough apart for it."""
    bar = min(_WIDEST_BAR, _GROUP / max(1, _most(panel)))
    low, high = axes.get_xlim()
    roomy = bar * (width_in - 0.7) / (high - low) >= 0.9 * panel.value_width_in
    for mark in _marks(panel, bar):
        if mark.point.value is None:
            continue
        text = panel.value_text(mark.point)
        if not roomy:  # too close together for values; what is estimated is still told apart
            text = "e" if text.endswith(" e") else ""
        top = max(mark.point.value, mark.point.high or 0)
        axes.annotate(
            text,
            (mark.x, top),
            xytext=(0, 6 if panel.log else 2.5),
            textcoords="offset points",
            ha="center",
            va="bottom",
            size=7,
            color=INK,
            zorder=5,
            bbox=_GROUND,
        )
