"""`shardwatt meters`: which meters work on this node, and how well."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from shardwatt.cli.options import find_root, root_option, site_option
from shardwatt.errors import ShardwattError, SiteError, suggestion
from shardwatt.site import Site, load_site


@click.command()
@root_option
@site_option("profiles/local/site.yaml in a project, otherwise none")
@click.option("--gpu", help="A GPU type of the site: what it says counts. Default: all GPUs that NVML shows.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=1, max=3600),
    default=5.0,
    show_default=True,
    help="Time in s over which meters are read.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def meters(
    root: Path | None, site_files: tuple[Path, ...], gpu: str | None, seconds: float, as_json: bool
) -> None:
    """Try every meter of this node: what works, how finely it reads, and whether meters agree.

    Run it on a node with GPUs, while nothing else runs there. It reads only, and changes no setting.
    CUDA_VISIBLE_DEVICES is heeded. Exit code 1 if nothing here can be measured.
    """
    from shardwatt.checks.meters import look_at_meters
    from shardwatt.cli.meterpage import page

    site = _site(root, site_files)
    known = [] if site is None else list(site.gpus)
    if gpu is not None and gpu not in known:
        found = f"the site has {', '.join(known)}" if known else "there is no site; pass --site FILE"
        raise SiteError(f"--gpu {gpu}: {found}{suggestion(gpu, known)}")
    if not as_json and sys.stderr.isatty():
        click.echo(f"reading for {seconds:g} s …", err=True)
    seen = look_at_meters(site, gpu, seconds)
    if as_json:
        click.echo(seen.model_dump_json(indent=2))
    else:
        for line in page(seen):
            click.echo(line)
    sys.stdout.flush()
    if not seen.measures:
        raise ShardwattError(f"{seen.node}: nothing here can be measured; the reasons stand above")


def _site(root: Path | None, site_files: tuple[Path, ...]) -> Site | None:
    """The site that was asked for, or the project's for one machine; None outside a project."""
    if site_files:
        return load_site(site_files)
    try:
        file = (root or find_root()) / "profiles" / "local" / "site.yaml"
    except ShardwattError:
        return None
    return load_site([file]) if file.is_file() else None
