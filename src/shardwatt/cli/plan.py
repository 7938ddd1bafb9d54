"""`shardwatt plan STUDY`: what each cell will need and take, before a job is submitted."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from itertools import chain

import click

from shardwatt.cli.filters import matcher, where_option
from shardwatt.cli.options import Place, place_options
from shardwatt.cli.planpage import WIDTH, page
from shardwatt.errors import ShardwattError
from shardwatt.layout import study_results
from shardwatt.plan.markdown import as_markdown
from shardwatt.plan.table import Plan, as_json, make_plan, write_csv
from shardwatt.plan.view import view

_TEXTS: dict[str, Callable[[Plan], str]] = {"markdown": as_markdown, "json": as_json}


@click.command()
@click.argument("study")
@where_option
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", *_TEXTS]),
    default="table",
    show_default=True,
    help="`csv` and `json` have every column of every cell; docs/plan.md explains them.",
)
@click.option(
    "--write",
    is_flag=True,
    help="Write results/STUDY/plan.csv, plan-totals.csv, plan.parquet and plan.md instead, of the whole "
    "study.",
)
@place_options
def plan(place: Place, study: str, filters: tuple[str, ...], style: str, write: bool) -> None:
    """Forecast the cells of a STUDY: what fits, how long, how many joules, what it costs.

    Nothing is started and no model is read; every number is an estimate (docs/plan.md).
    """
    if write and filters:
        raise ShardwattError("--write: found --where beside it; expected the whole study: leave one out")
    content, blocks = place.study(study), place.blocks(study)
    is_meant = matcher(filters, chain.from_iterable(blocks))
    found = make_plan(study, content, place.site, blocks, place.forecaster(study).cell, is_meant)
    _refuse_unknown(found)
    if write:
        from shardwatt.analysis.planfiles import write_plan  # pyarrow; a look does without

        for path in write_plan(found, study_results(place.base, study)):
            print(path)
    elif style == "table":
        columns = shutil.get_terminal_size((WIDTH, 0)).columns
        for line in page(view(found), columns):
            click.echo(line)
    elif style == "csv":
        write_csv(found, sys.stdout)
    else:
        print(_TEXTS[style](found).rstrip("\n"))


def _refuse_unknown(found: Plan) -> None:
    """Refuse a plan that says nothing: of no model in it is the shape known.

    Raises:
        ShardwattError: says which, and what to do.
    """
    if any(row.forecast.batches is not None for row in found.rows) or not found.rows:
        return
    reasons = dict.fromkeys(note for row in found.rows for note in row.forecast.notes)
    raise ShardwattError(f"study '{found.study}': nothing can be planned: {'; '.join(reasons)}")
