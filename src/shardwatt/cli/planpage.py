"""How `shardwatt plan` shows a plan in a terminal: sections of cells, totals, and sentences below them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from shardwatt.plan.sentences import DOES_NOT_FIT
from shardwatt.plan.view import Head, Line, Section, Sums, View

#: Columns of a file or a pipe, and of a terminal that does not tell.
WIDTH = 100

_GAP = "  "
_NARROWEST = 40
_SHORTEST_NAME = 12

#: Axes whose values are words; the others end where their headings do.
_WORDS = frozenset({"dataset"})


@dataclass(frozen=True, slots=True)
class _Layout:
    """Columns of a section: names and widths of the axes, then places, heads and widths of the numbers."""

    axes: Sequence[str]
    axis_widths: Sequence[int]
    places: Sequence[int]
    heads: Sequence[Head]
    widths: Sequence[int]

    def row(self, axes: Sequence[str], texts: Sequence[str]) -> str:
        left = [
            value.ljust(width) if axis in _WORDS else value.rjust(width)
            for axis, value, width in zip(self.axes, axes, self.axis_widths, strict=True)
        ]
        return _joined([*left, *(text.rjust(width) for text, width in zip(texts, self.widths, strict=True))])


def page(shown: View, width: int = WIDTH) -> Iterator[str]:
    """The lines for a person, none wider than the terminal where that can be."""
    yield from (click.style(line, bold=True) for line in _wrapped(shown.summary, width))
    yield from _wrapped(shown.standing, width)
    for text in shown.warnings:
        yield from (click.style(line, fg="yellow") for line in _wrapped(f"warning: {text}", width))
    if shown.common:
        yield from (_dim(line) for line in _wrapped(f"all: {' '.join(shown.common)}", width))
    sections = [section for section in shown.sections if section.axes or shown.heads]
    layouts = [_layout(shown, section, width) for section in sections]
    for section, layout in zip(sections, layouts, strict=True):
        yield ""
        yield from _section(section, layout, width)
    if shown.sections:
        yield ""
        yield from _sums(shown.sums, width)
        yield ""
    for text in shown.remarks:
        yield from _wrapped(text, width)
    if missing := _missing(shown.heads, layouts):
        words = f"No room here for {missing}: a wider terminal or `--format csv` has them."
        yield from _wrapped(words, width)
    if shown.notes:
        yield ""
        yield click.style("What this rests on", bold=True)
    for text in shown.notes:
        yield from _wrapped(text, width, mark="- ")


def _missing(heads: Sequence[Head], layouts: Sequence[_Layout]) -> str:
    """Columns that no section shows, and those that some do not; empty where all are shown."""
    shown = [[head in layout.heads for layout in layouts] for head in heads]
    nowhere = [_called(head) for head, found in zip(heads, shown, strict=True) if not any(found)]
    somewhere = [
        _called(head) for head, found in zip(heads, shown, strict=True) if any(found) and not all(found)
    ]
    parts = [", ".join(nowhere), f"in some sections for {', '.join(somewhere)}" if somewhere else ""]
    return ", and ".join(filter(None, parts))


def _layout(shown: View, section: Section, width: int) -> _Layout:
    """The columns of a section: those for which there is room beside its axes, as wide as in the others."""
    lines = [line for one in shown.sections for line in one.lines]
    axes = _widths([section.axes, *(line.axes for line in section.lines)])
    widths = _widths([*_headings(shown.heads), *(line.texts for line in lines)])
    room = width - sum(len(_GAP) + one for one in axes) + len(_GAP)
    places = _that_fit(shown.heads, widths, room)
    return _Layout(
        section.axes,
        axes,
        places,
        [shown.heads[place] for place in places],
        [widths[place] for place in places],
    )


def _that_fit(heads: Sequence[Head], widths: Sequence[int], room: int) -> list[int]:
    """Places of the columns for which there is room, those of the lowest ranks."""
    places = sorted(range(len(widths)), key=lambda place: heads[place].rank)
    while len(places) > 1 and sum(len(_GAP) + widths[place] for place in places) > room:
        places.pop()
    return sorted(places)


def _section(section: Section, layout: _Layout, width: int) -> Iterator[str]:
    title = click.style(section.name, bold=True) if section.name else ""
    interval = section.interval or ""
    if len(section.name) + len(_GAP) + len(interval) <= width:
        yield from filter(None, [_joined([part for part in (title, interval) if part])])
    else:
        yield from (title, interval)
    names, units = _headings(layout.heads)
    yield click.style(layout.row(layout.axes, names), bold=True)
    yield _dim(layout.row([""] * len(layout.axes), units))
    before: Line | None = None
    for line in section.lines:
        own = layout.row(_news(line, before), [line.texts[place] for place in layout.places])
        yield own if line.runs else f"{own}{_GAP}{click.style(DOES_NOT_FIT, fg='yellow')}"
        before = line


def _news(line: Line, before: Line | None) -> list[str]:
    """A line's axes, without those that from the left on are as in the line before."""
    values = list(line.axes)
    if before is not None:
        for place, (value, last) in enumerate(zip(line.axes, before.axes, strict=True)):
            if value != last:
                break
            values[place] = ""
    return values


def _sums(sums: Sums, width: int) -> Iterator[str]:
    """The table of totals; where there is no room, names are cut and columns left out."""
    all_widths = _widths([*_headings(sums.heads), *(texts for _, _, texts in sums.lines)])
    places = _that_fit(sums.heads, all_widths, width - _SHORTEST_NAME)
    widths = [all_widths[place] for place in places]
    room = max(_SHORTEST_NAME, width - sum(len(_GAP) + one for one in widths))
    numbers = [f"{number or ''}" for number, _, _ in sums.lines]
    number_width = max(map(len, numbers))
    begins = [number.rjust(number_width) + _GAP if number else "" for number in numbers]
    names = [
        begin + textwrap.shorten(name, room - len(begin), placeholder=" …")
        for begin, (_, name, _) in zip(begins, sums.lines, strict=True)
    ]
    longest = max(map(len, names))

    def row(name: str, texts: Sequence[str]) -> str:
        columns = (texts[place].rjust(wide) for place, wide in zip(places, widths, strict=True))
        return _joined([name.ljust(longest), *columns])

    heads, units = _headings(sums.heads)
    yield click.style(row("totals", heads), bold=True)
    yield _dim(row("", units))
    *blocks, whole = [row(name, texts) for name, (_, _, texts) in zip(names, sums.lines, strict=True)]
    yield from blocks
    yield click.style(whole, bold=True)


def _headings(heads: Sequence[Head]) -> tuple[list[str], list[str]]:
    return [head.name for head in heads], [head.unit for head in heads]


def _called(head: Head) -> str:
    return f"{head.name} in {head.unit}" if head.unit else head.name


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def _joined(cells: Sequence[str]) -> str:
    return _GAP.join(cells).rstrip()


def _dim(text: str) -> str:
    return click.style(text, dim=True)


def _wrapped(text: str, width: int, mark: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(width, _NARROWEST),
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_on_hyphens=False,
    )
