"""The two ratios as distributions: scope and method, each on an axis of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from shardwatt.analysis.canvas import sheet
from shardwatt.analysis.marking import SENTENCES, WORD, extent, titled
from shardwatt.analysis.panels import COLOURS, INK, MUTED, dress
from shardwatt.analysis.points import in_order
from shardwatt.analysis.survey import State
from shardwatt.figurelist import FigureSpec
from shardwatt.readings import Status

#: Fewest values that quartiles are drawn of.
_FEWEST_FOR_QUARTILES = 4

#: Half of the room in which dots of one group lie beside each other, and that of the box, groups 1 apart.
_SPREAD, _BOX = 0.16, 0.26

#: Least distance of the ends of an axis from 1, and free room beyond the values, as a share of their range.
_LEAST_REACH, _ROOM = 0.01, 0.12

#: Inches: of a group, of the words beside the axis, and the narrowest panel.
_GROUP_IN, _AXIS_IN, _PANEL_IN = 0.95, 0.9, 3.6


@dataclass(frozen=True, slots=True)
class Part:
    """One ratio of a study.

    Attributes:
        title: its name.
        label: what is divided by what.
        groups: words of a group of cells and their values, ascending.
        nothing: what is said where no cell has it.
    """

    title: str
    label: str
    groups: Sequence[tuple[str, Sequence[float]]]
    nothing: str

    @property
    def known(self) -> list[float]:
        """All values, ascending."""
        return sorted(value for _, values in self.groups for value in values)


def parts(frame: pd.DataFrame) -> tuple[Part, Part]:
    """The scope ratio of cells on several nodes by their number, the method ratio by GPU type.

    An estimate has no ratio: it would compare constants.
    """
    metered = frame["energy_j"].notna() & (frame["energy_status"] != str(Status.ESTIMATED))
    ran = frame[(frame["outcome"] == State.OK) & metered]
    several = ran[(ran["nodes"] > 1) & ran["scope_ratio"].notna()]
    dcgm = ran[ran["method_ratio"].notna()]
    one_type = several["gpu"].nunique() < 2
    by_nodes = [
        (f"{nodes} nodes" if one_type else f"{gpu}\n{nodes} nodes", _values(own["scope_ratio"]))
        for (gpu, nodes), own in several.groupby(["gpu", "nodes"])
    ]
    by_gpu = [(gpu, _values(dcgm.loc[dcgm["gpu"] == gpu, "method_ratio"])) for gpu in in_order(dcgm["gpu"])]
    return (
        Part("Scope", "rank-0 node × nodes / all nodes", by_nodes, "no cell on several nodes was read"),  # noqa: RUF001
        Part("Method", "DCGM / NVML, rank-0 node", by_gpu, "no cell was read by DCGM"),
    )


def summary(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Each ratio in numbers: cells, median, quartiles and ends; those that no cell has are left out."""
    rows = []
    for part in parts(frame):
        for words, values in part.groups:
            low, high = _quartiles(values) or (None, None)
            rows.append(
                {
                    "ratio": part.title.lower(),
                    "of": words.replace("\n", ", "),
                    "cells": str(len(values)),
                    "median": f"{median(values):.4f}",
                    "middle half": "--" if low is None else f"{low:.4f} to {high:.4f}",
                    "all": f"{values[0]:.4f} to {values[-1]:.4f}",
                }
            )
    return rows


def in_words(frame: pd.DataFrame) -> str:
    """What the figure shows, for readers who cannot see it."""
    words = extent(frame[WORD])
    sentences = [] if words is None else [SENTENCES[words]]
    for part in parts(frame):
        said = [f"{group.replace(chr(10), ', ')}, {_said(values)}" for group, values in part.groups]
        sentences.append(f"{part.title} ratio, {part.label}: {'; '.join(said) or part.nothing}.")
    return " ".join(sentences)


def compose(frame: pd.DataFrame, spec: FigureSpec) -> Figure:
    """Lay both ratios out beside each other, each with its own axis."""
    both = parts(frame)
    widths = [max(_PANEL_IN, _AXIS_IN + _GROUP_IN * len(part.groups)) for part in both]
    simulated = extent(frame[WORD])
    notes = [
        *([] if simulated is None else [SENTENCES[simulated]]),
        "A dot is a cell, N their number; line: median; box: quartiles, from four cells on. "
        "1 means that both accountings agree. The axes differ, and the ratios are never multiplied.",
    ]
    words = spec.conditions[:1].upper() + spec.conditions[1:]
    title = titled(spec.title, simulated)
    made = sheet(title, words, notes, width=sum(widths), body=2.9, legend=False)
    grid = made.figure.subplots(1, 2, squeeze=False, width_ratios=widths)
    for axes, part, colour in zip(grid[0], both, COLOURS, strict=False):
        _draw(axes, part, colour)
    return made.figure


def _values(column: pd.Series) -> list[float]:
    return sorted(float(value) for value in column)


def _quartiles(values: Sequence[float]) -> tuple[float, float] | None:
    if len(values) < _FEWEST_FOR_QUARTILES:
        return None
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def _said(values: Sequence[float]) -> str:
    return f"N = {len(values)}, median {median(values):.3f}, from {values[0]:.3f} to {values[-1]:.3f}"


def _draw(axes: Any, part: Part, colour: str) -> None:
    labels = [f"{words}\nN = {len(values)}" for words, values in part.groups]
    dress(axes, f"{part.title} ratio", labels, part.label)
    axes.axhline(1, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    if not part.known:
        axes.text(0.5, 0.5, part.nothing, transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    for x, (_, values) in enumerate(part.groups):
        if box := _quartiles(values):
            axes.bar(
                x,
                box[1] - box[0],
                2 * _BOX,
                bottom=box[0],
                color=colour,
                alpha=0.22,
                edgecolor=colour,
                zorder=2,
            )
        axes.plot([x - _BOX, x + _BOX], [median(values)] * 2, color=INK, linewidth=1.6, zorder=4)
        axes.scatter(
            [x + place for place in _places(len(values))], values, s=16, color=colour, edgecolors=INK,
            linewidths=0.4, zorder=3,
        )  # fmt: skip
    _scale(axes, part.known)


def _places(count: int) -> list[float]:
    """Where dots lie beside each other, so that equal values stay apart: the same places every time."""
    return [0.0] if count == 1 else [_SPREAD * (2 * ((index * 0.618034) % 1) - 1) for index in range(count)]


def _scale(axes: Any, values: Sequence[float]) -> None:
    low, high = min(values[0], 1 - _LEAST_REACH), max(values[-1], 1 + _LEAST_REACH)
    room = _ROOM * (high - low)
    axes.set_ylim(low - room, high + room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
