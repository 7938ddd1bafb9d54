"""What the report says in numbers: outcomes at a glance, headlines, origin."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from shardwatt.analysis.marking import WORD, extent
from shardwatt.analysis.points import OF_ENERGY, named
from shardwatt.analysis.survey import State
from shardwatt.cell import AXES
from shardwatt.readings import Status
from shardwatt.units import rounded

#: Sign and words of each outcome in the map of cells.
SIGNS = {
    State.OK: ("✓", "ok"),
    State.DOES_NOT_FIT: ("✕", "does not fit"),
    State.FAILED: ("!", "failed"),
    State.MISSING: ("·", "missing"),
    State.INVALID: ("?", "invalid"),
    State.OUTDATED: ("~", "outdated"),
}

_ROW_AXES = ("engine", "precision", "cap", "model", "gpu", "shards")
_COLUMN_AXES = ("dataset", "length", "batch")
_LABELS = {"gpu": "GPU type", "dataset": "data set", "length": "max. new tokens", "batch": "batch size"}
_S_PER_MIN, _S_PER_H, _J_PER_KWH = 60, 3600, 3.6e6


@dataclass(frozen=True, slots=True)
class Sign:
    """One cell of the map: an outcome, its sign, and words for it."""

    outcome: str
    sign: str
    words: str


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of the map that spans some columns."""

    text: str
    span: int


@dataclass(frozen=True, slots=True)
class Map:
    """All cells at a glance.

    Attributes:
        row_labels: names of the axes that rows differ in.
        column_labels: names of the axes of the column headings.
        headings: one list for each axis of the columns.
        rows: values of the row's axes, and its signs by column; an empty list where there is no cell.
    """

    row_labels: Sequence[str]
    column_labels: Sequence[str]
    headings: Sequence[Sequence[Heading]]
    rows: Sequence[tuple[Sequence[str], Sequence[Sequence[Sign]]]]


@dataclass(frozen=True, slots=True)
class Headline:
    """One number that stands out: its words, value with unit, where it was found, and a label."""

    label: str
    value: str
    where: str
    tag: str = ""


def counts(frame: pd.DataFrame) -> list[tuple[str, str, str, int]]:
    """Outcome, sign, words and number of cells of each outcome; `ok` always, others where there are any."""
    found = frame["outcome"].value_counts()
    return [
        (str(state), *SIGNS[state], int(found.get(state, 0)))
        for state in SIGNS
        if state is State.OK or found.get(state, 0)
    ]


def cell_map(frame: pd.DataFrame) -> Map:
    """Lay all cells out: models, GPU types and shards down; data sets, lengths and batches across."""
    row_axes = [a for a in _ROW_AXES if a in ("model", "gpu", "shards") or frame[a].nunique() > 1]
    columns = sorted(set(frame[list(_COLUMN_AXES)].itertuples(index=False, name=None)))
    place = {column: index for index, column in enumerate(columns)}
    rows: dict[tuple[Any, ...], list[list[Sign]]] = {}
    wanted = [*AXES, "outcome", "detail"]
    for values in frame[wanted].itertuples(index=False, name=None):
        cell = dict(zip(wanted, values, strict=True))
        signs = rows.setdefault(tuple(cell[a] for a in row_axes), [[] for _ in columns])
        sign, words = SIGNS[State(cell["outcome"])]
        detail = "" if pd.isna(cell["detail"]) else f": {cell['detail']}"
        where = named([(a, cell[a]) for a in ("model", "gpu", "shards", *_COLUMN_AXES)])
        title = f"{where}, repeat {cell['repeat']}: {words}{detail}"
        signs[place[tuple(cell[a] for a in _COLUMN_AXES)]].append(Sign(cell["outcome"], sign, title))
    return Map(
        row_labels=[_LABELS.get(a, a) for a in row_axes],
        column_labels=[_LABELS.get(a, a) for a in _COLUMN_AXES],
        headings=[_headings(columns, level) for level in range(len(_COLUMN_AXES))],
        rows=[([str(value) for value in key], signs) for key, signs in rows.items()],
    )


def _headings(columns: list[tuple[Any, ...]], level: int) -> list[Heading]:
    """Headings of one level; neighbours that agree up to it share one."""
    headings: list[Heading] = []
    last: tuple[Any, ...] | None = None
    for column in columns:
        if column[: level + 1] == last:
            headings[-1] = Heading(headings[-1].text, headings[-1].span + 1)
        else:
            headings.append(Heading(str(column[level]), 1))
        last = column[: level + 1]
    return headings


