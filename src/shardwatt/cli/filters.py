"""The option --where, which chooses cells by their axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import click

from shardwatt.cell import AXES, Cell
from shardwatt.cli.options import Command
from shardwatt.errors import ShardwattError, suggestion

where_option: Callable[[Command], Command] = click.option(
    "--where",
    "filters",
    metavar="AXIS=VALUE[,VALUE]",
    multiple=True,
    help="Only cells with this value of an axis; several --where must all hold.",
)


def matcher(filters: Sequence[str], cells: Iterable[Cell]) -> Callable[[Cell], bool]:
    """What tells whether a cell is meant.

    Args:
        filters: as given.
        cells: those of the study.

    Raises:
        ShardwattError: a filter is no AXIS=VALUE, or no cell has the value: it may be misspelt.
    """
    wanted = [_parse(text) for text in filters]
    cells = list(cells) if wanted else []
    for axis, values in wanted:
        known = list(dict.fromkeys(str(getattr(cell, axis)) for cell in cells))
        for value in sorted(values.difference(known)):
            raise ShardwattError(
                f"--where {axis}={value}: no cell has it{suggestion(value, known)}; the study has "
                f"{', '.join(known)}"
            )
    return lambda cell: all(str(getattr(cell, axis)) in values for axis, values in wanted)


def _parse(text: str) -> tuple[str, set[str]]:
    axis, equals, values = text.partition("=")
    if not equals or axis not in AXES:
        near = "" if axis in AXES else suggestion(axis, AXES)
        raise ShardwattError(f"--where {text}: expected AXIS=VALUE{near}; axes: {', '.join(AXES)}")
    return axis, set(values.split(","))
