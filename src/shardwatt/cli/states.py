"""What commands know of cells: from disk, and from Slurm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shardwatt.analysis.live import with_live_attempts
from shardwatt.analysis.survey import CellState, survey
from shardwatt.cell import Cell
from shardwatt.cli.leftovers import jobs_and_ends
from shardwatt.cli.options import Place
from shardwatt.plan.leftout import LeftOut


def states_on_disk(
    place: Place,
    study: str,
    cells: Sequence[Cell],
    *,
    left_out: Callable[[Cell], LeftOut | None] = lambda _: None,
    deep: bool = False,
) -> list[CellState]:
    """What there is of cells on disk, against the study, models and data as they are now."""
    known = place.identities(cells)
    return survey(
        place.base,
        study,
        cells,
        place.study(study).constants,
        model_fingerprints=known.model_fingerprints,
        dataset_hashes=known.dataset_hashes,
        left_out=left_out,
        played=place.played(study),
        deep=deep,
    )


def states_settled(place: Place, study: str, cells: Sequence[Cell]) -> list[CellState]:
    """The same with cells that are left out by the plan, after the ends of lost jobs are written down."""
    jobs_and_ends(place, study, cells)
    return states_on_disk(place, study, cells, left_out=place.left_out(study))


def states_now(place: Place, study: str, cells: Sequence[Cell], *, deep: bool = False) -> list[CellState]:
    """The same with cells that are left out by the plan, after the ends of lost jobs are written down, and
    with what runs or waits."""
    jobs = jobs_and_ends(place, study, cells)
    states = states_on_disk(place, study, cells, left_out=place.left_out(study), deep=deep)
    return with_live_attempts(place.base, study, states, jobs, prompts=place.study(study).constants.prompts)
