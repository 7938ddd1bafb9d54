"""The command that submits several cells of one model as one job."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import repeat
from pathlib import Path

import click

from shardwatt.cell import Cell
from shardwatt.cli.filters import matcher, where_option
from shardwatt.cli.options import Place, place_options
from shardwatt.dag import command_environment
from shardwatt.errors import ShardwattError
from shardwatt.layout import claims
from shardwatt.leftovers import check_claims
from shardwatt.locks import alone
from shardwatt.slurm import jobs_here


@click.command("run-together")
@click.argument("study")
@where_option
@click.option(
    "--cells-per-job", type=click.IntRange(min=2), default=8, show_default=True, help="Most cells of a job."
)
@click.option(
    "--order",
    type=click.Choice(["random", "matrix"]),
    default="random",
    show_default=True,
    help="In which order the cells of a job run: random by the study's seed, always the same one, so that "
    "what drifts in a job (heat, other users) falls on no cap and no repeat more than on another; or as the "
    "study lists them.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Show the jobs and submit nothing.")
@place_options
def run_together(
    place: Place, study: str, filters: tuple[str, ...], cells_per_job: int, order: str, dry_run: bool
) -> None:
    """Submit missing cells of a STUDY, several of one model to a job, so that it is loaded once for all.

    Cells that differ in power cap and repeat alone share a job and run on the same GPUs, so that the tables
    compare them in pairs; the jobs are shown with their cells in the order in which they will run. Start
    Snakemake afterwards: it waits for these jobs and makes the report.
    """
    from shardwatt.analysis.survey import State
    from shardwatt.cli.states import states_now
    from shardwatt.resources import budget
    from shardwatt.run.together import compared, shared_jobs, split_comparisons, submit_together

    if place.site.launcher != "slurm":
        raise ShardwattError(
            f"site '{place.site.name}' has launcher `{place.site.launcher}`; expected `slurm`: pass "
            "--site profiles/slurm/site.yaml"
        )
    with nullcontext() if dry_run else _submitting(place.base, study):
        all_cells = place.cells(study)
        is_meant = matcher(filters, all_cells)
        cells = [cell for cell in all_cells if is_meant(cell)]
        states = states_now(place, study, cells)
        missing = [state.cell for state in states if state.state in (State.MISSING, State.FAILED)]
        seed = place.study(study).seed if order == "random" else None
        forecast = place.asked_of(study)
        shared = shared_jobs(place.root, place.site, missing, cells_per_job, seed=seed, forecast=forecast)
        agreed = budget(
            place.site,
            [(study, cell) for cell in missing],
            place.site.max_gpu_hours,
            lambda _, cell: forecast(cell),
        )
        print(agreed, file=sys.stderr)
        if outlook := agreed.outlook():
            print(outlook, file=sys.stderr)
        if not dry_run:
            agreed.check("in the site's max_gpu_hours")
            site_files = [str(path.absolute()) for path in place.site_files]
            os.environ.update(command_environment(place.root, site_files))
        words = "" if seed is None else f", in random order by seed {seed}"
        numbers = (
            submit_together(
                place.base, place.site, study, sys.executable, shared, lambda: _check_alone(place.base)
            )
            if not dry_run
            else repeat("-")
        )
        for job, number in zip(shared, numbers, strict=False):
            print(f"job {number}: {len(job.cells)} cells, time {job.runtime_min} min{words}")
            for cell in job.cells:
                print(f"  {cell.path}")
        ran = [state.cell for state in states if state.state is State.OK]
        for note in _unpaired(split_comparisons(shared), compared([*missing, *ran]), set(ran)):
            print(note, file=sys.stderr)


def _unpaired(
    split: Sequence[Sequence[Cell]], groups: Sequence[Sequence[Cell]], ran: Collection[Cell]
) -> Iterator[str]:
    """What will not be compared in pairs, and why."""
    for group in split:
        yield (
            f"{len(group)} cells that differ in cap and repeat alone, from {group[0].path} on, do not stand "
            "in one job: too many for --cells-per-job or for the partition's time limit, or a prolog sets "
            "one cap a job; tables call comparisons between jobs unpaired"
        )
    late = [group for group in groups if 0 < sum(cell in ran for cell in group) < len(group)]
    if late:
        cells = sum(cell in ran for group in late for cell in group)
        yield (
            f"{cells} cells with which these are compared have run in other jobs: tables call those "
            "comparisons unpaired, unless you remove their files and submit all of them together"
        )


@contextmanager
def _submitting(base: Path, study: str) -> Iterator[None]:
    """Be the only one who submits cells of a study together, and know of all jobs of it what they run."""
    _check_alone(base)
    with alone(claims(base, study) / ".lock"):
        check_claims(base, [study], jobs_here(base))
        yield


def _check_alone(base: Path) -> None:
    """Refuse to submit cells that a running Snakemake is about to submit."""
    if any((base / ".snakemake" / "locks").glob("*")):
        raise ShardwattError(
            "Snakemake runs in this folder, or was killed in it, and would submit the same cells; wait for "
            "its end, or after a kill run `snakemake --profile profiles/slurm --unlock`, and try again"
        )
