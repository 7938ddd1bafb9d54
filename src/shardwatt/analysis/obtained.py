"""How the energy of a study was obtained: what was read, how densely, what was not and why, what is amiss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from shardwatt.analysis.marking import WORD
from shardwatt.analysis.points import named
from shardwatt.analysis.survey import State
from shardwatt.cell import AXES
from shardwatt.readings import KNOWN
from shardwatt.units import rounded

#: Cells that are named of each violation; the table of cells has all.
_NAMED_AT_MOST = 10

#: Readings beside the headline: words and the beginning of their columns.
_BESIDE = {
    "DCGM's job statistics, rank-0 node × nodes": ("energy_dcgm_j", "energy_dcgm"),  # noqa: RUF001
    "idle baseline, unloaded": ("idle_unloaded_w", "idle_unloaded"),
    "idle baseline, loaded": ("idle_loaded_w", "idle_loaded"),
    "processors (RAPL)": ("cpu_energy_j", "cpu_energy"),
    "memory (RAPL)": ("dram_energy_j", "dram_energy"),
    "whole nodes (Slurm)": ("slurm_node_energy_j", "slurm_node_energy"),
}


@dataclass(frozen=True, slots=True)
class Violated:
    """A rule that readings break.

    Attributes:
        code: which; listed in docs/energy-method.md.
        cells: how many cells break it.
        named: the first of them with what was found there.
    """

    code: str
    cells: int
    named: Sequence[tuple[str, str]]


def coverage(frame: pd.DataFrame) -> list[dict[str, str]]:
    """The statement of coverage: for each group of cells that were read alike, properties by their words."""
    ran = _ran(frame)
    keys = [WORD, "energy_status", "energy_method", "site", "device_names"]
    groups = []
    for key, own in ran.groupby(keys, sort=False, dropna=False):
        is_simulated = bool(key[0])
        status, method, site, devices = (_text(value) or "unknown" for value in key[1:])
        groups.append(
            {
                "cells": f"{len(own)}, {WORD}" if is_simulated else str(len(own)),
                "energy": status,
                "obtained by": "nothing" if method == "unknown" else method,
                "site": site,
                "devices": devices,
                "nodes read": _of(own, "energy_nodes"),
                "devices read": _of(own, "energy_devices"),
                "period asked for (s)": _range(own["energy_asked_period_s"]),
                "period achieved (s)": _range(own["energy_period_s"]),
                "jitter, 95th percentile (s)": _range(own["energy_jitter_s"]),
                "lateness, 95th percentile (s)": _range(own["energy_late_s"]),
                "deadlines missed": _range(own["energy_missed"], whole=True),
                "sampler's processor time (% of a core)": _most(100 * own["energy_sampler_cpu_share"]),
                "gaps over ten periods": _gaps(own["energy_gaps"]),
                "longest gap (s)": _range(own["energy_max_gap_s"]),
                "tick of the counter (s)": _range(own["energy_tick_s"]),
                "clocks of nodes apart (s)": _range(own["clock_offset_s"]),
                "clocks of nodes drifted (s)": _most(own["clock_drift_s"]),
                "counter over integral": _range(own["counter_over_integral"]),
                "uncertainty of the tick (%)": _most(100 * own["energy_uncertainty_j"] / own["energy_j"]),
                "idle, unloaded (W a device)": _range(own["idle_unloaded_w"] / own["energy_devices"]),
                "idle, loaded (W a device)": _range(own["idle_loaded_w"] / own["energy_devices"]),
                "clocks held back": _held_back(own),
                "rules broken": _in_cells(int((own["violations_n"] > 0).sum())),
            }
        )
    return groups


def beside(frame: pd.DataFrame) -> list[dict[str, str]]:
    """What was read beside the headline, in how many cells, and why not in the others."""
    ran = _ran(frame)
    if ran.empty:
        return []
    rows = []
    for title, (quantity, name) in _BESIDE.items():
        statuses = ran[f"{name}_status"]
        has_it = statuses.isin([str(status) for status in KNOWN]) & ran[quantity].notna()
        without = ran[~has_it]
        reasons = [
            f"{status} in {_cells(len(own))}" + (f": {words}" if (words := _text(detail)) else "")
            for (status, detail), own in without.groupby(
                [f"{name}_status", f"{name}_detail"], sort=False, dropna=False
            )
        ]
        rows.append(
            {
                "reading": title,
                "cells that have it": f"{int(has_it.sum())} of {len(ran)}",
                "the others": "; ".join(reasons) or "--",
            }
        )
    return rows


def violations(frame: pd.DataFrame) -> list[Violated]:
    """Rules that readings break, with the cells where they do."""
    found: dict[str, list[tuple[str, str]]] = {}
    wanted = [*AXES, "violations_detail"]
    broken = _ran(frame)
    broken = broken[broken["violations_detail"].notna()]
    for values in broken[wanted].itertuples(index=False, name=None):
        cell = dict(zip(wanted, values, strict=True))
        shown = ("model", "gpu", "shards", "dataset", "length", "batch", "cap", "repeat")
        words = named([(axis, cell[axis]) for axis in shown if (axis, cell[axis]) != ("cap", "none")])
        for code, messages in _by_code(str(cell["violations_detail"])):
            found.setdefault(code, []).append((words, "; ".join(messages)))
    return [Violated(code, len(cells), cells[:_NAMED_AT_MOST]) for code, cells in found.items()]


def details(frame: pd.DataFrame) -> list[str]:
    """Constants of estimates with their source, and why energy is unknown; each once."""
    return [str(text) for text in dict.fromkeys(_ran(frame)["energy_detail"].dropna())]


def _ran(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["outcome"] == State.OK]


def _by_code(text: str) -> Iterator[tuple[str, list[str]]]:
    """Codes of one cell's violations, each once, with all that was found."""
    messages: dict[str, list[str]] = {}
    for entry in json.loads(text):
        messages.setdefault(entry["code"], []).append(entry["message"])
    yield from messages.items()


