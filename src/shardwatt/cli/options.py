"""Options that commands share: the project's root, the site, and what they stand for."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any

import click

from shardwatt.cell import Cell
from shardwatt.errors import ShardwattError
from shardwatt.identity import Identities, identities
from shardwatt.matrix import expand, expand_blocks
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.leftout import LeftOut, left_out
from shardwatt.plan.rehearsal import asked_of, played
from shardwatt.site import Site, load_site
from shardwatt.study import Study, load_study

Command = Callable[..., None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command works.

    Attributes:
        root: the project's root, where config/ lies.
        base: the folder that holds results/ and logs/.
        site: what the place offers.
        site_files: where that stands.
    """

    root: Path
    base: Path
    site: Site
    site_files: tuple[Path, ...]

    @property
    def snakemake(self) -> str:
        """What to type before a target, to run it at this site."""
        beside = self.site_files[-1].parent
        has_profile = (beside / "profile.v9+.yaml").is_file()
        profile = beside if has_profile else self.root / "profiles" / self.site.launcher
        brings_site = self._is_read_from(profile / "site.yaml")
        others = [] if brings_site else ["--configfile", *map(self._shown, self.site_files)]
        return shlex.join(["snakemake", *others, "--profile", self._shown(profile)])

    @property
    def site_words(self) -> str:
        """What a command of shardwatt ends in that is meant for this site; empty for the default one."""
        if self._is_read_from(_default_site(self.root)):
            return ""
        return "".join(f" --site {shlex.quote(self._shown(file))}" for file in self.site_files)

    def _is_read_from(self, file: Path) -> bool:
        return [one.resolve() for one in self.site_files] == [file.resolve()]

    def _shown(self, path: Path) -> str:
        """A path as it is typed in the folder that holds results/."""
        path = path.resolve()
        return str(path.relative_to(self.base) if path.is_relative_to(self.base) else path)

    def study(self, name: str) -> Study:
        return load_study(self.root, name)

    def identities(self, cells: Iterable[Cell]) -> Identities:
        return identities(self.root, self.site, cells)

    def cells(self, name: str) -> tuple[Cell, ...]:
        return expand(self.root, name, self.study(name), self.site, with_models=False)

    def blocks(self, name: str) -> tuple[tuple[Cell, ...], ...]:
        return expand_blocks(self.root, name, self.study(name), self.site, with_models=False)

    def forecaster(self, name: str) -> Forecaster:
        return Forecaster(self.root, name, self.study(name), self.site)

    def left_out(self, name: str) -> Callable[[Cell], LeftOut | None]:
        """What tells why a study leaves a cell out; None of one that it runs."""
        return partial(left_out, self.forecaster(name), self.study(name), self.site)

    def asked_of(self, name: str) -> Callable[[Cell], CellForecast]:
        """What tells what the job of one of a study's cells is cut to."""
        forecaster, study = self.forecaster(name), self.study(name)
        return lambda cell: asked_of(forecaster.cell(cell), self.site.gpus[cell.gpu], study)

    def played(self, name: str) -> Callable[[Cell], str]:
        """What tells the identity of the forecast that one of a study's simulated cells plays."""
        forecaster = self.forecaster(name)
        return lambda cell: played(forecaster.cell(cell))


def _default_site(root: Path) -> Path:
    return root / "profiles" / "local" / "site.yaml"


def find_root() -> Path:
    """The nearest folder upwards that holds a Snakefile and config/studies.

    Raises:
        ShardwattError: there is none.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "config" / "studies").is_dir() and (folder / "Snakefile").is_file():
            return folder
    raise ShardwattError(
        f"{here}: neither this folder nor one above it holds a Snakefile and config/studies; "
        "go to the project's folder or pass --root"
    )


root_option: Callable[[Command], Command] = click.option(
    "--root",
    envvar="SHARDWATT_ROOT",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="The project's folder; default: the nearest one upwards.",
)


def site_option(default: str) -> Callable[[Command], Command]:
    """The option --site, which says what a command takes without it."""
    return click.option(
        "--site",
        "site_files",
        envvar="SHARDWATT_SITE",
        multiple=True,
        type=click.Path(path_type=Path),
        help=f"A site file; may be given several times. Default: {default}.",
    )


def place_options(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command --root and --site, and pass it the Place they stand for."""

    @root_option
    @site_option("profiles/local/site.yaml")
    def with_place(root: Path | None, site_files: tuple[Path, ...], **options: Any) -> None:
        root = (root or find_root()).resolve()
        files = list(site_files) or [_default_site(root)]
        function(Place(root, Path.cwd(), load_site(files), tuple(files)), **options)

    return update_wrapper(with_place, function)
