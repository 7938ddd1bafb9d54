"""The published values of arXiv 2310.03003 beside what a study found for the same runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import pandas as pd

from shardwatt.analysis.captable import power_caps
from shardwatt.analysis.points import counts_in_order, in_order
from shardwatt.analysis.survey import State
from shardwatt.analysis.tablemodel import AXIS_FIELDS, Field, Row, Table
from shardwatt.plan.published import PAPER, PUBLISHED, USUAL_CAP_W, Published, Quantity

NAME = "published"

#: What the paper's cells are run in; runs in another precision are others.
_PRECISION = "fp16"

#: GPUs of the paper's smallest runs of the 65B model on V100s.
_USUAL_SHARDS = 8

_NOTE = (
    f"Published: {PAPER}. Here: means over data sets and repeats of cells in {_PRECISION} that ran "
    "through, of GPU types that carry the paper's name; cells without a cap stand for the paper's 250 W "
    "where the study has none with it. The difference is in percentage points of a percentage, in numbers "
    "of a count, otherwise in % of the published value; nothing within a published range. The paper's "
    "joules are DCGM's of the node of rank 0 times the number of nodes, over the whole job, and its tokens "
    "those of its responses encoded again; here joules, time and watts are of the inference window and of "
    "all nodes, by the meters of the study, and tokens those that were sampled before the end of sequence. "
    "Of memory activity its Table IV prints a maximum, over what it does not say: beside it stand the "
    "highest sample of any device and, in a row of its own, the mean; Table V does not say which it prints."
)


@dataclass(frozen=True, slots=True)
class _Shown:
    """How a quantity is shown.

    Attributes:
        words: what it is.
        unit: of the published value.
        digits: decimals of it and of the study's own.
        difference: `points`, `%`, or `` for counts.
    """

    words: str
    unit: str
    digits: int
    difference: str


_SHOWN: Mapping[Quantity, _Shown] = {
    "fewest_gpus": _Shown("fewest GPUs", "GPUs", 0, ""),
    "largest_batch": _Shown("largest batch", "prompts", 0, ""),
    "duration_change_percent": _Shown("time, against 250 W", "%", 2, "points"),
    "energy_change_percent": _Shown("energy, against 250 W", "%", 2, "points"),
    "token_rate_change_percent": _Shown("token rate, against 250 W", "%", 2, "points"),
    "memory_activity_percent": _Shown("memory activity, mean", "%", 2, "points"),
    "memory_activity_max_percent": _Shown("memory activity, maximum", "%", 2, "points"),
    "sm_utilisation_percent": _Shown("SM utilisation, mean", "%", 2, "points"),
    "power_w": _Shown("power of all GPUs", "W", 0, "%"),
    "energy_per_token_j": _Shown("energy per token", "J", 2, "%"),
    "throughput_ratio": _Shown("tokens/s over those of V100s", "times", 2, "%"),
    "energy_per_token_ratio": _Shown("energy per token over that of 8 shards", "times", 2, "%"),
    "most_efficient_shards": _Shown("shards with the least energy per token", "GPUs", 0, ""),
}

#: Decimals of a difference, by what it is in; of counts none.
_DIFFERENCE_DIGITS = {"points": 2, "%": 1}

#: Columns whose mean is the study's value, and the factor between their units and the published one's.
_MEANS: Mapping[Quantity, tuple[str, float]] = {
    "memory_activity_percent": ("memory_activity", 100),
    "memory_activity_max_percent": ("memory_activity_max", 100),
    "sm_utilisation_percent": ("sm_utilisation", 100),
    "power_w": ("power_w", 1),
    "energy_per_token_j": ("energy_per_token_j", 1),
}

#: What of a study stands beside a published quantity in a row of its own: of a maximum over nobody says what,
#: the mean too.
_BESIDE: Mapping[Quantity, Quantity] = {"memory_activity_max_percent": "memory_activity_percent"}

#: Columns of the table of power caps.
_CHANGES: Mapping[Quantity, str] = {
    "duration_change_percent": "duration_change_pct",
    "energy_change_percent": "energy_change_pct",
    "token_rate_change_percent": "tokens_per_s_change_pct",
}


def _digits(row: Row) -> int:
    """Decimals of a row's values."""
    return int(row["digits"])


