"""The command of the rule that runs one cell."""

from __future__ import annotations

import click

from shardwatt.cell import Cell
from shardwatt.cli.options import Place, place_options


@click.command("run-cell")
@click.argument("study")
@click.argument("cells", metavar="CELL...", nargs=-1, required=True)
@click.option(
    "--attempt",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Number of this attempt in this run of Snakemake.",
)
@place_options
def run_cell(place: Place, study: str, cells: tuple[str, ...], attempt: int) -> None:
    """Run each CELL of a STUDY (Snakemake calls this)."""
    from shardwatt.run import supervise

    where = supervise.Place(place.root, place.base, study, place.study(study), place.site)
    supervise.supervise(where, [Cell.parse(cell) for cell in cells], number=attempt)
