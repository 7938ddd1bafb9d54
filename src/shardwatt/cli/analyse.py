"""Commands that make tables, figures and the report from the cells that exist."""

from __future__ import annotations

from pathlib import Path

import click

from shardwatt.cli.options import Place, place_options
from shardwatt.cli.states import states_settled
from shardwatt.errors import ShardwattError
from shardwatt.layout import CellPaths, study_results


@click.command()
@click.argument("study")
@place_options
def aggregate(place: Place, study: str) -> None:
    """Write a STUDY's tables of cells and of devices, as Parquet and CSV."""
    from shardwatt.analysis.build import build_cells

    states = states_settled(place, study, place.cells(study))
    _say(build_cells(states, study_results(place.base, study)))


@click.command()
@click.argument("study")
@click.argument("name")
@place_options
def figure(place: Place, study: str, name: str) -> None:
    """Draw the figure NAME of a STUDY from its cells.parquet."""
    from shardwatt.analysis.build import build_figures

    _say(build_figures(study_results(place.base, study), [name]))


@click.command()
@click.argument("study")
@place_options
def tables(place: Place, study: str) -> None:
    """Write the tables of a STUDY from its cells.parquet."""
    from shardwatt.analysis.build import build_tables

    _say(build_tables(study_results(place.base, study)))


@click.command()
@click.argument("study")
@click.option(
    "--partial",
    is_flag=True,
    help="Build everything, figures and tables too, from the cells that exist now, into "
    "results/STUDY/partial; missing and failed cells are named.",
)
@place_options
def report(place: Place, study: str, partial: bool) -> None:
    """Write the report of a STUDY from its cells.parquet, figures and tables."""
    from shardwatt.analysis.build import build_all, build_report
    from shardwatt.analysis.report import Commands

    folder = study_results(place.base, study)
    commands = Commands(place.snakemake, place.site_words)
    if not partial:
        _say([build_report(place.base, study, place.study(study), folder, commands=commands)])
        return
    states = states_settled(place, study, place.cells(study))
    path = build_all(place.base, study, place.study(study), states, folder / "partial", commands=commands)
    _say([path])


@click.command("power-trace")
@click.argument("study")
@click.argument("cell")
@place_options
def power_trace(place: Place, study: str, cell: str) -> None:
    """Draw the power of each device of a finished CELL of a STUDY over time, into results/STUDY/traces.

    CELL is a path as `shardwatt cells STUDY` lists it.
    """
    from shardwatt.analysis.powertrace import draw_trace

    known = {one.path: one for one in place.cells(study)}
    if cell not in known:
        raise ShardwattError(
            f"study '{study}' has no cell {cell}; `shardwatt cells {study}` lists those that it has"
        )
    _say(draw_trace(CellPaths(place.base, study, known[cell]), study_results(place.base, study) / "traces"))


def _say(paths: list[Path]) -> None:
    for path in paths:
        print(path)
