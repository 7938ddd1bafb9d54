"""Guards speed and utilisation in table and figure: engines side by side, values worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from shardwatt.analysis import efficiencytable
from shardwatt.analysis.aggregate import aggregate
from shardwatt.analysis.columns import COLUMNS
from shardwatt.analysis.enginefigure import QUANTITIES
from shardwatt.analysis.figures import describe, figure_of
from shardwatt.analysis.survey import survey
from shardwatt.analysis.tableformats import as_markdown
from shardwatt.analysis.tablemodel import Table
from shardwatt.analysis.tables import tables
from shardwatt.cell import Cell
from shardwatt.figurelist import Kind, figures
from shardwatt.readings import Status
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


def _table(base: Path, cells: list[Cell]) -> Table:
    (table,) = (one for one in tables(_frame(base, cells)) if one.name == "efficiency")
    return table


def _figure(base: Path, cells: list[Cell]) -> Figure:
    (spec,) = (spec for spec in figures(cells) if spec.kind is Kind.ENGINES)
    return figure_of(_frame(base, cells), spec)


def _words(figure: Figure) -> str:
    found = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return " ".join(" ".join(found).split())


def _engines(*names: str, **axes: object) -> list[Cell]:
    return [make_cell(engine=name, **axes) for name in names]


def test_columns_by_hand(tmp_path: Path) -> None:
    # 20 prompts in 5 batches of 10 s: 5 s of prefill, 10 s of walk, 35 s of decode, in a window of 51 s.
    cell = make_cell(shards=2)
    write_ok(tmp_path, cell, Numbers(decode_share=0.6, engine_notes={"graphs": "none", "attention": "sdpa"}))
    row = _frame(tmp_path, [cell]).iloc[0]
    assert (row["prefill_steps"], row["walk_steps"], row["decode_steps"]) == (5, 50, 5 * 256)
    assert (row["prefill_tokens"], row["walk_tokens"], row["decode_tokens"]) == (800, 200, 5120)
    assert row["decode_tokens_useful"] == 2560
    assert row["prefill_tokens_per_s"] == pytest.approx(800 / 5)
    assert row["walk_tokens_per_s"] == pytest.approx(200 / 10)
    assert row["decode_tokens_per_s"] == pytest.approx(5120 / 35)
    useful = [row[f"{phase}_tokens_useful_per_s"] for phase in ("prefill", "walk", "decode")]
    assert useful == pytest.approx([800 / 5, 200 / 10, 2560 / 35])
    assert row["decode_moved_bytes"] == pytest.approx(0.6 * 2 * 900e9 * 35)
    assert (row["walk_bandwidth_utilisation"], row["decode_bandwidth_utilisation"]) == (0.3, 0.6)
    assert (row["flop_executed"], row["flop_useful"]) == (2e9 * 6120, 2e9 * 3560)
    assert row["decode_flop_utilisation_useful"] == pytest.approx(2e9 * 2560 / (2 * 112e12 * 35))
    assert row["flop_utilisation_executed"] == pytest.approx(2e9 * 6120 / (2 * 112e12 * 51))
    assert (row["data_sheet"], row["data_sheet_source"]) == ("v100-pcie-32gb", "a made-up data sheet")
    assert (row["peak_devices"], row["peak_bandwidth_b_s"], row["peak_flop_per_s"]) == (2, 900e9, 112e12)
    # Both without the 0.75 GiB of the CUDA context, which are in the plan alone.
    assert (row["planned_memory_gib"], row["planned_allocated_gib"]) == (14.75, 14)
    assert row["peak_over_planned"] == pytest.approx(13.5 / 14)
    assert (row["prompt_order"], row["engine_notes"]) == ("sample", "attention: sdpa; graphs: none")


def test_a_site_without_a_data_sheet_leaves_shares_empty_and_rates_known(tmp_path: Path) -> None:
    cell = make_cell(engine="fast")
    write_ok(tmp_path, cell, Numbers(decode_share=None))
    row = _frame(tmp_path, [cell]).iloc[0]
    shares = [
        name for name in row.index if "_utilisation" in name and name.split("_")[0] not in ("sm", "cpu")
    ]
    assert len(shares) == 10
    assert row[[*shares, "data_sheet", "peak_devices", "peak_flop_per_s"]].isna().all()
    assert row["decode_tokens_per_s"] == pytest.approx(5120 / 35)
    assert (row["prompt_order"], row["flop_executed"]) == ("length", 2e9 * 6120)
    assert "Peaks: the site gives no data sheet." in _table(tmp_path, [cell]).note


def test_all_prompts_in_one_batch_have_no_interval_within_the_run(tmp_path: Path) -> None:
    cells = _engines("fast", "fast-refill")
    for cell in cells:
        write_ok(tmp_path, cell)
    frame = _frame(tmp_path, cells)
    assert frame["batches"].tolist() == [5, 1]
    assert frame["interval_kind"].notna().tolist() == [True, False]
    assert frame["tokens_per_s_low"].notna().tolist() == [True, False]
    assert frame["tokens_per_s"].notna().all()


def test_the_table_puts_engines_of_one_cell_next_to_each_other(tmp_path: Path) -> None:
    cells = [
        make_cell(engine=engine, batch=batch) for engine in ("reference", "fast", "hf") for batch in (4, 5)
    ]
    for cell in cells:
        slow = 2 if cell.engine == "reference" else 1
        if (cell.engine, cell.batch) == ("hf", 5):
            write_failed(tmp_path, cell)
        else:
            write_ok(tmp_path, cell, Numbers(batch_s=10 * slow))
    table = _table(tmp_path, cells)
    found = [(row["batch"], row["engine"]) for row in table.rows]
    assert found == [(4, "reference"), (4, "fast"), (4, "hf"), (5, "reference"), (5, "fast")]
    reference, fast = table.rows[:2]
    assert fast["decode_tokens_per_s"] == pytest.approx(2 * reference["decode_tokens_per_s"])
    assert fast["decode_tokens_useful_per_s"] == pytest.approx(fast["decode_tokens_per_s"] / 2)
    assert fast["decode_bandwidth_utilisation_pct"] == pytest.approx(60)
    assert fast["flop_utilisation_useful_pct"] == pytest.approx(100 * 2e9 * 3560 / (112e12 * 51))
    assert fast["energy_per_token_j"] == pytest.approx(5100 / 2560)
    assert fast["energy_per_generated_token_j"] == pytest.approx(5100 / 5120)
    assert fast["peak_over_planned"] == pytest.approx(13.5 / 14)
    assert "Peaks: a made-up data sheet. Throughout: model llama-7b, precision fp16" in as_markdown(table)


def test_the_table_has_means_of_repeats_and_says_what_is_estimated(tmp_path: Path) -> None:
    cells = [make_cell(repeat=repeat) for repeat in (1, 2, 3)]
    for cell, share in zip(cells[:2], (0.4, 0.6), strict=True):
        write_ok(tmp_path, cell, Numbers(decode_share=share, status=Status.ESTIMATED))
    (row,) = _table(tmp_path, cells).rows
    assert row["decode_bandwidth_utilisation_pct"] == pytest.approx(50)
    assert (row["repeats"], row["energy_status"]) == (2, "estimated")


def test_a_study_without_results_has_an_empty_table_that_says_so(tmp_path: Path) -> None:
    table = _table(tmp_path, _engines("reference", "fast"))
    assert (table.rows, table.note) == ([], "No cell has run through yet.")


def test_memory_stands_beside_its_plan_in_the_table_of_the_least_hardware(tmp_path: Path) -> None:
    cells = [make_cell(batch=4), make_cell(batch=5)]
    write_ok(tmp_path, cells[0])
    write_does_not_fit(tmp_path, cells[1])
    (table,) = (one for one in tables(_frame(tmp_path, cells)) if one.name == "table-2")
    assert table.rows[0]["peak_over_planned"] == pytest.approx(13.5 / 14)
    assert "0.96" in as_markdown(table)


def test_engines_stand_side_by_side_with_the_tables_values(tmp_path: Path) -> None:
    cells = [make_cell(engine=engine, batch=batch) for engine in ("reference", "fast") for batch in (4, 5)]
    for cell in cells:
        write_ok(tmp_path, cell, Numbers(batch_s=20.0 if cell.engine == "reference" else 10.0))
    figure = _figure(tmp_path, cells)
    frame = _frame(tmp_path, cells)
    expected = (
        "prefill_tokens_useful_per_s", "decode_tokens_useful_per_s", "tokens_per_s",
        "decode_bandwidth_utilisation", "energy_per_token_j", "energy_per_generated_token_j",
    )  # fmt: skip
    assert len(figure.axes) == len(expected)
    for axes, quantity in zip(figure.axes, expected, strict=True):
        heights = [bars[0].get_height() for bars in axes.containers if isinstance(bars, BarContainer)]
        assert heights == pytest.approx(frame[quantity].tolist()), quantity
    assert figure.axes[1].get_ylabel() == "decode tokens/s,\nuseful"
    assert "those that responses need" in _words(figure)
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert labels == ["reference\n1 × v100", "fast\n1 × v100"]  # noqa: RUF001


def test_rates_of_all_that_is_computed_are_in_the_table_and_not_in_the_figure() -> None:
    """They reward waste: padding and rows that have ended raise them."""
    used = {column.name: column.used_by for column in COLUMNS}
    for phase in ("prefill", "decode"):
        assert used[f"{phase}_tokens_useful_per_s"] == ("engines", "efficiency")
        assert used[f"{phase}_tokens_per_s"] == ("efficiency",)
    assert {name for name, _ in QUANTITIES} <= {name for name in used if "engines" in used[name]}
    assert set(efficiencytable.SHOWN) <= {name for name in used if "efficiency" in used[name]}


def test_estimated_joules_are_labelled_and_rates_are_not(tmp_path: Path) -> None:
    cells = _engines("reference", "fast")
    for cell in cells:
        write_ok(tmp_path, cell, Numbers(status=Status.ESTIMATED))
    tags = [[text.get_text() for text in axes.texts] for axes in _figure(tmp_path, cells).axes]
    assert ["estimated" in words for words in tags] == [False] * 4 + [True] * 2


def test_without_a_data_sheet_the_row_of_bandwidth_is_left_out_and_the_figure_says_why(
    tmp_path: Path,
) -> None:
    cells = _engines("reference", "fast")
    for cell in cells:
        write_ok(tmp_path, cell, Numbers(decode_share=None))
    figure = _figure(tmp_path, cells)
    assert len(figure.axes) == 5
    assert "The site gives no data sheet of v100" in _words(figure)
    write_ok(tmp_path, cells[1])
    figure = _figure(tmp_path, cells)
    assert len(figure.axes) == 6
    assert "? No such phase, or no data sheet: alpaca, reference, 1 shard, batch 4." in _words(figure)


def test_engines_that_need_more_devices_are_shown_at_their_own_count(tmp_path: Path) -> None:
    cells = [make_cell(engine=engine, shards=shards) for engine in ("reference", "fast") for shards in (1, 2)]
    for cell in cells:
        unfit = (cell.engine, cell.shards) == ("reference", 1)
        (write_does_not_fit if unfit else write_ok)(tmp_path, cell)
    labels = [label.get_text() for label in _figure(tmp_path, cells).axes[-1].get_xticklabels()]
    assert labels == ["reference\n2 × v100", "fast\n1 × v100"]  # noqa: RUF001


def test_cells_without_a_result_leave_a_marked_gap(tmp_path: Path) -> None:
    cells = _engines("reference", "fast", "hf")
    write_ok(tmp_path, cells[0])
    write_failed(tmp_path, cells[1])
    figure = _figure(tmp_path, cells)
    assert [text.get_text() for text in figure.axes[0].texts].count("○") == 2
    words = _words(figure)
    assert words.count("alpaca, fast, 1 shard, batch 4 (failed: rank_died)") == 1, "once, not for each row"
    assert "alpaca, hf, 1 shard, batch 4 (missing: not_run)" in words


def test_values_are_written_over_bars_in_every_row_alike(tmp_path: Path) -> None:
    cells = _engines("reference", "fast", "fast-drop", "hf")
    for cell in cells:
        write_ok(tmp_path, cell)
    for axes in _figure(tmp_path, cells).axes:
        assert sum(text.get_text()[:1].isdigit() for text in axes.texts) == 4


def test_words_for_readers_who_cannot_see_name_data_set_and_quantity_of_every_panel(tmp_path: Path) -> None:
    cells = _engines("reference", "fast")
    for cell in cells:
        write_ok(tmp_path, cell)
    (spec,) = (spec for spec in figures(cells) if spec.kind is Kind.ENGINES)
    words = describe(_frame(tmp_path, cells), spec)
    assert "alpaca, decode bandwidth utilisation: values from 0.600 to 0.600." in words
    assert "alpaca, J per token computed: values from" in words
