"""`shardwatt check-site`: what of a site's file is wrong, before anything is submitted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import click

from shardwatt.cli.options import find_root, root_option, site_option
from shardwatt.errors import SiteError, suggestion
from shardwatt.site import load_site
from shardwatt.yamlfile import read_mapping

_COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "red"}
_WIDEST = max(map(len, _COLOURS))


@click.command("check-site")
@root_option
@site_option("profiles/slurm/site.yaml")
@click.option("--gpu", "only", help="Only this GPU type of the site.")
def check_site(root: Path | None, site_files: tuple[Path, ...], only: str | None) -> None:
    """Compare a site's file with what Slurm says, and its environments with its GPUs.

    No job is submitted. Exit code 1 if something is an error.
    """
    from shardwatt.checks.findings import Level
    from shardwatt.checks.site import check_site as findings_of

    root = (root or find_root()).resolve()
    slurm_profile = root / "profiles" / "slurm"
    files = [path.absolute() for path in site_files] or [slurm_profile / "site.yaml"]
    site = load_site(files)
    if site.launcher != "slurm":
        raise SiteError(
            f"{files[-1]}: launcher `{site.launcher}`; check-site compares sites of launcher `slurm`: pass "
            "--site FILE"
        )
    if only is not None:
        if only not in site.gpus:
            raise SiteError(f"--gpu {only}: the site has {', '.join(site.gpus)}{suggestion(only, site.gpus)}")
        site = site.model_copy(update={"gpus": {only: site.gpus[only]}})
    name = "profile.v9+.yaml"
    beside = files[-1].parent / name
    profile_file = beside if beside.is_file() else slurm_profile / name
    found = findings_of(
        site,
        site_files=files,
        profile=read_mapping(profile_file, SiteError),
        profile_file=profile_file,
        root=root,
        base=Path.cwd(),
    )
    counts: Counter[Level] = Counter()
    heading = ""
    for head, finding in found:
        if head != heading:
            click.echo(f"{head}:")
            heading = head
        counts[finding.level] += 1
        click.echo(
            f"  {click.style(f'{finding.level:<{_WIDEST}}', fg=_COLOURS[finding.level])}  {finding.text}"
        )
    if counts[Level.ERROR]:
        raise SiteError(
            f"{_many(counts[Level.ERROR], 'error')} and {_many(counts[Level.WARNING], 'warning')}; mend "
            f"{', '.join(map(str, files))} and check again before you submit"
        )
    click.echo(f"no error, {_many(counts[Level.WARNING], 'warning')}")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
