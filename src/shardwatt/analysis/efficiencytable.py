"""The table of speed and efficiency: engines next to each other, and what their devices could have done."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from shardwatt.analysis.points import in_order, point
from shardwatt.analysis.survey import State
from shardwatt.analysis.tablemodel import AXIS_FIELDS, Field, Row, Table, groups
from shardwatt.cell import AXES

NAME = "efficiency"

#: The peak over the plan without the CUDA context, which is in the planned memory that stands beside it.
MEMORY_RATIO = "peak / planned without context"

#: Columns that are shown as they are, and those that are shown in %.
_QUANTITIES = (
    Field("prefill_tokens_useful_per_s", "prefill, useful (tokens/s)", 1),
    Field("prefill_tokens_per_s", "prefill, executed (tokens/s)", 1),
    Field("walk_tokens_per_s", "walk, executed (tokens/s)", 1),
    Field("decode_tokens_useful_per_s", "decode, useful (tokens/s)", 1),
    Field("decode_tokens_per_s", "decode, executed (tokens/s)", 1),
    Field("tokens_per_s", "output (tokens/s)", 1),
)
_SHARES = (
    Field("decode_bandwidth_utilisation", "bandwidth in decode (%)", 1),
    Field("prefill_flop_utilisation_executed", "FLOP in prefill, executed (%)", 1),
    Field("flop_utilisation_executed", "FLOP, executed (%)", 2),
    Field("flop_utilisation_useful", "FLOP, useful (%)", 2),
)
_MORE = (
    Field("power_w", "power (W)", 1),
    Field("energy_per_token_j", "J per output token", 4),
    Field("energy_per_generated_token_j", "J per token computed", 4),
    Field("peak_memory_gib", "peak memory (GiB)", 2),
    Field("planned_memory_gib", "planned memory (GiB)", 2),
    Field("peak_over_planned", MEMORY_RATIO, 2),
)

#: Columns that the table is made from, beside the axes and the outcome.
SHOWN = (*(field.name for field in (*_QUANTITIES, *_SHARES, *_MORE)), "data_sheet_source")

_NOTE = (
    "Means of repeats. Executed is all that went through the model, padding and rows that had ended "
    "included; useful is what the responses need. Output tokens per second are of the whole window. "
    "Utilisation is of the peak of all devices. J per token computed has the tokens past the end of sequence "
    "in its count, J per output token has not. Memory is that of the fullest device; planned memory has the "
    "CUDA context in it, peak memory has not."
)


def efficiency(frame: pd.DataFrame) -> Table:
    """Speed, utilisation and joules of every cell that ran, engines of the same cell next to each other."""
    others = [axis for axis in AXES if axis not in ("engine", "repeat")]
    rows: list[Row] = []
    for key, own in groups(frame, others):
        for engine in in_order(own["engine"]):
            ran = own[(own["engine"] == engine) & (own["outcome"] == State.OK)]
            if not ran.empty:
                rows.append({**key, "engine": engine} | _numbers(ran))
    note = _NOTE
    sources = dict.fromkeys(frame["data_sheet_source"].dropna())
    note += f" Peaks: {'; '.join(sources)}." if sources else " Peaks: the site gives no data sheet."
    if not rows:
        note = "No cell has run through yet."
    fields = [
        *(replace(AXIS_FIELDS[axis], condition=True) for axis in others),
        AXIS_FIELDS["engine"],
        *_QUANTITIES,
        *(replace(field, name=f"{field.name}_pct") for field in _SHARES),
        *_MORE,
        Field("energy_status", "energy"),
        Field("repeats", "repeats", condition=True),
    ]
    return Table(NAME, "Speed and efficiency", note, fields, rows)


def _numbers(ran: pd.DataFrame) -> Row:
    """The means over the repeats of one cell, all of which ran."""
    row: Row = {field.name: point(ran, field.name).value for field in (*_QUANTITIES, *_MORE)}
    for field in _SHARES:
        share = point(ran, field.name).value
        row[f"{field.name}_pct"] = None if share is None else 100 * share
    row["energy_status"] = ", ".join(sorted(set(ran["energy_status"].dropna()))) or None
    return row | {"repeats": len(ran)}
