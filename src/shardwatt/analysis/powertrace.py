"""The power of one cell's devices over time, with the phases of its batches behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from shardwatt.analysis.canvas import save, sheet
from shardwatt.analysis.marking import SENTENCES, WORD, titled
from shardwatt.analysis.panels import COLOURS, INK, MUTED, write_tag
from shardwatt.cell import AXES, Cell
from shardwatt.cellfiles import read_table
from shardwatt.errors import RecordError
from shardwatt.layout import CellPaths
from shardwatt.power.curve import GAP_PERIODS
from shardwatt.readings import Status
from shardwatt.recordfiles import read
from shardwatt.records import Record

Array = npt.NDArray[np.float64]

#: Phases of a batch in the order in which they run, with the colour behind them.
_PHASES = {"prefill": "#f2c9a1", "walk": "#d9d2ec", "decode": "#e3eee0"}

#: What is shown before and after the window, as a share of it.
_MARGIN = 0.05

#: Most points of a line; more samples are drawn as means, with the range of each behind.
_POINTS = 1500

#: Inches: width, height of a node's panel, and of the legend's line.
_WIDTH, _PANEL = 9.0, 1.9


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """The power of one device.

    Attributes:
        node: host name.
        device: index on its node.
        t_s: s since the window began.
        power_w: W; NaN where the sensor said nothing.
    """

    node: str
    device: int
    t_s: Array
    power_w: Array


def name_of(cell: Cell) -> str:
    """The file name of a cell's trace."""
    return "--".join(["power-trace", *(str(getattr(cell, axis)) for axis in AXES)])


def draw_trace(paths: CellPaths, folder: Path) -> list[Path]:
    """Draw the trace of a finished cell and write it as SVG, PDF and PNG; returns their paths.

    Raises:
        RecordError: the cell has no record, did not run through, has no samples, or a file is torn.
        OSError: the folder cannot be written or the disk is full.
    """
    try:
        record = read(Record, paths.record)
    except FileNotFoundError:
        raise RecordError(f"{paths.cell.path}: has no result; run it first: {paths.target}") from None
    if record.timings is None:
        raise RecordError(f"{paths.cell.path}: {record.outcome}: {record.reason}; there is no power to show")
    lines = device_lines(read_table(paths.results / "power.parquet"), record.timings.duration_s)
    if not lines:
        raise RecordError(f"{paths.cell.path}: power.parquet holds no sample of the window")
    batches = read_table(paths.results / "batches.parquet")
    return save(lambda: compose(record, lines, batches), folder, name_of(paths.cell))


def device_lines(samples: pa.Table, duration_s: float) -> list[DeviceLine]:
    """The samples of each device in and around a window of so many seconds, by node and device."""
    columns = {name: samples.column(name).to_pylist() for name in ("node", "device")}
    t_s = np.asarray(samples.column("t_s").to_pylist(), dtype=float)
    power_w = np.asarray(samples.column("power_w").to_pylist(), dtype=float)
    near = (t_s >= -_MARGIN * duration_s) & (t_s <= (1 + _MARGIN) * duration_s)
    keys = list(zip(columns["node"], columns["device"], strict=True))
    lines = []
    for key in sorted({key for key, is_near in zip(keys, near, strict=True) if is_near}):
        own = near & np.asarray([one == key for one in keys])
        order = np.argsort(t_s[own], kind="stable")
        lines.append(DeviceLine(*key, t_s[own][order], power_w[own][order]))
    return lines


