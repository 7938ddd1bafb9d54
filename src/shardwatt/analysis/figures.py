"""The figures of a study: counterparts of figures 2 to 9 of arXiv 2310.03003, and the ratios beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from shardwatt.analysis import enginefigure, ratios
from shardwatt.analysis.canvas import Page, compose, save
from shardwatt.analysis.columns import WITH_INTERVAL
from shardwatt.analysis.marking import SENTENCES, WORD, extent, titled
from shardwatt.analysis.notes import Notes, Rows, fewest_shards, placed, times, where, wrapped
from shardwatt.analysis.panels import Panel, Series
from shardwatt.analysis.points import counts_in_order, in_order
from shardwatt.analysis.survey import State
from shardwatt.cell import AXES
from shardwatt.figurelist import COMPARISONS, FigureSpec, Kind
from shardwatt.units import rounded

#: What each kind of figure shows: columns, with the words on their axis.
QUANTITIES: dict[Kind, tuple[tuple[str, str], ...]] = {
    Kind.THROUGHPUT: (
        ("words_per_s", "words/s"),
        ("tokens_per_s", "output tokens/s"),
        ("responses_per_s", "responses/s"),
    ),
    Kind.POWER: (("power_w", "mean power of all devices (W)"),),
    Kind.POWER_BY_SHARDS: (("power_w", "mean power of all devices (W)"),),
    Kind.ENERGY_PER_TOKEN: (("energy_per_token_j", "energy per output token (J)"),),
    Kind.ENERGY_PER_RESPONSE: (("energy_per_response_j", "energy per response (J)"),),
    Kind.ENGINES: enginefigure.QUANTITIES,
}

#: What a reader sees in each kind of figure, and what it is the counterpart of.
CAPTIONS = {
    Kind.THROUGHPUT: "Words, output tokens and responses per second of the inference window, each model on "
    "each GPU type at the fewest shards that fit. Counterpart of figure 2 of arXiv 2310.03003.",
    Kind.POWER: "Mean power of all devices over the inference window, for the runs of the throughput figure; "
    "logarithmic axis. Counterpart of figure 3 of arXiv 2310.03003.",
    Kind.POWER_BY_SHARDS: "Mean power of all devices over the inference window, by shards and batch size. "
    "Counterpart of figures 4 and 5 of arXiv 2310.03003.",
    Kind.ENERGY_PER_TOKEN: "Joules of all devices over the inference window per output token, by shards and "
    "batch size. Counterpart of figures 6 and 7 of arXiv 2310.03003.",
    Kind.ENERGY_PER_RESPONSE: "Joules of all devices over the inference window per response, by shards and "
    "batch size. Counterpart of figures 8 and 9 of arXiv 2310.03003.",
    Kind.ENGINES: "The same prompts answered by each engine: token positions per second of prefill and of "
    "decode, output tokens per second of the whole window, the share of the peak memory bandwidth that "
    "decode needs at the least, and joules per token without and with the tokens past the end of sequence.",
    Kind.RATIOS: "Left, the scope: what the rank-0 node times the number of nodes makes of the energy that "
    "was read on all nodes, by the same meters. Right, the method: DCGM's job statistics over NVML's "
    "counters, of the same GPUs of the rank-0 node over the same time. A dot is a cell; the line is the "
    "median, the box holds the middle half. The two are never multiplied or drawn on one axis.",
}

#: Columns that say what a point's value is worth, or why it has none.
_ALWAYS = (
    "outcome",
    "reason",
    "energy_j",
    "energy_method",
    "energy_status",
    "energy_detail",
    "interval_kind",
    WORD,
)

#: Panels that would make a page wider than this stand below each other.
_WIDEST_PAGE_IN = 14.0


def draw(frame: pd.DataFrame, spec: FigureSpec, folder: Path) -> list[Path]:
    """Draw one figure and write NAME.svg, NAME.pdf and NAME.png into a folder; returns their paths.

    Cells that do not fit, have no result, or no known energy are drawn as such, and named below.

    Args:
        frame: the study's whole table, as `read_cells` gives it.
        spec: the figure.
        folder: made if it is not there.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    return save(lambda: figure_of(frame, spec), folder, spec.name)


def figure_of(frame: pd.DataFrame, spec: FigureSpec) -> Figure:
    """Lay one figure out, of whatever kind."""
    return ratios.compose(frame, spec) if spec.kind is Kind.RATIOS else compose(page(frame, spec))


def describe(frame: pd.DataFrame, spec: FigureSpec) -> str:
    """What a figure shows, for readers who cannot see it."""
    return ratios.in_words(frame) if spec.kind is Kind.RATIOS else in_words(page(frame, spec))


