"""What is said around the numbers of a plan: what fits, what forecasts are worth, and what they assume."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from shardwatt.engines import ENGINES
from shardwatt.plan.columns import PlanRow
from shardwatt.plan.digits import duration, times
from shardwatt.plan.table import Plan
from shardwatt.plan.warned import Warned

#: Stands behind the memory of a cell that does not fit and is run all the same.
RUN_UNFIT = "*"
#: Stands behind a sum of which not all is known.
AT_LEAST = "+"
#: Stands in place of what a cell takes that is left out.
DOES_NOT_FIT = "does not fit"

_LEGEND = "window: the inference run; job: with start, loading, idle baselines and warm-up"
_LONGEST = "; longest: the job if no response ends by itself, from which its time limit follows"
_WINDOW = ". Power and energy are of all devices over the window"

#: Intervals are told as changes in % where neither end is farther off than this factor.
_IN_PERCENT = 2.0

#: Notes that are shown one by one; the others are counted.
_NOTES_AT_MOST = 16


def summary(plan: Plan) -> str:
    """How many cells there are, and how many fit."""
    fit, unfit, unknown = (
        sum(row.forecast.fits is fits for row in plan.rows) for fits in (True, False, None)
    )
    run_unfit = unfit - plan.total.left_out
    parts = [
        *([f"{fit:,} {'fits' if fit == 1 else 'fit'}"] if fit else []),
        *(_unfit(plan.total.left_out, "left out") if plan.total.left_out else []),
        *(_unfit(run_unfit, "run all the same") if run_unfit else []),
        *(
            []
            if not unknown
            else ["whether they fit is not known"]
            if unknown == len(plan.rows)
            else [f"of {unknown:,} it is not known whether they fit"]
        ),
    ]
    of_all = "" if len(plan.rows) == plan.cells else f" of {plan.cells:,}"
    cells = "1 cell" if len(plan.rows) == plan.cells == 1 else f"{len(plan.rows):,}{of_all} cells"
    return ": ".join(filter(None, (f"{plan.study} on {plan.site}", cells, ", ".join(parts))))


def _unfit(count: int, fate: str) -> list[str]:
    return [f"{count:,} {'does not fit and is' if count == 1 else 'do not fit and are'} {fate}"]


def warnings(rows: Iterable[PlanRow]) -> list[str]:
    """What weighs most of what is assumed, unknown or too little (`shardwatt.plan.warned`), each once with
    the number of its cells."""
    run = [row for row in rows if row.runs]
    counts = Counter(note for row in run for note in row.forecast.notes if isinstance(note, Warned))
    return [_counted(note, count, len(run)) for note, count in counts.items()]


def _counted(note: str, count: int, rows: int) -> str:
    """A note with the number of its cells, where it is not about all."""
    return note if count == rows else f"{note} ({count:,} {'cell' if count == 1 else 'cells'})"


def standing(rows: Sequence[PlanRow]) -> str:
    """Whether the forecasts are calibrated, and whether anything of them will be spent."""
    if not rows:
        return ""
    simulated = [ENGINES[row.forecast.cell.engine].simulates is not None for row in rows]
    if not any(simulated):
        return _calibrated(rows)
    which = "All numbers are" if all(simulated) else "Numbers of simulated cells are"
    return f"{_calibrated(rows)} {which} of what is rehearsed; nothing of it is spent."


def _calibrated(rows: Sequence[PlanRow]) -> str:
    """Whether the forecasts are calibrated: an interval alone makes none so."""
    pairs = {(row.forecast.cell.gpu, row.forecast.cell.engine): False for row in rows}
    for row in rows:
        if row.forecast.is_calibrated:
            pairs[row.forecast.cell.gpu, row.forecast.cell.engine] = True
    without = [f"{engine} on {gpu}" for (gpu, engine), calibrated in pairs.items() if not calibrated]
    if not without:
        return "Estimates, calibrated with finished cells."
    which = "" if len(without) == len(pairs) else f" for {', '.join(without)}"
    return (
        f"Estimates from data sheets and assumed factors, not calibrated{which}: `shardwatt calibrate` fits "
        "them to finished cells that tell them."
    )


def interval(rows: Sequence[PlanRow]) -> str | None:
    """Between what 90 % of cells are, from their forecasts; None where no row has an interval."""
    found = [row.forecast for row in rows if row.runs]
    durations = [_factors(one.duration_s, one.duration_range_s) for one in found]
    joules = [_factors(one.energy_j, one.energy_range_j) for one in found]
    parts = [
        f"{name} {_between(min(low for low, _ in known), max(high for _, high in known))}"
        for name, factors in (("time", durations), ("energy", joules))
        if (known := [pair for pair in factors if pair is not None])
    ]
    return f"90 % interval: {', '.join(parts)}" if parts else None


def _factors(middle: float | None, ends: tuple[float, float] | None) -> tuple[float, float] | None:
    """Ends of an interval over what it is of."""
    if not middle or ends is None:
        return None
    return ends[0] / middle, ends[1] / middle


def _between(low: float, high: float) -> str:
    """An interval of factors, as changes or, where it is wide, in times."""
    if low >= 1 / _IN_PERCENT and high <= _IN_PERCENT:
        return f"{100 * (low - 1):+.0f} to {100 * (high - 1):+.0f} %"
    return f"{times(low)} to {times(high)} times"


def remarks(plan: Plan, unknown: Sequence[str], *, explains_longest: bool) -> list[str]:
    """On signs in the tables, what is unknown throughout, and the longest job.

    Args:
        plan: the plan.
        unknown: names of the columns that are known of no cell.
        explains_longest: whether there is a column of that name.
    """
    found = []
    run = [row for row in plan.rows if row.runs]
    if run:
        held = (
            "; GPU hours are of all GPUs that the job holds"
            if any(row.forecast.gpus_held for row in run)
            else ""
        )
        found.append(f"{_LEGEND}{_LONGEST if explains_longest else ''}{_WINDOW}{held}.")
    if any(row.forecast.fits is False for row in run):
        found.append(f"{RUN_UNFIT} does not fit, and is run all the same (`unfit: run`).")
    if any(one.unknown and one.value is not None for one in plan.total.sums.values()):
        found.append(f"{AT_LEAST} at least: of some cells it is not known.")
    if run:
        found += _missing(unknown, plan.keys_missing)
    longest = max(run, key=lambda row: row.forecast.allocation_duration_s or 0.0, default=None)
    if longest is not None and longest.forecast.allocation_duration_s is not None:
        cell = longest.forecast.cell
        words = f"{cell.model} on {cell.shards} x {cell.gpu}, batch {cell.batch}, length {cell.length}"
        found.append(f"Longest job: {duration(longest.forecast.allocation_duration_s)} ({words}).")
    return found


def _missing(unknown: Sequence[str], keys_missing: Mapping[str, Sequence[str]]) -> list[str]:
    """Why numbers are not there."""
    money = [name for name in unknown if name in ("cost", "carbon")]
    others = [name for name in unknown if name not in ("needed", *money)]
    found = []
    if others:
        found.append(f"Not known of any cell: {', '.join(others)}; see the notes.")
    elif keys := [f"`{key}`" for key in dict.fromkeys(key for name in money for key in keys_missing[name])]:
        words = " and ".join(filter(None, (", ".join(keys[:-1]), keys[-1])))
        noun = "key" if len(keys) == 1 else "keys"
        found.append(f"No {' and no '.join(money)}: that takes the site's {noun} {words} (config/README.md).")
    return found


def notes(rows: Sequence[PlanRow]) -> list[str]:
    """What the forecasts assume beside the warnings, the commonest first, each once with the number of its
    cells."""
    counts = Counter(
        note for row in rows for note in dict.fromkeys(row.forecast.notes) if not isinstance(note, Warned)
    )
    found = [_counted(note, count, len(rows)) for note, count in counts.most_common()]
    if len(found) <= _NOTES_AT_MOST:
        return found
    rest = len(found) - _NOTES_AT_MOST
    return [*found[:_NOTES_AT_MOST], f"and {rest} more: `--format csv` has those of each cell"]
