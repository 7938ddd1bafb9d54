"""The option --where, which chooses cells by their axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def matcher(filters: Sequence[str]) -> Callable[[Cell], bool]:
    """What tells whether a cell is meant.

    Raises:
        ShardwattError: a filter is no AXIS=VALUE.
    """
    wanted = [_parse(text) for text in filters]
    return lambda cell: all(str(getattr(cell, axis)) in values for axis, values in wanted)


def _parse(text: str) -> tuple[str, set[str]]:
    axis, equals, values = text.partition("=")
    if not equals or axis not in AXES:
        raise ShardwattError(
            f"--where {text}: expected AXIS=VALUE{suggestion(axis, AXES)}; axes: {', '.join(AXES)}"
        )
    return axis, set(values.split(","))
