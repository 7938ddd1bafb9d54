"""How `shardwatt plan` shows a plan in a terminal: sections of cells, totals, and sentences below them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import click

from shardwatt.plan.sentences import DOES_NOT_FIT
from shardwatt.plan.view import MAIN_RANK, Head, Line, Section, Sums, View

#: Columns of a file or a pipe, and of a terminal that does not tell.
WIDTH = 100

_GAP = "  "
#: Between columns where there is no room otherwise for what a study is planned by.
_NARROW_GAP = " "
_NARROWEST = 40
_SHORTEST_NAME = 12

#: Axes whose values are words; the others end where their headings do.
_WORDS = frozenset({"dataset"})


@dataclass(frozen=True, slots=True)
class _Layout:
    """Columns of a section: names and widths of the axes; places, heads and widths of the numbers; the gap
    between any two."""

    axes: Sequence[str]
    axis_widths: Sequence[int]
    places: Sequence[int]
    heads: Sequence[Head]
    widths: Sequence[int]
    gap: str

    def row(self, axes: Sequence[str], texts: Sequence[str]) -> str:
        left = [
            value.ljust(width) if axis in _WORDS else value.rjust(width)
            for axis, value, width in zip(self.axes, axes, self.axis_widths, strict=True)
        ]
        right = [text.rjust(width) for text, width in zip(texts, self.widths, strict=True)]
        return self.gap.join([*left, *right]).rstrip()


def page(shown: View, width: int = WIDTH) -> Iterator[str]:
    """The lines for a person, none wider than the terminal where that can be."""
    yield from (click.style(line, bold=True) for line in _wrapped(shown.summary, width))
    yield from _wrapped(shown.standing, width)
    for text in shown.warnings:
        yield from (click.style(line, fg="yellow") for line in _wrapped(f"warning: {text}", width))
    if shown.common:
        yield from (_dim(line) for line in _wrapped(f"all: {' '.join(shown.common)}", width))
    layouts = _layouts(shown, width)
    for section, layout in zip(_with_columns(shown), layouts, strict=True):
        yield ""
        yield from _section(section, layout, width)
    if shown.sections:
        yield ""
        yield from _sums(shown.sums, width)
        yield ""
    for text in shown.remarks:
        yield from _wrapped(text, width)
    if hidden := _hidden(shown, layouts, width):
        yield from _wrapped(hidden, width)
    if shown.notes:
        yield ""
        yield click.style("What this rests on", bold=True)
    for text in shown.notes:
        yield from _wrapped(text, width, mark="- ")


def _hidden(shown: View, layouts: Sequence[_Layout], width: int) -> str | None:
    """What there is no room for, in one sentence with how to see it; None where there is room for all."""
    nowhere: list[str] = []
    somewhere: list[str] = []
    for head in shown.heads:
        shows = [head in layout.heads for layout in layouts]
        if shows and not all(shows):
            (somewhere if any(shows) else nowhere).append(_called(head, shown.heads))
    sums = shown.sums.heads
    places, _ = _sums_columns(shown.sums, width)
    of_sums = [_called(head, sums) for place, head in enumerate(sums) if place not in places]
    parts = [
        f"{', '.join(names)}{where}"
        for where, names in (("", nowhere), (" (in some sections)", somewhere), (" (in the totals)", of_sums))
        if names
    ]
    if not parts:
        return None
    return f"No room for {'; '.join(parts)}: see COLUMNS={_whole_width(shown)} or `--format csv`."


def _whole_width(shown: View) -> int:
    """Columns of a terminal that has room for all but long names of blocks."""
    gap = len(_GAP)
    _, sums = _sums_columns(shown.sums, sys.maxsize)
    numbers = sum(gap + one for one in _number_widths(shown))
    axes = [sum(gap + one for one in _axis_widths(section)) for section in shown.sections]
    return max(_SHORTEST_NAME + sum(gap + one for one in sums), max(axes, default=0) + numbers - gap)


def _layouts(shown: View, width: int) -> list[_Layout]:
    """The columns of each section that has any. Where two spaces between them leave no room for what a study
    is planned by, that alone is shown, and closer together."""
    sections, widths = _with_columns(shown), _number_widths(shown)
    main = [place for place, head in enumerate(shown.heads) if head.rank <= MAIN_RANK]
    wide = [_layout(shown.heads, widths, range(len(widths)), section, width, _GAP) for section in sections]
    if all(set(main) <= set(layout.places) for layout in wide):
        return wide
    return [_layout(shown.heads, widths, main, section, width, _NARROW_GAP) for section in sections]


def _layout(
    heads: Sequence[Head],
    widths: Sequence[int],
    wanted: Sequence[int],
    section: Section,
    width: int,
    gap: str,
) -> _Layout:
    """The columns of a section: of the wanted places those for which there is room beside its axes."""
    axes = _axis_widths(section)
    room = width - sum(len(gap) + one for one in axes) + len(gap)
    places = _that_fit(heads, widths, wanted, room, gap)
    return _Layout(
        section.axes,
        axes,
        places,
        [heads[place] for place in places],
        [widths[place] for place in places],
        gap,
    )


def _with_columns(shown: View) -> list[Section]:
    """Sections of which there is something to show beside their names."""
    return [section for section in shown.sections if section.axes or shown.heads]


def _axis_widths(section: Section) -> list[int]:
    return _widths([section.axes, *(line.axes for line in section.lines)])


def _number_widths(shown: View) -> list[int]:
    """Of all columns of numbers: the same in all sections."""
    lines = (line.texts for section in shown.sections for line in section.lines)
    return _widths([*_headings(shown.heads), *lines])


def _that_fit(
    heads: Sequence[Head], widths: Sequence[int], wanted: Sequence[int], room: int, gap: str
) -> list[int]:
    """Of the wanted places those of columns for which there is room, of the lowest ranks."""
    places = sorted(wanted, key=lambda place: heads[place].rank)
    while len(places) > 1 and sum(len(gap) + widths[place] for place in places) > room:
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
    places, widths = _sums_columns(sums, width)
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


def _sums_columns(sums: Sums, width: int) -> tuple[list[int], list[int]]:
    """Places and widths of the columns of the totals for which there is room."""
    widths = _widths([*_headings(sums.heads), *(texts for _, _, texts in sums.lines)])
    places = _that_fit(sums.heads, widths, range(len(widths)), width - _SHORTEST_NAME, _GAP)
    return places, [widths[place] for place in places]


def _headings(heads: Sequence[Head]) -> tuple[list[str], list[str]]:
    return [head.name for head in heads], [head.unit for head in heads]


def _called(head: Head, heads: Sequence[Head]) -> str:
    """A column's name, with its unit where others have the same."""
    alike = sum(one.name == head.name for one in heads)
    return f"{head.name} in {head.unit}" if alike > 1 else head.name


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