def compose(record: Record, lines: Sequence[DeviceLine], batches: pa.Table) -> Figure:
    """Lay a trace out: a panel for each node, a line for each of its devices."""
    assert record.energy is not None
    assert record.timings is not None
    cell, window = record.cell, record.energy.window
    nodes = sorted({line.node for line in lines})
    subtitle = (
        f"{cell.shards} shards, batch {cell.batch}, at most {cell.length} new tokens, {cell.dataset}, "
        f"{cell.precision}, {'no power cap' if cell.cap == 'none' else f'capped at {cell.cap} W per GPU'}, "
        f"repeat {cell.repeat}"
    ).replace("1 shards", "1 shard")
    estimated = window.status is Status.ESTIMATED
    worth = str(window.status) + (f", {window.method}" if window.method and not estimated else "")
    shown = "Samples as they were read"
    if any(len(line.t_s) > _POINTS for line in lines):
        shown = "Means of some samples each, with their range behind"
    notes = [
        f"0 is the begin of the inference window of {record.timings.duration_s:.1f} s. {shown}, a gap where "
        f"there is none; energy of the window: {worth}. The phases of a batch are drawn one after the other, "
        "as long as they took."
    ]
    simulated = WORD if record.simulated is not None else None
    if simulated is not None:
        notes.insert(0, SENTENCES[simulated])
    made = sheet(
        titled(f"Power over time: {cell.model} on {cell.gpu}", simulated),
        subtitle,
        notes,
        width=_WIDTH,
        body=0.5 + _PANEL * len(nodes),
    )
    limits = record.power_cap.devices if record.power_cap else []
    limits_w = sorted({one.enforced_w for one in limits if one.enforced_w is not None})
    grid = made.figure.subplots(len(nodes), 1, squeeze=False, sharex=True, sharey=True)
    for axes, node in zip(grid[:, 0], nodes, strict=True):
        own = [line for line in lines if line.node == node]
        _draw_node(axes, node, own, batches, record.timings.duration_s)
        for limit_w in limits_w:
            axes.axhline(limit_w, color=INK, linewidth=0.9, linestyle=(0, (5, 3)), zorder=4)
        if tag := ", ".join(word for word, is_so in ((WORD, simulated), ("estimated", estimated)) if is_so):
            write_tag(axes, tag)
    highest = max([*limits_w, *(float(np.nanmax(one.power_w, initial=0)) for one in lines)])
    grid[0, 0].set_ylim(0, 1.18 * highest or 1)
    grid[-1, 0].set_xlabel("time in the window (s)")
    _legend(made.figure, lines, made.left, made.top, has_cap=bool(limits_w))
    return made.figure


def _draw_node(
    axes: Any, node: str, lines: Sequence[DeviceLine], batches: pa.Table, duration_s: float
) -> None:
    for phase, colour in _PHASES.items():
        spans = [(start, lasted) for name, start, lasted in _phases(batches) if name == phase and lasted > 0]
        axes.broken_barh(
            spans, (0, 1), transform=axes.get_xaxis_transform(), color=colour, linewidth=0, zorder=0
        )
    for end_s in (0, duration_s):
        axes.axvline(end_s, color=MUTED, linewidth=0.8, zorder=1)
    for line in lines:
        _draw_line(axes, line)
    axes.set_title(node, loc="left", size=9.5, weight="bold", color=INK)
    axes.set_ylabel("power (W)")
    axes.margins(x=0)


def _phases(batches: pa.Table) -> Iterator[tuple[str, float, float]]:
    """Name, begin and length of each phase, in s of the window."""
    for row in batches.select(["start_s", *(f"{phase}_s" for phase in _PHASES)]).to_pylist():
        begin_s = row["start_s"]
        for phase in _PHASES:
            yield phase, begin_s, row[f"{phase}_s"]
            begin_s += row[f"{phase}_s"]


def _draw_line(axes: Any, line: DeviceLine) -> None:
    colour = COLOURS[line.device % len(COLOURS)]
    t_s, power_w = _with_gaps(line)
    if len(t_s) > _POINTS:
        parts = np.array_split(np.arange(len(t_s)), _POINTS)
        low, mean, high = (
            np.asarray([_known(of, power_w[part]) for part in parts]) for of in (np.min, np.mean, np.max)
        )
        t_s, power_w = np.asarray([t_s[part].mean() for part in parts]), mean
        axes.fill_between(t_s, low, high, color=colour, alpha=0.2, linewidth=0, zorder=2)
    axes.plot(t_s, power_w, color=colour, linewidth=1.1, zorder=3)


def _with_gaps(line: DeviceLine) -> tuple[Array, Array]:
    """A line with an unknown sample in each gap of more than ten periods, so that none is drawn over it."""
    steps = np.diff(line.t_s)
    gaps = np.flatnonzero(steps > GAP_PERIODS * np.median(steps)) if len(steps) else np.empty(0, dtype=int)
    middles = line.t_s[gaps] + steps[gaps] / 2
    return np.insert(line.t_s, gaps + 1, middles), np.insert(line.power_w, gaps + 1, np.nan)


def _known(of: Callable[[Array], float], values: Array) -> float:
    """A number of those values that are known; NaN where none is."""
    known = values[~np.isnan(values)]
    return of(known) if len(known) else np.nan


def _legend(figure: Figure, lines: Sequence[DeviceLine], left: float, top: float, *, has_cap: bool) -> None:
    handles: list[Any] = [
        Line2D([], [], color=COLOURS[device % len(COLOURS)], label=f"device {device}")
        for device in sorted({line.device for line in lines})
    ]
    if has_cap:
        handles.append(
            Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (5, 3)), label="enforced limit")
        )
    handles += [Patch(facecolor=colour, label=phase) for phase, colour in _PHASES.items()]
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left, top),
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.5,
        columnspacing=1.3,
    )
