"""Figures: what is drawn where, and the words in the picture."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from shardwatt.analysis.aggregate import aggregate
from shardwatt.analysis.canvas import compose
from shardwatt.analysis.figures import describe, draw, figure_of, in_words, page
from shardwatt.analysis.panels import COLOURS, HATCHES
from shardwatt.analysis.survey import survey
from shardwatt.cell import Cell
from shardwatt.figurelist import FigureSpec, Kind, figures
from shardwatt.readings import Status
from shardwatt.units import rounded
from synthetic_cells import (
    CONSTANTS,
    STUDY,
    Numbers,
    make_cell,
    write_does_not_fit,
    write_failed,
    write_ok,
)


def _frame(base: Path, cells: list[Cell]) -> pd.DataFrame:
    return aggregate(survey(base, STUDY, cells, CONSTANTS))


def _spec(cells: list[Cell], kind: Kind) -> FigureSpec:
    return next(spec for spec in figures(cells) if spec.kind is kind)


def _figure(base: Path, cells: list[Cell], kind: Kind = Kind.ENERGY_PER_TOKEN) -> Figure:
    return compose(page(_frame(base, cells), _spec(cells, kind)))


def _texts(figure: Figure) -> str:
    """Every word of a figure, lines joined."""
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return " ".join(" ".join(found).split())


def test_bars_have_the_tables_values_by_shards_and_batch(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards, batch=batch) for shards in (1, 2) for batch in (4, 5)]
    for cell in cells:
        write_ok(tmp_path, cell)
    figure = _figure(tmp_path, cells)
    (axes,) = figure.axes
    heights = [bars[0].get_height() for bars in axes.containers if isinstance(bars, BarContainer)]
    expected = _frame(tmp_path, cells)["energy_per_token_j"].tolist()
    assert heights == pytest.approx(expected)
    assert axes.get_ylabel() == "energy per output token (J)"
    assert axes.get_xlabel() == "shards (one device each)"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2"]
    assert axes.get_title(loc="left") == "alpaca"


def test_batch_sizes_differ_in_colour_and_in_hatching(tmp_path: Path) -> None:
    cells = [make_cell(batch=batch) for batch in (2, 4, 5)]
    for cell in cells:
        write_ok(tmp_path, cell)
    bars = [c[0] for c in _figure(tmp_path, cells).axes[0].containers if isinstance(c, BarContainer)]
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars] == list(COLOURS[:3])
    assert [bar.get_hatch() or "" for bar in bars] == list(HATCHES[:3])


def test_estimated_is_written_into_every_panel_with_an_estimate(tmp_path: Path) -> None:
    cells = [make_cell(dataset=name) for name in ("alpaca", "gsm8k")]
    write_ok(tmp_path, cells[0], Numbers(status=Status.ESTIMATED))
    write_ok(tmp_path, cells[1])
    figure = _figure(tmp_path, cells)
    alpaca, gsm8k = figure.axes
    assert "estimated" in [text.get_text() for text in alpaca.texts]
    assert "estimated" not in [text.get_text() for text in gsm8k.texts]
    assert "estimated (65 W TDP" in _texts(figure), "the note says from what"


def test_measured_and_estimated_bars_in_one_panel_are_told_apart(tmp_path: Path) -> None:
    cells = [make_cell(shards=1), make_cell(shards=2)]
    write_ok(tmp_path, cells[0], Numbers(status=Status.ESTIMATED))
    write_ok(tmp_path, cells[1])
    texts = [text.get_text() for text in _figure(tmp_path, cells).axes[0].texts]
    assert "estimated where marked e" in texts
    assert sum(text.endswith(" e") and text[0].isdigit() for text in texts) == 1


def test_throughput_of_cells_with_estimated_energy_is_not_called_estimated(tmp_path: Path) -> None:
    cells = [make_cell()]
    write_ok(tmp_path, cells[0], Numbers(status=Status.ESTIMATED))
    assert "estimated" not in _texts(_figure(tmp_path, cells, Kind.THROUGHPUT))


def test_does_not_fit_is_written_at_its_place(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards) for shards in (1, 2)]
    write_does_not_fit(tmp_path, cells[0])
    write_ok(tmp_path, cells[1])
    axes = _figure(tmp_path, cells).axes[0]
    (words,) = (text for text in axes.texts if text.get_text() == "does not fit")
    assert words.get_position()[0] == 0, "over the tick of one shard"


def test_missing_and_failed_cells_leave_a_marked_gap_and_are_named(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards, batch=5) for shards in (1, 2, 4)]
    write_ok(tmp_path, cells[0])
    write_failed(tmp_path, cells[1])
    figure = _figure(tmp_path, cells)
    assert [text.get_text() for text in figure.axes[0].texts].count("○") == 2
    assert "alpaca, 2 shards, batch 5 (failed: rank_died)" in _texts(figure)
    assert "alpaca, 4 shards, batch 5 (missing: not_run)" in _texts(figure)


def test_unknown_energy_is_a_question_mark_and_no_zero_bar(tmp_path: Path) -> None:
    cells = [make_cell()]
    write_ok(tmp_path, cells[0], Numbers(power_w=None))
    figure = _figure(tmp_path, cells)
    assert not [c for c in figure.axes[0].containers if isinstance(c, BarContainer)]
    assert "Energy unknown: alpaca, 1 shard, batch 4 (unavailable)" in _texts(figure)


@pytest.mark.parametrize(
    ("repeats", "words"), [(1, "within run"), (3, "over repeats"), (2, None)], ids=["one", "three", "two"]
)
def test_whiskers_say_what_they_are(tmp_path: Path, repeats: int, words: str | None) -> None:
    cells = [make_cell(repeat=1 + index) for index in range(repeats)]
    for index, cell in enumerate(cells):
        write_ok(tmp_path, cell, Numbers(power_w=100.0 + index))
    figure = _figure(tmp_path, cells)
    if words is None:
        assert "Whiskers" not in _texts(figure)
    else:
        assert f"Whiskers: 95 % interval {words}" in _texts(figure)


def test_comparison_steps_over_shards_that_do_not_fit_to_the_fewest_that_do(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards) for shards in (1, 2, 4)]
    write_does_not_fit(tmp_path, cells[0])
    write_ok(tmp_path, cells[1])
    write_ok(tmp_path, cells[2])
    figure = _figure(tmp_path, cells, Kind.THROUGHPUT)
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["llama-7b\n2 × v100"]  # noqa: RUF001
    assert "does not fit" not in _texts(figure)


def test_comparison_does_not_step_over_a_cell_that_is_merely_missing(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards) for shards in (1, 2)]
    write_ok(tmp_path, cells[1])
    assert "1 × v100" in _texts(_figure(tmp_path, cells, Kind.POWER))  # noqa: RUF001


def test_power_is_on_a_logarithmic_axis_in_watts(tmp_path: Path) -> None:
    cells = [make_cell(), make_cell(gpu="a100")]
    for cell in cells:
        write_ok(tmp_path, cell)
    axes = _figure(tmp_path, cells, Kind.POWER).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "mean power of all devices (W)"


def test_pairs_without_the_compared_point_are_named(tmp_path: Path) -> None:
    cells = [make_cell(), make_cell(gpu="a100"), make_cell(model="other", length=64)]
    assert "Not in the study at this batch and length: other on v100" in _texts(
        _figure(tmp_path, cells, Kind.THROUGHPUT)
    )


def test_a_study_without_any_result_is_drawn_without_a_warning(tmp_path: Path) -> None:
    cells = [make_cell(gpu=gpu, shards=shards) for gpu in ("v100", "a100") for shards in (1, 2)]
    frame = _frame(tmp_path, cells)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spec in figures(cells):
            figure_of(frame, spec).draw_without_rendering()


def test_three_formats_are_written_and_are_the_same_again(tmp_path: Path) -> None:
    cells = [make_cell(batch=batch) for batch in (4, 5)]
    write_ok(tmp_path, cells[0], Numbers(status=Status.ESTIMATED))
    write_does_not_fit(tmp_path, cells[1])
    frame, spec = _frame(tmp_path, cells), _spec(cells, Kind.ENERGY_PER_RESPONSE)
    first = draw(frame, spec, tmp_path / "a")
    assert [path.name for path in first] == [f"{spec.name}.{ending}" for ending in ("svg", "pdf", "png")]
    second = draw(frame, spec, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    svg = first[0].read_text()
    assert "<!-- estimated -->" in svg
    assert "<!-- does not fit -->" in svg
    assert "<text" not in svg, "letters are shapes: no viewer needs the font"


def test_words_for_readers_who_cannot_see(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards) for shards in (1, 2, 4)]
    write_does_not_fit(tmp_path, cells[0])
    write_ok(tmp_path, cells[1], Numbers(status=Status.ESTIMATED))
    words = in_words(page(_frame(tmp_path, cells), _spec(cells, Kind.POWER_BY_SHARDS)))
    assert "values from 200 to 200 (estimated); does not fit: 1; without a value: 1." in words


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.012345, "0.0123"), (0.4, "0.400"), (9.999, "10.00"), (12.345, "12.3"), (1234.0, "1,230")],
)
def test_values_are_rounded_to_three_digits(value: float, text: str) -> None:
    assert rounded(value) == text


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.ENGINES])
def test_a_figure_of_simulated_cells_has_the_word_in_title_panels_and_notes(
    tmp_path: Path, kind: Kind
) -> None:
    cells = [make_cell(engine="simulated", shards=shards) for shards in (2, 4)]
    for cell in cells:
        write_ok(tmp_path, cell)
    frame, spec = _frame(tmp_path, cells), _spec(cells, kind)
    figure = figure_of(frame, spec)
    texts = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert any(text.endswith("(simulated)") for text in texts), "the title"
    assert any("Simulated: no model ran" in " ".join(text.split()) for text in texts), "the notes"
    assert "imulated" in describe(frame, spec)
    if kind is not Kind.RATIOS:
        assert all("simulated" in [text.get_text() for text in axes.texts] for axes in figure.axes)


def test_joules_of_simulated_devices_are_not_called_measured_alone(tmp_path: Path) -> None:
    cells = [make_cell(engine="simulated")]
    write_ok(tmp_path, cells[0])
    texts = _texts(figure_of(_frame(tmp_path, cells), _spec(cells, Kind.POWER)))
    assert "measured, nvml_counter of simulated devices" in texts


def test_simulated_estimates_are_both(tmp_path: Path) -> None:
    cells = [make_cell(engine="simulated")]
    write_ok(tmp_path, cells[0], Numbers(status=Status.ESTIMATED))
    (axes,) = _figure(tmp_path, cells).axes
    assert "simulated, estimated" in [text.get_text() for text in axes.texts]


def test_engines_of_both_kinds_beside_each_other_are_partly_simulated(tmp_path: Path) -> None:
    cells = [make_cell(engine=engine) for engine in ("reference", "simulated")]
    for cell in cells:
        write_ok(tmp_path, cell)
    figure = _figure(tmp_path, cells, Kind.ENGINES)
    assert "Engines side by side: llama-7b on v100 (partly simulated)" in _texts(figure)
    assert all("partly simulated" in [text.get_text() for text in axes.texts] for axes in figure.axes)


def test_figures_of_cells_that_ran_do_not_speak_of_simulation(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards) for shards in (2, 4)]
    for cell in cells:
        write_ok(tmp_path, cell)
    frame = _frame(tmp_path, cells)
    assert not [spec for spec in figures(cells) if "imulated" in _texts(figure_of(frame, spec))]