def _difference_digits(row: Row) -> int:
    return _DIFFERENCE_DIGITS.get(row["difference_in"], 0)


_FIELDS = (
    Field("where", "published in"),
    Field("quantity", "quantity"),
    AXIS_FIELDS["model"],
    AXIS_FIELDS["gpu"],
    AXIS_FIELDS["shards"],
    AXIS_FIELDS["batch"],
    AXIS_FIELDS["length"],
    AXIS_FIELDS["dataset"],
    Field("cap", "cap (W)"),
    Field("published", "published", _digits),
    Field("published_high", "up to", _digits),
    Field("here", "here", _digits),
    Field("unit", "unit"),
    Field("difference", "difference", _difference_digits),
    Field("difference_in", "in"),
    Field("energy_status", "joules are"),
    AXIS_FIELDS["engine"],
)


def published(frame: pd.DataFrame) -> Table:
    """Each value that the paper prints and the study has a cell for, by engine, beside the study's own."""
    frame = frame[frame["precision"] == _PRECISION]
    caps = power_caps(frame).rows
    rows = [
        row
        for one in PUBLISHED
        if one.source == PAPER
        for engine in in_order(frame["engine"])
        for row in _rows(frame[frame["engine"] == engine], one, engine, caps)
    ]
    note = _NOTE
    if not rows:
        note = "The paper (arXiv 2310.03003) prints no value for a cell of this study."
    return Table(NAME, "Published values beside the study's own", note, _FIELDS, rows)


def _rows(frame: pd.DataFrame, one: Published, engine: str, caps: Sequence[Row]) -> list[Row]:
    """What stands beside a value, for each GPU type of one engine that has the run; there is hardly more than
    one."""
    found = []
    for gpu in in_order(frame["gpu"]):
        own = _of_the_run(frame[frame["gpu"] == gpu], one) if _is(gpu, one.gpu) else frame.iloc[:0]
        if own.empty:
            continue
        found.append(_row(frame, own, one, caps, gpu, engine))
        if (beside := _BESIDE.get(one.quantity)) is not None:
            row = _row(frame, own, replace(one, quantity=beside), caps, gpu, engine)
            found.append({**row, "quantity": f"{row['quantity']}, beside a published maximum"})
    return found


def _row(
    frame: pd.DataFrame, own: pd.DataFrame, one: Published, caps: Sequence[Row], gpu: str, engine: str
) -> Row:
    """A published value beside that of the cells of its run."""
    ran = own[own["outcome"] == State.OK]
    here = _FINDERS[one.quantity](frame, ran, one, caps) if not ran.empty else None
    statuses = set(ran["energy_status"].dropna()) if one.quantity in _OF_ENERGY else set()
    shown = _SHOWN[one.quantity]
    return {
        "where": one.where,
        "quantity": shown.words,
        "model": one.model,
        "gpu": gpu,
        "shards": one.shards,
        "batch": one.batch,
        "length": one.length,
        "dataset": one.dataset,
        "cap": ", ".join(in_order(own["cap"])),
        "published": one.low,
        "published_high": one.high if one.is_range else None,
        "here": here,
        "unit": shown.unit,
        "digits": shown.digits,  # no column: how this row is shown
        "difference": None if here is None else _difference(here, one, shown.difference),
        "difference_in": shown.difference or shown.unit,
        "energy_status": ", ".join(sorted(statuses)) or None,
        "engine": engine,
    }


def _of_the_run(frame: pd.DataFrame, one: Published) -> pd.DataFrame:
    """The cells of the run that a published value is of."""
    own = frame[(frame["model"] == one.model) & (frame["length"] == one.length)]
    for axis in ("shards", "batch"):
        if (value := getattr(one, axis)) is not None:
            own = own[own[axis] == value]
    if one.dataset != "both":
        own = own[own["dataset"] == one.dataset]
    capped = own[own["cap"] == str(one.cap_w)]
    return own[own["cap"] == "none"] if capped.empty and one.cap_w == USUAL_CAP_W else capped


def _is(gpu: str, data_sheet: str) -> bool:
    """Whether a site's GPU type carries the name of a data sheet's GPU, e.g. `v100` or `v100-32gb`."""
    name = data_sheet.partition("-")[0]
    return gpu == name or gpu.startswith(f"{name}-")


