"""The tables of a study: counterparts of Tables II to V of arXiv 2310.03003, the paper's own values beside
them, and what has no result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

import pandas as pd

from shardwatt.analysis import efficiencytable, publishedtable
from shardwatt.analysis.captable import power_caps
from shardwatt.analysis.marking import WORD, marked
from shardwatt.analysis.points import counts_in_order
from shardwatt.analysis.survey import PREDICTED, State
from shardwatt.analysis.tablemodel import AXIS_FIELDS, Field, Row, Table, groups, known, listed
from shardwatt.cell import AXES
from shardwatt.readings import Status

#: Names of the tables of a study, in order.
TABLES = ("table-2", "table-3", "table-4", "table-5", "efficiency", "published", "outcomes")

_SHARES = ("memory_activity", "memory_filled", "sm_utilisation", "cpu_utilisation")

#: Columns that tables are made from.
_SHOWN = (
    *AXES,
    *(WORD, "outcome", "reason", "detail", "log", "target", "nodes"),
    *("duration_s", "energy_j", "energy_status", "job_id", "device_uuids"),
    *efficiencytable.SHOWN,
    *_SHARES,
    *(f"{name}_max" for name in _SHARES),
)

_USE_FIELDS = (
    Field("memory_activity_max_pct", "memory activity, max (%)", 1),
    Field("memory_activity_mean_pct", "memory activity, mean (%)", 1),
    Field("memory_filled_max_pct", "memory filled, max (%)", 1),
    Field("memory_filled_mean_pct", "memory filled, mean (%)", 1),
    Field("sm_utilisation_max_pct", "SM utilisation, max (%)", 1),
    Field("sm_utilisation_mean_pct", "SM utilisation, mean (%)", 1),
    Field("cpu_utilisation_max_pct", "CPU utilisation, max (%)", 1),
    Field("cpu_utilisation_mean_pct", "CPU utilisation, mean (%)", 1),
)

_USE_NOTE = (
    "Means over data sets and repeats of each cell's mean, and the largest of their maxima. "
    "Memory activity is the share of time in which device memory was read or written, which the paper "
    "calls memory utilisation; memory filled is the share of memory in use; SM utilisation is the share "
    "of time in which a kernel ran."
)


def tables(frame: pd.DataFrame) -> list[Table]:
    """Make every table of a study from its table of cells.

    A table whose axis the study does not vary has no rows, and a note that says so.
    """
    # As objects, the columns lie in one block, and selecting rows copies that alone.
    shown = frame[list(_SHOWN)].astype(object).copy()
    # Joules of simulated devices are no measurement, whatever their meter says of them.
    metered = shown[WORD].astype(bool) & (shown["energy_status"] != Status.ESTIMATED)
    shown.loc[metered & shown["energy_status"].notna(), "energy_status"] = WORD
    made = [
        bare_minimum(shown),
        power_caps(shown),
        use_by(shown, "length", "table-4", "maximum length"),
        use_by(shown, "shards", "table-5", "shards"),
        efficiencytable.efficiency(shown),
        publishedtable.published(shown),
        outcomes(shown),
    ]
    return [marked(table, shown) for table in made]


def bare_minimum(frame: pd.DataFrame) -> Table:
    """Table II: fewest shards of each model and GPU type that ran, and the largest batch on them."""
    varied = ["engine", *_varied(frame, ("precision", "cap"))]
    rows = []
    for key, of_pair in groups(frame, ["model", "gpu", *varied]):
        length = counts_in_order(of_pair["length"])[0]
        own = of_pair[of_pair["length"] == length]
        ran = own[own["outcome"] == State.OK]
        row: Row = {**key, "length": length}
        if ran.empty:
            row |= {"shards": None, "nodes": None, "batch": None, "above": _why_none(own)}
        else:
            shards = counts_in_order(ran["shards"])[0]
            at_shards = own[own["shards"] == shards]
            batch = counts_in_order(ran.loc[ran["shards"] == shards, "batch"])[-1]
            best = ran[(ran["shards"] == shards) & (ran["batch"] == batch)]
            row |= {
                "shards": shards,
                "nodes": int(best["nodes"].iloc[0]),
                "batch": batch,
                "peak_memory_gib": _largest(best["peak_memory_gib"]),
                "planned_memory_gib": _largest(best["planned_memory_gib"]),
                "peak_over_planned": _largest(best["peak_over_planned"]),
                "above": _above(at_shards, batch),
            }
        rows.append(row)
    fields = [
        AXIS_FIELDS["model"],
        AXIS_FIELDS["gpu"],
        *(AXIS_FIELDS[axis] for axis in varied),
        AXIS_FIELDS["length"],
        Field("shards", "fewest shards"),
        Field("nodes", "nodes"),
        Field("batch", "largest batch"),
        Field("peak_memory_gib", "peak memory (GiB)", 2),
        Field("planned_memory_gib", "planned memory (GiB)", 2),
        Field("peak_over_planned", efficiencytable.MEMORY_RATIO, 2),
        Field("above", "larger batches"),
    ]
    note = (
        "At the smallest maximum length of the study; memory is that of one device at the largest batch. "
        "Planned memory has the CUDA context in it, peak memory has not."
    )
    return Table("table-2", "Bare minimum hardware and largest batch", note, fields, rows)


def use_by(frame: pd.DataFrame, axis: Literal["length", "shards"], name: str, words: str) -> Table:
    """Tables IV and V: how busy and how full devices were, by maximum length or by shards."""
    others = [a for a in AXES if a not in (axis, "dataset", "repeat")]
    fields = [*(AXIS_FIELDS[a] for a in others), AXIS_FIELDS[axis], *_USE_FIELDS]
    rows = []
    for key, own in groups(frame, others):
        ran = own[own["outcome"] == State.OK]
        if ran[axis].nunique() < 2:
            continue
        for value in counts_in_order(ran[axis]):
            rows.append({**key, axis: value} | _use(ran[ran[axis] == value]))
    note = _USE_NOTE
    if frame[axis].nunique() < 2:
        note = f"The study does not vary this axis: every cell has {axis} {listed(frame[axis])}."
    elif not rows:
        note = f"No two cells that differ in {axis} alone have run yet."
    return Table(name, f"Use of the devices by {words}", note, fields, rows)


def outcomes(frame: pd.DataFrame) -> Table:
    """Every cell that is not `ok`, with the reason and what to ask Snakemake for."""
    fields = [
        *AXIS_FIELDS.values(),
        Field("outcome", "outcome"),
        Field("reason", "reason"),
        Field("detail", "in words"),
        Field("log", "log"),
        Field("target", "target"),
    ]
    open_cells = frame[frame["outcome"] != State.OK]
    names = [field.name for field in fields]
    rows: list[Row] = [
        {name: known(value) for name, value in zip(names, values, strict=True)}
        for values in open_cells[names].itertuples(index=False, name=None)
    ]
    note = "Every cell ran through." if not rows else f"{len(rows)} of {len(frame)} cells."
    return Table("outcomes", "Cells without a measurement", note, fields, rows)


def _varied(frame: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    return [axis for axis in axes if frame[axis].nunique() > 1]


def _why_none(rows: pd.DataFrame) -> str:
    counts = Counter(map(_words, rows["outcome"], rows["reason"]))
    return ", ".join(f"{count} {words}" for words, count in counts.most_common())


def _above(rows: pd.DataFrame, batch: int) -> str:
    """What is known of larger batches on as many shards."""
    larger = rows[rows["batch"] > batch]
    if larger.empty:
        return "none in the study"
    following = larger[larger["batch"] == counts_in_order(larger["batch"])[0]].iloc[0]
    return f"{following['batch']}: {_words(following['outcome'], following['reason'])}"


def _words(outcome: str, reason: object) -> str:
    return outcome.replace("_", " ") + (f" ({PREDICTED})" if known(reason) == PREDICTED else "")


def _use(rows: pd.DataFrame) -> Row:
    row: Row = {}
    for name in _SHARES:
        means = _numbers(rows[name])
        row[f"{name}_mean_pct"] = 100 * fmean(means) if means else None
        largest = _largest(rows[f"{name}_max"])
        row[f"{name}_max_pct"] = None if largest is None else 100 * largest
    return row


def _largest(values: pd.Series) -> float | None:
    return max(_numbers(values), default=None)


def _numbers(values: pd.Series) -> list[float]:
    """Those that are known."""
    numbers: list[float] = values.to_numpy(dtype=float, na_value=math.nan).tolist()
    return [number for number in numbers if not math.isnan(number)]
