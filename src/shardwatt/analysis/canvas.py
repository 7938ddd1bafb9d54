"""The page of a figure: words above and below the panels, its size, and saving it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from shardwatt.analysis.panels import INK, MUTED, Panel, draw_row
from shardwatt.figurelist import FORMATS
from shardwatt.recordfiles import replacing

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same letters everywhere
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "hatch.linewidth": 0.7,
    "svg.fonttype": "path",  # shapes instead of letters: no viewer needs the font
    "svg.hashsalt": "shardwatt",  # the same file from the same numbers
    "pdf.fonttype": 42,
}

#: Metadata that would make two runs differ.
_METADATA: dict[str, dict[str, None]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}

#: Inches: margin, heights of title, line of subtitle, legend and line of notes, and characters per inch.
_MARGIN, _TITLE, _SUBTITLE, _LEGEND, _NOTE = 0.14, 0.3, 0.18, 0.34, 0.152
_SUBTITLE_PER_IN, _NOTE_PER_IN = 14.5, 15.5


@dataclass(frozen=True, slots=True)
class Page:
    """A whole figure.

    Attributes:
        title: one line.
        subtitle: what all panels share.
        legend_title: what the series are.
        rows: panels, row by row, as many in each; a row shares its y axis.
        notes: sentences below.
        one_scale: whether all rows share one y axis.
    """

    title: str
    subtitle: str
    legend_title: str
    rows: Sequence[Sequence[Panel]]
    notes: Sequence[str]
    one_scale: bool = False


def save(make: Callable[[], Figure], folder: Path, name: str) -> list[Path]:
    """Make a figure in the project's style and write NAME.svg, NAME.pdf and NAME.png; the same bytes again.

    Each file is written whole or not at all: a report may embed it meanwhile.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(_STYLE):
        figure = make()
        for extension in FORMATS:
            path = folder / f"{name}.{extension}"
            with replacing(path) as temporary:
                figure.savefig(temporary, format=extension, dpi=200, metadata=_METADATA[extension])
            paths.append(path)
    return paths


@dataclass(frozen=True, slots=True)
class Sheet:
    """A figure with its words, and room for panels.

    Attributes:
        figure: panels made in it are laid out between the words.
        left: where its words begin, as a share of its width.
        top: where the words above end, as a share of its height: there is room for a legend.
    """

    figure: Figure
    left: float
    top: float


def sheet(
    title: str, subtitle: str, notes: Sequence[str], *, width: float, body: float, legend: bool = True
) -> Sheet:
    """Write title, subtitle and notes around free room.

    Args:
        title: one line.
        subtitle: wrapped to the width.
        notes: sentences below, likewise.
        width: of the figure, in inches.
        body: height of the panels, in inches.
        legend: whether to keep a line free for it.
    """
    above = textwrap.wrap(subtitle, int((width - 2 * _MARGIN) * _SUBTITLE_PER_IN))
    below = [
        line for note in notes for line in textwrap.wrap(note, int((width - 2 * _MARGIN) * _NOTE_PER_IN))
    ]
    header = _MARGIN + _TITLE + _SUBTITLE * len(above) + (_LEGEND if legend else 0.05)
    footer = _MARGIN + _NOTE * len(below)
    height = header + footer + body

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    engine: Any = figure.get_layout_engine()
    engine.set(
        rect=(0, footer / height, 1, 1 - (header + footer) / height), w_pad=0.11, h_pad=0.07, wspace=0.01
    )
    left, top = _MARGIN / width, 1 - _MARGIN / height
    figure.text(left, top, title, size=12, weight="bold", va="top", color=INK)
    top -= _TITLE / height
    figure.text(left, top, "\n".join(above), size=9, va="top", color=MUTED)
    top -= (_SUBTITLE * len(above) + 0.05) / height
    figure.text(
        left, 0.6 * _MARGIN / height, "\n".join(below), size=7.5, va="bottom", color=MUTED, linespacing=1.3
    )
    return Sheet(figure, left, top)


def compose(page: Page) -> Figure:
    """Lay a page out as a matplotlib figure."""
    panels = [panel for row in page.rows for panel in row]
    columns = len(page.rows[0])
    widest_in = max(p.width_in for p in panels)
    width = max(6.6, columns * widest_in + 0.3, _words_width_in(page))
    label_lines = max(group.count("\n") + 1 for panel in panels for group in panel.groups)
    panel_height = (1.75 if len(page.rows) > 1 and not page.one_scale else 2.6) + 0.16 * label_lines
    made = sheet(page.title, page.subtitle, page.notes, width=width, body=panel_height * len(page.rows))
    grid = made.figure.subplots(
        len(page.rows), columns, squeeze=False, sharey="all" if page.one_scale else "row"
    )
    if page.one_scale:
        draw_row(list(grid.flat), panels, columns=columns, width_in=widest_in)
    else:
        for row, axes_row in zip(page.rows, grid, strict=True):
            draw_row(axes_row, row, columns=columns, width_in=widest_in)
    _legend(made.figure, page, made.left, made.top)
    return made.figure


def _words_width_in(page: Page) -> float:
    """Inches that title and legend take; neither is broken."""
    labels = [one.label for one in page.rows[0][0].series]
    legend = 0.085 * len(page.legend_title) + sum(0.62 + 0.078 * len(label) for label in labels)
    return 2 * _MARGIN + max(0.108 * len(page.title), legend)


def _legend(figure: Figure, page: Page, left: float, top: float) -> None:
    panel = page.rows[0][0]
    handles: list[Any] = []
    for one in panel.series:
        if panel.log:
            handles.append(Line2D([], [], color=one.colour, marker=one.marker, ls="", ms=7, mec=INK, mew=0.7))
        else:
            handles.append(Patch(facecolor=one.colour, hatch=one.hatch, edgecolor=INK, linewidth=0.6))
    title = figure.text(left, top + 0.01 / figure.get_figheight(), page.legend_title, size=8.5, va="top")
    title.set_color(MUTED)
    figure.legend(
        handles,
        [one.label for one in panel.series],
        loc="upper left",
        bbox_to_anchor=(left + 0.085 * (len(page.legend_title) + 1) / figure.get_figwidth(), top),
        ncols=len(panel.series),
        frameon=False,
        fontsize=8.5,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.7,
        handletextpad=0.5,
        columnspacing=1.5,
    )