_Finder = Callable[[pd.DataFrame, pd.DataFrame, Published, Sequence[Row]], float | None]


def _fewest(frame: pd.DataFrame, ran: pd.DataFrame, one: Published, caps: Sequence[Row]) -> float | None:
    return counts_in_order(ran["shards"])[0]


def _largest(frame: pd.DataFrame, ran: pd.DataFrame, one: Published, caps: Sequence[Row]) -> float | None:
    return counts_in_order(ran["batch"])[-1]


def _mean(frame: pd.DataFrame, ran: pd.DataFrame, one: Published, caps: Sequence[Row]) -> float | None:
    column, factor = _MEANS[one.quantity]
    return _mean_of(ran[column], factor)


def _change(frame: pd.DataFrame, ran: pd.DataFrame, one: Published, caps: Sequence[Row]) -> float | None:
    of = {
        axis: ran[axis].iloc[0] for axis in ("engine", "gpu", "model", "shards", "batch", "length", "dataset")
    }
    wanted = of | {"cap_w": str(one.cap_w), "against": str(USUAL_CAP_W)}
    matching = [row for row in caps if all(row[name] == value for name, value in wanted.items())]
    known = [row[_CHANGES[one.quantity]] for row in matching]
    return known[0] if known else None


def _over_v100(frame: pd.DataFrame, ran: pd.DataFrame, one: Published, caps: Sequence[Row]) -> float | None:
    """Tokens a second over those of V100s, each at the fewest GPUs that ran."""
    others = frame.loc[[_is(gpu, "v100") for gpu in frame["gpu"]]]
    below = _of_the_run(others, one)
    rates = [_at_fewest(rows) for rows in (ran, below[below["outcome"] == State.OK])]
    return rates[0] / rates[1] if rates[0] and rates[1] else None


def _over_8_shards(
    frame: pd.DataFrame, ran: pd.DataFrame, one: Published, caps: Sequence[Row]
) -> float | None:
    """Joules per token over those of the same run on eight GPUs."""
    own = frame[frame["gpu"] == ran["gpu"].iloc[0]]
    below = _of_the_run(own, replace(one, shards=_USUAL_SHARDS))
    energies = [_mean_of(rows["energy_per_token_j"]) for rows in (ran, below[below["outcome"] == State.OK])]
    return energies[0] / energies[1] if energies[0] and energies[1] else None


def _most_efficient(
    frame: pd.DataFrame, ran: pd.DataFrame, one: Published, caps: Sequence[Row]
) -> float | None:
    """Shards of the cell with the least joules per token."""
    found = zip(ran["energy_per_token_j"], ran["shards"], strict=True)
    known = [(float(joules), int(shards)) for joules, shards in found if not pd.isna(joules)]
    return min(known)[1] if known else None


def _at_fewest(ran: pd.DataFrame) -> float | None:
    if ran.empty:
        return None
    fewest = counts_in_order(ran["shards"])[0]
    return _mean_of(ran.loc[ran["shards"] == fewest, "tokens_per_s"])


_FINDERS: Mapping[Quantity, _Finder] = {
    "fewest_gpus": _fewest,
    "largest_batch": _largest,
    "throughput_ratio": _over_v100,
    "energy_per_token_ratio": _over_8_shards,
    "most_efficient_shards": _most_efficient,
    **dict.fromkeys(_MEANS, _mean),
    **dict.fromkeys(_CHANGES, _change),
}

_OF_ENERGY: tuple[Quantity, ...] = (
    *("energy_change_percent", "power_w", "energy_per_token_j"),
    *("energy_per_token_ratio", "most_efficient_shards"),
)


def _mean_of(values: pd.Series, factor: float = 1) -> float | None:
    numbers = [number for number in values.to_numpy(dtype=float, na_value=math.nan) if not math.isnan(number)]
    return factor * fmean(numbers) if numbers else None


def _difference(here: float, one: Published, kind: str) -> float:
    """How far a value is from the published one, or from the nearer end of a published range."""
    nearest = min(max(here, one.low), one.high)
    return 100 * (here / nearest - 1) if kind == "%" else here - nearest