def _of(rows: pd.DataFrame, name: str) -> str:
    """`all` with their number where every cell's were read, otherwise the worst cell."""
    lacking = rows[rows[name] < rows[f"{name}_expected"]]
    if lacking.empty:
        return f"all ({_range(rows[f'{name}_expected'], whole=True)} a cell)"
    shares = lacking[name] / lacking[f"{name}_expected"]
    worst = lacking.iloc[int(shares.argmin())]
    return f"{worst[name]} of {worst[f'{name}_expected']} at worst; not all in {_cells(len(lacking))}"


def _gaps(values: pd.Series) -> str:
    known = values.dropna()
    if known.empty:
        return "unknown"
    with_gaps = int((known > 0).sum())
    return f"{int(known.sum())} in {_cells(with_gaps)}" if with_gaps else "none"


def _held_back(rows: pd.DataFrame) -> str:
    """Why clocks were held back, reason by reason, as far as a device tells."""
    shares: dict[str, list[float]] = {}
    for text in rows["throttle_reasons"].dropna():
        for reason, _, share in (part.partition(" ") for part in str(text).split(", ")):
            shares.setdefault(reason, []).append(float(share))
    words = [
        f"{reason} in {_cells(len(found))}, up to {rounded(100 * max(found))} % of samples"
        for reason, found in shares.items()
    ]
    return "; ".join(words) or "in no cell, or no device tells"


def _in_cells(number: int) -> str:
    return f"in {_cells(number)}" if number else "none"


def _cells(number: int) -> str:
    return f"{number} cell" + ("" if number == 1 else "s")


def _most(values: pd.Series) -> str:
    known = values.dropna()
    return "unknown" if known.empty else f"up to {rounded(float(known.max()))}"


def _range(values: pd.Series, *, whole: bool = False) -> str:
    known = values.dropna()
    if known.empty:
        return "unknown"
    low, high = (str(int(end)) if whole else rounded(float(end)) for end in (known.min(), known.max()))
    return low if low == high else f"{low} to {high}"


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)
