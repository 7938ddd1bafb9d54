"""The command of the rule that runs one cell."""

from __future__ import annotations

import click

from shardwatt.cell import Cell
from shardwatt.cli.options import Place, place_options


@click.command("run-cell")
@click.argument("study")
@click.argument("cell")
@place_options
def run_cell(place: Place, study: str, cell: str) -> None:
    """Run one CELL of a STUDY (Snakemake calls this)."""
    from shardwatt.run.supervise import supervise

    supervise(place.root, place.base, study, place.study(study), place.site, Cell.parse(cell))