def headlines(frame: pd.DataFrame) -> list[Headline]:
    """The numbers to read first; those that are not known are left out, estimates are labelled."""
    ran = frame[frame["outcome"] == State.OK]
    found = []
    for label, quantity, unit, best in (
        ("least energy per output token", "energy_per_token_j", "J/token", "min"),
        ("least energy per response", "energy_per_response_j", "J/response", "min"),
        ("highest throughput", "tokens_per_s", "tokens/s", "max"),
    ):
        known = ran[ran[quantity].notna()]
        if known.empty:
            continue
        first = known.sort_values(quantity, ascending=best == "min", kind="stable").head(1)
        row = first.iloc[0]
        value = f"{rounded(float(row[quantity]))} {unit}"
        tag = _worth(first, "energy_status" if quantity in OF_ENERGY else None)
        axes = ("model", "gpu", "shards", "batch", "length", "dataset")
        found.append(Headline(label, value, named([(a, row[a]) for a in axes]), tag))
    return found + _totals(ran)


def _totals(ran: pd.DataFrame) -> list[Headline]:
    if ran.empty:
        return []
    found = [
        Headline(
            "responses",
            f"{int(ran['responses'].sum()):,}",
            f"{int(ran['output_tokens'].sum()):,} output tokens in {len(ran)} cells",
            _worth(ran),
        )
    ]
    known = ran[ran["job_energy_j"].notna()]
    lasted = f"{_duration(float(ran['job_duration_s'].sum()))} of jobs, loading included"
    if known.empty:
        return [*found, Headline("energy of all jobs", "unknown", lasted)]
    joules = float(known["job_energy_j"].sum())
    value = f"{rounded(joules / _J_PER_KWH)} kWh" if joules > _J_PER_KWH else f"{rounded(joules / 1e3)} kJ"
    unknown = len(ran) - len(known)
    where = lasted + (f"; unknown for {unknown} cells" if unknown else "")
    return [*found, Headline("energy of all jobs", value, where, _worth(known, "job_energy_status"))]


def _worth(rows: pd.DataFrame, status: str | None = None) -> str:
    """What is to be said of a number made from these cells; `status` is the column of its joules' status."""
    words = [extent(rows[WORD])]
    if status is not None:
        estimates = rows[status] == str(Status.ESTIMATED)
        words.append("estimated" if estimates.all() else "partly estimated" if estimates.any() else None)
    return ", ".join(filter(None, words))


def _duration(seconds: float) -> str:
    if seconds < 2 * _S_PER_MIN:
        return f"{rounded(seconds)} s"
    if seconds < 2 * _S_PER_H:
        return f"{rounded(seconds / _S_PER_MIN)} min"
    return f"{rounded(seconds / _S_PER_H)} h"


def origin(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Where the numbers come from: one row for each commit, set of versions and site."""
    known = frame[frame["job_id"].notna()]
    rows = []
    for key, own in known.groupby(["commit", "commit_dirty", "versions", "site"], sort=False, dropna=False):
        commit, dirty, versions, site = key
        words = (_text(commit) or "")[:12] or "outside a checkout"
        if _text(dirty) == "True":
            words += ", with changes"
        hosts = {host for text in own["hosts"].dropna() for host in str(text).split(", ")}
        rows.append(
            {
                "cells": str(len(own)),
                "commit": words,
                "site": str(site),
                "hosts": ", ".join(sorted(hosts)),
                "started": _when(own["started_at"].min()),
                "ended": _when(own["ended_at"].max()),
                "versions": ", ".join(f"{name} {v}" for name, v in json.loads(str(versions)).items()),
            }
        )
    return rows


def identities(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Checkpoints and data files by hash, as far as cells have told them."""
    known = frame[frame["job_id"].notna()]
    rows = [
        {"what": f"{model}, {shards} shards", "hash": str(value)}
        for model, shards, value in dict.fromkeys(
            known[["model", "shards", "model_fingerprint"]].itertuples(index=False, name=None)
        )
    ]
    rows += [
        {"what": str(dataset), "hash": str(value)}
        for dataset, value in dict.fromkeys(
            known[["dataset", "dataset_sha256"]].itertuples(index=False, name=None)
        )
    ]
    return rows


def _text(value: Any) -> str | None:
    return None if pd.isna(value) else str(value)


def _when(moment: Any) -> str:
    return "unknown" if pd.isna(moment) else f"{moment:%Y-%m-%d %H:%M} UTC"
