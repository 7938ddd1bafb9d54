"""How `shardwatt meters` shows a node: tables of meters and GPUs, and sentences below them."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence

import click

from shardwatt.checks.metertable import GpuRow, MeterRow, NodeMeters

_COLOURS = {
    **dict.fromkeys(("measured", "derived", "answers"), "green"),
    "estimated": "yellow",
    **dict.fromkeys(("unavailable", "unsupported", "permission_denied"), "red"),
}

_METERS = ("meter", "device", "status", "power", "spread", "step", "tick")
_GPUS = (
    "device",
    "busy",
    "counter/integral",
    "limit set",
    "enforced",
    "lowest",
    "highest",
    "default",
    "name",
)
#: Columns of words; the others hold numbers, and end where the heads do.
_WORDS = frozenset({"meter", "device", "status", "name"})

_GAP = "  "
_UNKNOWN = "-"
_NARROWEST = 40


def page(found: NodeMeters) -> Iterator[str]:
    """The lines for a person."""
    yield click.style(f"{found.node}, read for {found.seconds:g} s", bold=True)
    yield ""
    yield from _meters(found.rows)
    yield ""
    yield from _wrapped(
        "spread: standard deviation of power: of samples, or for counters of means over 1 s; step and tick: "
        "by how much and how often a counter moves"
    )
    if found.gpus:
        yield ""
        yield from _gpus(found.gpus)
        yield ""
        yield from _wrapped(
            "counter/integral: joules of the energy counter over the integral of sampled power; limits are "
            f"power limits, and whether you may set them was {found.setting_limits}"
        )
    yield ""
    yield from _wrapped(_sampling(found))
    for text in found.warnings:
        yield from _wrapped(f"{click.style('warning:', fg='yellow')} {text}")
    by = f" ({found.cell_method})" if found.cell_method else ""
    status = click.style(f"{found.cell_status}{by}", fg=_COLOURS[found.cell_status])
    yield from _wrapped("; ".join(filter(None, (f"energy of a cell here: {status}", found.cell_detail))))


def _sampling(found: NodeMeters) -> str:
    sampling = found.sampling
    text = (
        f"{sampling.samples} samples of each device, one every {_time(sampling.period_s)} "
        f"({_time(found.asked_period_s)} were asked for; 95 % came within {_time(sampling.jitter_s)} of it), "
        f"the longest wait {_time(sampling.max_gap_s)}"
    )
    if found.processors_busy is not None:
        text += f"; processors were busy for {_percent(found.processors_busy)} of the time"
    return text


def _meters(rows: Sequence[MeterRow]) -> Iterator[str]:
    table = [_meter_cells(row) for row in rows]
    widths = _widths([_METERS, *table])
    indent = sum(widths[:3]) + 3 * len(_GAP)
    yield click.style(_line(_METERS, _METERS, widths).rstrip(), bold=True)
    before: MeterRow | None = None
    for row, cells in zip(rows, table, strict=True):
        detail = row.detail or ""
        if before is not None and row.meter == before.meter:
            cells[0] = ""
        if before is not None and detail and detail == before.detail:
            detail = "likewise"
        before = row
        # Colours have no width.
        line = _line(_METERS[:2], cells[:2], widths)
        line += _GAP + click.style(f"{cells[2]:<{widths[2]}}", fg=_COLOURS[cells[2]])
        if any(cells[3:]):
            line += _GAP + _line(_METERS[3:], cells[3:], widths[3:])
            if (said := detail) and _fits(line, detail):
                line, said = f"{line}{_GAP}{detail}", ""
            yield line.rstrip()
            yield from _wrapped(said, indent)
        else:
            first, *others = _wrapped(detail, indent) if detail else [""]
            yield (line + _GAP + first.lstrip()).rstrip()
            yield from others


def _meter_cells(row: MeterRow) -> list[str]:
    cells = [row.meter, "", row.status or "answers", "", "", "", ""]
    if row.device is not None and row.device.uuid is not None:
        cells[1] = f"GPU {row.device.index}"
    if row.power_w is not None:
        cells[3:5] = _watts(row.power_w), _watts(row.power_sd_w)
    if row.step_j is not None and row.tick_s is not None:
        # One that is looked at too slowly seems to move at every look.
        tick = _time(row.tick_s) if row.tick_is_seen else f"< {_time(2 * row.tick_s)}"
        cells[5:7] = f"{row.step_j:.3g} J", tick
    return cells


def _gpus(rows: Sequence[GpuRow]) -> Iterator[str]:
    table = [_gpu_cells(row) for row in rows]
    widths = _widths([_GPUS, *table])
    yield click.style(_line(_GPUS, _GPUS, widths).rstrip(), bold=True)
    for row, cells in zip(rows, table, strict=True):
        yield _line(_GPUS, cells, widths).rstrip()
        if row.limit_detail:
            yield from _wrapped(f"power limits: {row.limit_detail}", widths[0] + len(_GAP))


def _gpu_cells(row: GpuRow) -> list[str]:
    ratio = row.counter_over_integral
    limits = (
        *(row.limit_set_w, row.limit_enforced_w, row.limit_least_w, row.limit_most_w, row.limit_default_w),
    )
    return [
        f"GPU {row.device.index}",
        _UNKNOWN if row.busy is None else _percent(row.busy),
        _UNKNOWN if ratio is None else f"{ratio:.3f} ({round(100 * (ratio - 1), 1) + 0.0:+.1f} %)",
        *(_UNKNOWN if limit_w is None else f"{limit_w:g} W" for limit_w in limits),
        row.device.name,
    ]


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _line(heads: Sequence[str], cells: Sequence[str], widths: Sequence[int]) -> str:
    return _GAP.join(
        cell.ljust(width) if head in _WORDS else cell.rjust(width)
        for head, cell, width in zip(heads, cells, widths, strict=False)
    )


def _wrapped(text: str, indent: int = 0) -> Iterator[str]:
    """A text in lines that fit a terminal; one line where the output is none."""
    begin = " " * indent
    width = max(_width() or indent + len(text) + 1, indent + _NARROWEST)
    yield from textwrap.wrap(
        text, width, initial_indent=begin, subsequent_indent=begin, break_on_hyphens=False
    )


def _width() -> int | None:
    """Columns of the terminal; None where the output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _fits(line: str, text: str) -> bool:
    width = _width()
    return width is None or len(click.unstyle(line)) + len(_GAP) + len(text) <= width


def _time(time_s: float) -> str:
    return f"{round(1000 * time_s, 1):g} ms" if time_s < 1 else f"{time_s:.3g} s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _watts(power_w: float | None) -> str:
    return _UNKNOWN if power_w is None else f"{power_w:.2f} W"
