"""`shardwatt restore-power-limits`: sets back what killed jobs have left, from an Epilog or by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click

from shardwatt.errors import ShardwattError
from shardwatt.sitepower import PowerLimits

_LEASES: Path = PowerLimits.model_fields["leases"].default

#: As Slurm names an Epilog's job: its number, its user's, and its GPUs on this node: places in gres.conf.
_JOB, _USER, _GPUS = "SLURM_JOB_ID", "SLURM_JOB_UID", "SLURM_JOB_GPUS"


@click.command("restore-power-limits")
@click.option(
    "--job", help="What this job has left, which is over; in a Slurm Epilog: the job that has ended."
)
@click.option("--all-dead", is_flag=True, help="What any job has left that no longer runs: at boot, by cron.")
@click.option("--watts", type=click.FloatRange(min=1), help="Instead of what leases say was before.")
@click.option(
    "--leases",
    "folder",
    type=click.Path(path_type=Path),
    default=_LEASES,
    show_default=True,
    help="The site's power_limits.leases.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def restore_power_limits(
    job: str | None, all_dead: bool, watts: float | None, folder: Path, dry_run: bool
) -> None:
    """Set power limits on this node back that killed jobs have left on its GPUs.

    Run by root, e.g. from a Slurm Epilog. Exit code 1 if a limit was not set back.
    """
    if job is None and not all_dead:
        job = os.environ.get(_JOB)
    if (job is None) == (not all_dead):
        raise ShardwattError(
            "expected --job NUMBER or --all-dead, or to be run from a Slurm Epilog, which sets SLURM_JOB_ID"
        )
    if os.path.lexists(folder) and not folder.is_dir():
        raise ShardwattError(f"{folder}: is no folder; expected the site's power_limits.leases")
    is_epilog = job is not None and job == os.environ.get(_JOB)
    # Where no cell has ever changed a limit there is no folder.
    done = _restore(job, folder, watts, is_epilog=is_epilog, dry_run=dry_run) if folder.is_dir() else ()
    all_well: list[bool] = []
    for is_well, said in done:
        click.echo(said, err=not is_well)
        all_well.append(is_well)
    if not all_well and not is_epilog:
        click.echo(f"no leases {'' if job is None else f'of job {job} '}in {folder}")
    if not all(all_well):
        raise ShardwattError("power limits of this node may not be as they were; see above")


def _restore(
    job: str | None, folder: Path, watts: float | None, *, is_epilog: bool, dry_run: bool
) -> Iterator[tuple[bool, str]]:
    from shardwatt.power.limits.lease import LeaseError, open_leases
    from shardwatt.power.limits.mend import Mending, mend_node
    from shardwatt.power.limits.setting import setter
    from shardwatt.power.meters.gpus import GpuError

    owner = os.environ.get(_USER, "") if is_epilog else ""
    how = Mending(
        job_id=job,
        owner=int(owner) if owner.isdecimal() else None,
        job_gpus=_job_gpus() if is_epilog else None,
        limit_w=watts,
        dry_run=dry_run,
    )
    try:
        with open_leases(folder, make=False) as leases:
            complaint = leases.complaint()
            if complaint is not None and os.getuid() == 0:
                click.echo(complaint, err=True)
            yield from mend_node(leases, setter(PowerLimits(set_by="nvml")), how)
    except (GpuError, LeaseError) as problem:
        raise ShardwattError(str(problem)) from None


def _job_gpus() -> frozenset[int] | None:
    """Numbers of the job's GPUs on this node, as gres.conf lists them; None where Slurm does not tell."""
    told = os.environ.get(_GPUS, "")
    if re.fullmatch(r"[0-9]+(,[0-9]+)*", told) is None:
        return None
    return frozenset(map(int, told.split(",")))
