"""Table III: what a power cap changes, and whether it was seen on the same GPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from shardwatt.analysis.stats import paired_ratio_half, unpaired_ratio_half
from shardwatt.analysis.survey import State
from shardwatt.analysis.tablemodel import AXIS_FIELDS, Field, Row, Table, groups, known, listed
from shardwatt.cell import AXES

NAME = "table-3"

#: What is compared, by the beginning of its columns' names.
_QUANTITIES = {"duration": "duration_s", "energy": "energy_j", "tokens_per_s": "tokens_per_s"}
_LABELS = {"duration": "time", "energy": "energy", "tokens_per_s": "token rate"}

_NOTE = (
    "Change in % against the highest cap, no cap counting as the highest; means of repeats. ± is the half of "
    "a 95 % interval over three or more repeats. Paired: both cells of each repeat ran in one job on the "
    "same GPUs."
)

#: Words of the column `paired`; between them stands how many repeats of all are pairs.
PAIRED, SAME_GPUS, UNPAIRED = "yes", "same GPUs, other jobs", "no"

#: Where GPUs were others: how far those of one model are apart, and how small the effect is.
_OTHER_GPUS = (
    "Other comparisons hold the difference of the GPUs too: those of one model were found to differ in "
    "speed by 8 % on average and up to 22 % (arXiv 2208.11035), where a cap of 175 W instead of 250 W took "
    "6.7 % more time (mean of Table III of arXiv 2310.03003). The command run-together pairs them."
)


@dataclass(frozen=True, slots=True)
class _Comparison:
    """The cells behind one line of the table, `ok` ones alone.

    Attributes:
        capped: cells with the cap.
        reference: cells that they are compared with; of the same repeats, in order, where paired.
        paired: whether they are pairs, in words; None where one side is empty.
    """

    capped: Sequence[Mapping[str, Any]]
    reference: Sequence[Mapping[str, Any]]
    paired: str | None

    @property
    def energy_status(self) -> str | None:
        """What the joules of both sides are worth."""
        found = {row["energy_status"] for row in (*self.capped, *self.reference)} - {None}
        return ", ".join(sorted(found)) or None

    def change(self, quantity: str) -> tuple[float | None, float | None]:
        """Change and half of its 95 % interval, in %; None for what is not known."""
        if self.paired == PAIRED:
            both = [
                (now[quantity], before[quantity])
                for now, before in zip(self.capped, self.reference, strict=True)
                if now[quantity] is not None and before[quantity] is not None
            ]
            above, below = [now for now, _ in both], [before for _, before in both]
        else:
            above, below = (
                [row[quantity] for row in rows if row[quantity] is not None]
                for rows in (self.capped, self.reference)
            )
        if not above or not below or not fmean(below):
            return None, None
        half = (paired_ratio_half if self.paired == PAIRED else unpaired_ratio_half)(above, below)
        return 100 * (fmean(above) / fmean(below) - 1), None if half is None else 100 * half


def power_caps(frame: pd.DataFrame) -> Table:
    """What each power cap changes in time, energy and token rate, in % of the highest."""
    axes = [axis for axis in AXES if axis not in ("cap", "repeat")]
    rows = []
    for key, own in groups(frame, axes):
        if own["cap"].nunique() < 2:
            continue
        caps = sorted(set(own["cap"]), key=_cap_order, reverse=True)
        reference = _ran(own[own["cap"] == caps[0]])
        for cap in caps[1:]:
            found = _compare(_ran(own[own["cap"] == cap]), reference)
            row: Row = {**key, "cap_w": cap, "against": caps[0]}
            for name, quantity in _QUANTITIES.items():
                row[f"{name}_change_pct"], row[f"{name}_change_half_pct"] = found.change(quantity)
            rows.append(
                row
                | {
                    "repeats": len(found.capped),
                    "repeats_against": len(found.reference),
                    "paired": found.paired,
                    "energy_status": found.energy_status,
                }
            )
    note = _NOTE
    if any(row["paired"] not in (PAIRED, SAME_GPUS, None) for row in rows):
        note = f"{note} {_OTHER_GPUS}"
    if not rows:
        note = f"The study does not vary the power cap: every cell has cap {listed(frame['cap'])}."
    fields = [
        *(AXIS_FIELDS[axis] for axis in axes),
        Field("cap_w", "cap (W)"),
        Field("against", "against (W)"),
        Field("paired", "paired"),
        *(
            field
            for name, label in _LABELS.items()
            for field in (
                Field(f"{name}_change_pct", f"{label} (%)", 2),
                Field(f"{name}_change_half_pct", f"± {label} (%)", 2),
            )
        ),
        Field("repeats", "repeats", condition=True),
        Field("repeats_against", "repeats against", condition=True),
        Field("energy_status", "joules are"),
    ]
    return Table(NAME, "What a power cap changes", note, fields, rows)


def _cap_order(cap: str) -> float:
    return float("inf") if cap == "none" else float(cap)


def _ran(rows: pd.DataFrame) -> dict[int, Row]:
    """The `ok` cells by repeat."""
    names = ["repeat", "outcome", "job_id", "device_uuids", "energy_status", *_QUANTITIES.values()]
    found = [
        dict(zip(names, map(known, values), strict=True))
        for values in rows[names].itertuples(index=False, name=None)
    ]
    return {row["repeat"]: row for row in found if row["outcome"] == State.OK}


def _compare(capped: dict[int, Row], reference: dict[int, Row]) -> _Comparison:
    """Put the repeats of both sides together, where every repeat that both have is a pair."""
    both = sorted(capped.keys() & reference.keys())
    on_same = [one for one in both if _have_same_gpus(capped[one], reference[one])]
    # A job that Slurm started again may have got other GPUs: the same job alone does not do.
    pairs = [one for one in on_same if capped[one]["job_id"] == reference[one]["job_id"]]
    if both and pairs == both:
        return _Comparison([capped[one] for one in both], [reference[one] for one in both], PAIRED)
    paired = UNPAIRED
    if pairs:
        paired = f"{len(pairs)} of {len(both)}"
    elif both and on_same == both:
        paired = SAME_GPUS
    return _Comparison(
        list(capped.values()), list(reference.values()), paired if capped and reference else None
    )


def _have_same_gpus(one: Row, other: Row) -> bool:
    return one["device_uuids"] is not None and one["device_uuids"] == other["device_uuids"]