def page(frame: pd.DataFrame, spec: FigureSpec) -> Page:
    """Lay out one figure of bars or marks: its panels, points and words."""
    # Selecting rows copies every column: only those that are shown are carried along.
    quantities = [name for name, _ in QUANTITIES[spec.kind]]
    ends = [f"{name}_{end}" for name in quantities if name in WITH_INTERVAL for end in ("low", "high")]
    shown = frame[[*AXES, *_ALWAYS, *quantities, *ends]]
    # As objects, the columns lie in one block, and selecting a point's rows copies that alone.
    rows = where(shown, dict(spec.fixed)).astype(object).copy()
    if spec.kind is Kind.ENGINES:
        laid = enginefigure.layout(shown, rows, spec)
    else:
        laid = (_comparison if spec.kind in COMPARISONS else _scaling)(shown, rows, spec)
    words = extent(rows[WORD])
    if words is None:
        return laid
    return replace(laid, title=titled(laid.title, words), notes=[SENTENCES[words], *laid.notes])


def in_words(layout: Page) -> str:
    """What a figure shows, for readers who cannot see it: ranges, estimates and what is absent."""
    parts = [f"{layout.title}. {layout.subtitle}."]
    for row in layout.rows:
        for column, panel in enumerate(row):
            values = [point.value for point in panel.known if point.value is not None]
            absent = [point for group in panel.points for point in group if point and point.value is None]
            unfit = sum(point.outcome is State.DOES_NOT_FIT for point in absent)
            words = "no values"
            if values:
                words = f"values from {rounded(min(values))} to {rounded(max(values))}"
            if panel.tag:
                words += f" ({panel.tag})"
            if unfit:
                words += f"; does not fit: {unfit}"
            if len(absent) > unfit:
                words += f"; without a value: {len(absent) - unfit}"
            title = panel.title or layout.rows[0][column].title
            parts.append(f"{title}, {' '.join(panel.y_label.split())}: {words}.")
    return " ".join(parts)


def _scaling(frame: pd.DataFrame, rows: Rows, spec: FigureSpec) -> Page:
    """Shards along x, a bar for each batch size, a panel for each data set."""
    notes = Notes()
    shards = counts_in_order(rows["shards"])
    all_batches = counts_in_order(frame["batch"])
    batches = [batch for batch in all_batches if (rows["batch"] == batch).any()]
    series = [Series(str(batch), all_batches.index(batch)) for batch in batches]
    ((quantity, y_label),) = QUANTITIES[spec.kind]
    panels = []
    for dataset in in_order(rows["dataset"]):
        points = [
            [placed(rows, quantity, notes, dataset=dataset, shards=count, batch=batch) for batch in batches]
            for count in shards
        ]
        groups = [str(count) for count in shards]
        panels.append(Panel(dataset, groups, series, points, y_label, "shards (one device each)"))
    beside = max(1, int(_WIDEST_PAGE_IN / max(panel.width_in for panel in panels)))
    stacked = beside < len(panels)
    rows_of_panels = [[panel] for panel in panels] if stacked else [panels]
    words = _capital(spec.conditions)
    return Page(spec.title, words, "batch size", rows_of_panels, notes.sentences(), one_scale=stacked)


def _comparison(frame: pd.DataFrame, rows: Rows, spec: FigureSpec) -> Page:
    """Models along x, a mark for each GPU type at its fewest shards, a column for each data set."""
    notes = Notes()
    whole = where(frame, {axis: value for axis, value in spec.fixed if axis not in ("batch", "length")})
    models, gpus = in_order(rows["model"]), in_order(rows["gpu"])
    present = {
        (model, gpu): fewest_shards(rows[(rows["model"] == model) & (rows["gpu"] == gpu)])
        for model, gpu in _pairs(rows)
    }
    notes.not_in_study = [f"{model} on {gpu}" for model, gpu in _pairs(whole) if (model, gpu) not in present]
    series = [Series(gpu, in_order(frame["gpu"]).index(gpu)) for gpu in gpus]
    groups = [
        "\n".join(
            [*wrapped(model), *(times(present[model, gpu], gpu) for gpu in gpus if (model, gpu) in present)]
        )
        for model in models
    ]
    log = spec.kind is Kind.POWER
    grid: list[list[Panel]] = []
    for quantity, y_label in QUANTITIES[spec.kind]:
        last = quantity == QUANTITIES[spec.kind][-1][0]
        panels = []
        for dataset in in_order(rows["dataset"]):
            points = [
                [
                    placed(rows, quantity, notes, dataset=dataset, model=model, gpu=gpu, shards=count)
                    if (count := present.get((model, gpu)))
                    else None
                    for gpu in gpus
                ]
                for model in models
            ]
            title = dataset if not grid else ""
            labels = groups if last else [""] * len(models)
            panels.append(Panel(title, labels, series, points, y_label, "", log))
        grid.append(panels)
    subtitle = f"Each at the fewest shards that fit; {spec.conditions}"
    return Page(spec.title, subtitle, "GPU type", grid, notes.sentences())


def _pairs(rows: Rows) -> list[tuple[str, str]]:
    return list(dict.fromkeys(zip(rows["model"], rows["gpu"], strict=True)))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
