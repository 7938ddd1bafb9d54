"""`shardwatt cells STUDY`: what there is of a study, cell by cell."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shardwatt.analysis.survey import PREDICTED, REFUSED, CellState, State, strays
from shardwatt.cell import AXES, Cell
from shardwatt.cli.filters import matcher, where_option
from shardwatt.cli.options import Place, place_options
from shardwatt.cli.states import states_now
from shardwatt.layout import CELL_FILES, CellPaths, listed
from shardwatt.locks import alone

_COLOURS = {
    State.OK: "green",
    State.DOES_NOT_FIT: "yellow",
    State.FAILED: "red",
    State.RUNNING: "cyan",
    State.PENDING: "blue",
    State.MISSING: "dim",
    State.INVALID: "magenta",
    State.OUTDATED: "magenta",
}


@click.command()
@click.argument("study")
@where_option
@click.option(
    "--outcome",
    "outcomes",
    type=click.Choice([str(state) for state in State]),
    multiple=True,
    help="Only cells in this state; may be given several times.",
)
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "targets", "json"]),
    default="table",
    show_default=True,
    help="`targets` prints what to give Snakemake, one a line.",
)
@click.option("--long", "long", is_flag=True, help="Log and target of every cell, not only of those not ok.")
@click.option("--deep", is_flag=True, help="Also read every cell's Parquet files whole.")
@click.option(
    "--remove-invalid",
    is_flag=True,
    help="Remove the files of listed cells that are invalid or outdated, so that Snakemake reruns them.",
)
@place_options
def cells(
    place: Place,
    study: str,
    filters: tuple[str, ...],
    outcomes: tuple[str, ...],
    style: str,
    long: bool,
    deep: bool,
    remove_invalid: bool,
) -> None:
    """List the cells of a STUDY: outcome, reason, log, and the target that reruns each."""
    all_cells = place.cells(study)
    is_meant = matcher(filters, all_cells)
    seen = {cell: _mark(CellPaths(place.base, study, cell)) for cell in all_cells} if remove_invalid else {}
    found = states_now(place, study, all_cells, deep=deep)
    shown = [state for state in found if (not outcomes or state.state in outcomes) and is_meant(state.cell)]
    if style == "targets":
        for state in shown:
            print(state.target)
    elif style == "json":
        print(json.dumps([_as_json(state) for state in shown], indent=2))
    else:
        _print_table(study, shown, len(found), long=long)
        if others := strays(place.base, study, [state.target for state in found]):
            print(others, file=sys.stderr)
    refused = [state for state in shown if state.state in REFUSED]
    if remove_invalid:
        _remove(place, study, refused, seen)
    elif refused and style == "table":
        print(
            f"{len(refused)} invalid or outdated: `shardwatt cells {study} --remove-invalid` removes "
            "their files, and the next run makes them again",
            file=sys.stderr,
        )


def _as_json(state: CellState) -> dict[str, object]:
    return {
        "cell": {axis: getattr(state.cell, axis) for axis in AXES},
        "outcome": str(state.state),
        "reason": state.reason,
        "detail": state.detail,
        "log": state.log,
        "target": state.target,
        "job_id": state.job_id,
    }


def _print_table(study: str, shown: Sequence[CellState], total: int, *, long: bool) -> None:
    # Axes with one value over all that is shown are named once, above the table.
    values = {axis: {str(getattr(state.cell, axis)) for state in shown} for axis in AXES}
    varied = [axis for axis in AXES if len(values[axis]) > 1]
    fixed = [f"{axis}={next(iter(values[axis]))}" for axis in AXES if len(values[axis]) == 1]
    # Into a pipe or a file the whole line is kept; a terminal decides the width itself.
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False)
    counts = Counter(state.state for state in shown)
    predicted = sum(state.reason == PREDICTED for state in shown)
    words = {State.DOES_NOT_FIT: f" ({predicted} predicted)"} if predicted else {}
    summary = ", ".join(f"{counts[one]} {one}{words.get(one, '')}" for one in State if counts[one])
    console.print(f"[bold]{escape(study)}[/]: {len(shown)} of {total} cells: {summary or 'none'}")
    if shown and fixed:
        console.print(f"all: {' '.join(fixed)}", style="dim")
    table = Table(box=None, pad_edge=False)
    for axis in varied:
        table.add_column(axis, justify="right")
    for name in ("outcome", "reason"):
        table.add_column(name)
    for state in shown:
        reason = ": ".join(part for part in (state.reason, state.detail) if part)
        table.add_row(
            *(str(getattr(state.cell, axis)) for axis in varied),
            f"[{_COLOURS[state.state]}]{state.state}[/]",
            escape(reason),
        )
    if shown:
        console.print(table)
    for state in shown:
        if long or (state.state not in (State.OK, State.PENDING) and state.reason != PREDICTED):
            console.print(f"{state.state}: log {escape(state.log or '-')}", soft_wrap=True)
        # What the plan leaves out is refused by name too.
        if state.reason != PREDICTED and (
            long or state.state not in (State.OK, State.PENDING, State.RUNNING)
        ):
            console.print(f"  rerun: {escape(state.target)}", soft_wrap=True)


def _remove(
    place: Place, study: str, states: Sequence[CellState], seen: Mapping[Cell, tuple[int, ...] | None]
) -> None:
    """Remove cells' files, but for those whose record is no longer the one that was looked at."""
    for state in states:
        paths = CellPaths(place.base, study, state.cell)
        with alone(paths.commit_lock):
            if _mark(paths) != seen[state.cell]:
                print(f"has a new result meanwhile, left alone: {state.target}", file=sys.stderr)
                continue
            for name in CELL_FILES:
                (state.folder / name).unlink(missing_ok=True)
        # What stood beside the declared files is not this software's to remove.
        if state.folder.is_dir() and not any(state.folder.iterdir()):
            state.folder.rmdir()
        print(f"removed {state.state}: {state.target}", file=sys.stderr)


def _mark(paths: CellPaths) -> tuple[int, ...] | None:
    """What a cell's record is known by without reading it; None where there is none."""
    listed(paths.results)  # makes a network file system look again
    try:
        status = paths.record.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
