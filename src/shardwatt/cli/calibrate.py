"""The command that fits the plan's efficiency factors to finished cells."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from shardwatt.cli.options import Place, place_options


@click.command()
@click.argument("studies", nargs=-1, required=True)
@click.option(
    "--dry-run", "-n", is_flag=True, help="Show factors and errors; write neither calibration nor figure."
)
@place_options
def calibrate(place: Place, studies: tuple[str, ...], dry_run: bool) -> None:
    """Fit the plan's efficiency factors to the finished cells of STUDIES, by GPU type and engine.

    They are written beside the site file, as NAME.calibration.yaml, and forecasts from then on use them and
    carry 90 % intervals. results/STUDY/calibration.{svg,pdf,png} shows what was measured over what was
    predicted, for cells that were left out of the fit.
    """
    from shardwatt.analysis.calibration import calibrate as fitted
    from shardwatt.analysis.calibration import entry, forecast_by_plan, store, too_few
    from shardwatt.analysis.calibrationcells import observe, unusable
    from shardwatt.analysis.calibrationlengths import lengths_told
    from shardwatt.analysis.calibrationwords import afterwords, told
    from shardwatt.analysis.residualfigure import Group, draw_residuals
    from shardwatt.cli.states import states_on_disk
    from shardwatt.layout import study_results
    from shardwatt.siteplan import calibration_file

    names = list(dict.fromkeys(studies))
    cells, skipped = [], []
    for name in names:
        states = states_on_disk(place, name, place.cells(name))
        seen, passed_over = observe(place.root, place.site, states)
        cells += seen
        skipped += [*unusable(name, states), *passed_over]
    for words in skipped:
        click.echo(words, err=True)
    forecast = forecast_by_plan(place.root, place.site, {name: place.study(name) for name in names})
    found = fitted(cells, place.site, forecast)
    for made in found:
        print("\n".join(told(made)), end="\n\n")
    for words in too_few(cells):
        click.echo(f"{words}: too few, left as assumed", err=True)
    print("Lengths are not stored; what is assumed stands in config/datasets.yaml, `tokens`:")
    print("\n".join(f"  {words}" for words in lengths_told(place.root, cells)))
    if dry_run:
        return
    today, source = datetime.now(UTC).date(), f"shardwatt calibrate {' '.join(names)}"
    path = calibration_file(place.site_files[-1])
    store({made.key: entry(made, source, today) for made in found}, path)
    print(path)
    for after in filter(None, map(afterwords, found)):
        click.echo(after, err=True)
    for name in names:
        groups = [
            Group(made.key, index, own, made.spread())
            for index, made in enumerate(found)
            if (own := [one for one in made.left_out if one.cell.study == name])
        ]
        if groups:
            for drawn in draw_residuals(groups, study_results(place.base, name), name):
                print(drawn)
