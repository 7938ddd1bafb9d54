"""The command that submits several cells of one model as one job."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from shardwatt.cli.filters import matcher, where_option
from shardwatt.cli.options import Place, place_options
from shardwatt.dag import command_environment
from shardwatt.errors import ShardwattError


@click.command("run-together")
@click.argument("study")
@where_option
@click.option(
    "--cells-per-job", type=click.IntRange(min=2), default=8, show_default=True, help="Most cells of a job."
)
@click.option("--dry-run", "-n", is_flag=True, help="Show the jobs and submit nothing.")
@place_options
def run_together(
    place: Place, study: str, filters: tuple[str, ...], cells_per_job: int, dry_run: bool
) -> None:
    """Submit missing cells of a STUDY, several of one model to a job, so that it is loaded once for all.

    Start Snakemake afterwards: it waits for these jobs and makes the report.
    """
    from shardwatt.analysis.survey import State
    from shardwatt.cli.states import states_now
    from shardwatt.resources import budget
    from shardwatt.run.together import shared_jobs, submit_together

    if place.site.launcher != "slurm":
        raise ShardwattError(
            f"site '{place.site.name}' has launcher `{place.site.launcher}`; expected `slurm`: pass "
            "--site profiles/slurm/site.yaml"
        )
    is_meant = matcher(filters)
    cells = [cell for cell in place.cells(study) if is_meant(cell)]
    states = states_now(place, study, cells)
    missing = [state.cell for state in states if state.state in (State.MISSING, State.FAILED)]
    shared = shared_jobs(place.root, place.site, missing, cells_per_job)
    agreed = budget(place.site, [(study, cell) for cell in missing], place.site.max_gpu_hours)
    print(agreed, file=sys.stderr)
    if not dry_run:
        agreed.check("in the site's max_gpu_hours")
        _check_alone(place.base)
        site_files = [str(path.absolute()) for path in place.site_files]
        os.environ.update(command_environment(place.root, site_files))
    for job in shared:
        number = "-" if dry_run else submit_together(place.base, place.site, study, sys.executable, job)
        print(f"job {number}: {len(job.cells)} cells, time {job.runtime_min} min")
        for cell in job.cells:
            print(f"  {cell.path}")


def _check_alone(base: Path) -> None:
    """Refuse to submit cells that a running Snakemake is about to submit."""
    if any((base / ".snakemake" / "locks").glob("*")):
        raise ShardwattError(
            "Snakemake runs in this folder, or was killed in it, and would submit the same cells; wait for "
            "its end, or after a kill run `snakemake --profile profiles/slurm --unlock`, and try again"
        )
