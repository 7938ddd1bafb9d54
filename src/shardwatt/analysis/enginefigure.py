"""Engines side by side: the same model on the same GPU type, each quantity in a row of panels."""

from __future__ import annotations

import pandas as pd

from shardwatt.analysis.canvas import Page
from shardwatt.analysis.notes import Notes, Rows, fewest_shards, placed, times, wrapped
from shardwatt.analysis.panels import Panel, Series
from shardwatt.analysis.points import counts_in_order, in_order
from shardwatt.analysis.survey import State
from shardwatt.figurelist import FigureSpec

_BANDWIDTH = "decode_bandwidth_utilisation"

#: Why these rates: those of all that is computed would show an engine the faster, the more it wastes.
_USEFUL = (
    "Tokens/s of prefill and decode are those that responses need: no padding, nothing after a row's end."
)

#: What is shown: columns, with the words on their axis.
QUANTITIES = (
    ("prefill_tokens_useful_per_s", "prefill tokens/s,\nuseful"),
    ("decode_tokens_useful_per_s", "decode tokens/s,\nuseful"),
    ("tokens_per_s", "output tokens/s"),
    (_BANDWIDTH, "decode bandwidth\nutilisation"),
    ("energy_per_token_j", "J per output token"),
    ("energy_per_generated_token_j", "J per token computed"),
)


def layout(frame: pd.DataFrame, rows: Rows, spec: FigureSpec) -> Page:
    """Engines along x, a bar for each batch size, a column for each data set, a row for each quantity.

    The bandwidth utilisation has no row where no cell that ran knows it.

    Args:
        frame: all cells of the study, for colours that stay the same from figure to figure.
        rows: those of the figure.
        spec: which figure it is.
    """
    notes = Notes()
    engines, batches = in_order(rows["engine"]), counts_in_order(rows["batch"])
    all_batches = counts_in_order(frame["batch"])
    series = [Series(str(batch), all_batches.index(batch)) for batch in batches]
    shards = {engine: fewest_shards(rows[rows["engine"] == engine]) for engine in engines}
    gpu = str(dict(spec.fixed)["gpu"])
    groups = ["\n".join([*wrapped(engine), times(shards[engine], gpu)]) for engine in engines]
    shown = [one for one in QUANTITIES if one[0] != _BANDWIDTH or _is_known(rows)]
    grid: list[list[Panel]] = []
    for quantity, y_label in shown:
        panels = []
        for dataset in in_order(rows["dataset"]):
            points = [
                [
                    placed(
                        rows,
                        quantity,
                        notes,
                        dataset=dataset,
                        engine=engine,
                        shards=shards[engine],
                        batch=batch,
                    )
                    for batch in batches
                ]
                for engine in engines
            ]
            last = quantity == shown[-1][0]
            labels = groups if last else [""] * len(groups)
            panels.append(Panel("" if grid else dataset, labels, series, points, y_label, ""))
        grid.append(panels)
    sentences = [_USEFUL, *notes.sentences()]
    if len(shown) < len(QUANTITIES):
        sentences.append(f"The site gives no data sheet of {gpu}: the bandwidth utilisation is not known.")
    subtitle = f"Each at the fewest shards that fit; {spec.conditions}"
    return Page(spec.title, subtitle, "batch size", grid, sentences)


def _is_known(rows: Rows) -> bool:
    """Whether any cell knows its bandwidth utilisation, or none can as none has run."""
    ran = rows[rows["outcome"] == State.OK]
    return ran.empty or bool(ran[_BANDWIDTH].notna().any())
