"""Tables II to V, and the list of cells without a measurement."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd
import pytest

from shardwatt.analysis.aggregate import aggregate
from shardwatt.analysis.survey import survey
from shardwatt.analysis.tableformats import as_csv, as_latex, as_markdown, latex, write_table
from shardwatt.analysis.tablemodel import Table
from shardwatt.analysis.tables import TABLES, tables
from shardwatt.cell import Cell
from shardwatt.readings import Mean
from synthetic_cells import (
    CONSTANTS,
    STUDY,
    Numbers,
    make_cell,
    write_does_not_fit,
    write_failed,
    write_ok,
)


def _tables(base: Path, cells: list[Cell]) -> dict[str, Table]:
    frame: pd.DataFrame = aggregate(survey(base, STUDY, cells, CONSTANTS))
    return {table.name: table for table in tables(frame)}


def _use(sm: float | None, top: float | None = 0.5) -> Numbers:
    one = Mean(mean=0.2, max=top)
    return Numbers(
        utilisation=Numbers().utilisation.model_copy(
            update={
                "sm_utilisation": Mean(mean=sm, max=sm),
                "memory_activity": one,
                "memory_filled": Mean(mean=0.6, max=0.7),
            }
        )
    )


def test_bare_minimum_is_the_fewest_shards_and_the_largest_batch_that_ran(tmp_path: Path) -> None:
    cells = [make_cell(shards=s, batch=b, length=n) for s in (1, 2) for b in (4, 5, 10) for n in (256, 512)]
    for cell in cells:
        if cell.length == 256:
            unfit = cell.shards == 1 or cell.batch == 10
            (write_does_not_fit if unfit else write_ok)(tmp_path, cell)
    (row,) = _tables(tmp_path, cells)["table-2"].rows
    assert (row["length"], row["shards"], row["batch"], row["nodes"]) == (256, 2, 5, 1)
    assert row["above"] == "10: does not fit"


def test_a_model_that_never_ran_stays_in_the_table_with_what_is_known(tmp_path: Path) -> None:
    cells = [make_cell(batch=4), make_cell(batch=5)]
    write_does_not_fit(tmp_path, cells[0])
    (row,) = _tables(tmp_path, cells)["table-2"].rows
    assert row["shards"] is None
    assert row["above"] == "1 does not fit, 1 missing"


def test_power_caps_are_compared_with_the_highest_by_hand(tmp_path: Path) -> None:
    # 5 batches and 1 s: 51 s at 100 W against 61 s at 60 W.
    cells = [make_cell(cap=cap) for cap in ("150", "250")]
    write_ok(tmp_path, cells[0], Numbers(batch_s=12, power_w=60))
    write_ok(tmp_path, cells[1])
    (row,) = _tables(tmp_path, cells)["table-3"].rows
    assert (row["cap_w"], row["against"]) == ("150", "250")
    assert row["duration_change_pct"] == pytest.approx(100 * (61 / 51 - 1))
    assert row["energy_change_pct"] == pytest.approx(100 * (3660 / 5100 - 1))
    assert row["tokens_per_s_change_pct"] == pytest.approx(100 * (51 / 61 - 1))


def test_no_cap_counts_as_the_highest_and_an_unknown_change_is_null(tmp_path: Path) -> None:
    cells = [make_cell(cap=cap) for cap in ("150", "250", "none")]
    write_ok(tmp_path, cells[0])
    write_ok(tmp_path, cells[2], Numbers(power_w=None))
    rows = _tables(tmp_path, cells)["table-3"].rows
    assert [(row["cap_w"], row["against"]) for row in rows] == [("250", "none"), ("150", "none")]
    assert rows[0]["duration_change_pct"] is None, "its cell is missing"
    assert rows[1]["energy_change_pct"] is None, "the reference has no known energy"
    assert rows[1]["duration_change_pct"] == pytest.approx(0)


def test_use_by_length_averages_data_sets_and_keeps_both_memory_names_apart(tmp_path: Path) -> None:
    cells = [make_cell(length=n, dataset=d) for n in (256, 512) for d in ("alpaca", "gsm8k")]
    for cell, (sm, top) in zip(cells, [(0.9, 0.3), (0.8, 0.4), (0.7, 0.2), (0.7, 0.1)], strict=True):
        write_ok(tmp_path, cell, _use(sm, top))
    made = _tables(tmp_path, cells)
    first, second = made["table-4"].rows
    assert (first["length"], second["length"]) == (256, 512)
    assert first["sm_utilisation_mean_pct"] == pytest.approx(85)
    assert (first["memory_activity_max_pct"], second["memory_activity_max_pct"]) == pytest.approx((40, 20))
    assert first["memory_filled_mean_pct"] == pytest.approx(60)
    assert first["cpu_utilisation_mean_pct"] is None
    assert not made["table-5"].rows
    assert "every cell has shards 1" in made["table-5"].note


def test_use_by_shards_has_a_row_for_each_shard_count_that_ran(tmp_path: Path) -> None:
    cells = [make_cell(shards=shards) for shards in (1, 2, 4)]
    write_does_not_fit(tmp_path, cells[0])
    write_ok(tmp_path, cells[1], _use(0.9))
    write_ok(tmp_path, cells[2], _use(0.8))
    assert [row["shards"] for row in _tables(tmp_path, cells)["table-5"].rows] == [2, 4]


def test_outcomes_name_every_cell_that_is_not_ok_with_its_target(tmp_path: Path) -> None:
    cells = [make_cell(batch=batch) for batch in (4, 5, 10)]
    write_ok(tmp_path, cells[0])
    write_failed(tmp_path, cells[1])
    rows = _tables(tmp_path, cells)["outcomes"].rows
    assert [(row["batch"], row["outcome"], row["reason"]) for row in rows] == [
        (5, "failed", "rank_died"),
        (10, "missing", "not_run"),
    ]
    assert rows[0]["target"] == f"results/{STUDY}/cells/{cells[1].path}/result.json"


def test_all_tables_are_written_in_all_formats_even_for_a_study_without_results(tmp_path: Path) -> None:
    made = _tables(tmp_path, [make_cell()])
    assert tuple(made) == TABLES
    for table in made.values():
        write_table(table, tmp_path / "tables")
    names = {path.name for path in (tmp_path / "tables").iterdir()}
    assert names == {f"{name}.{ending}" for name in TABLES for ending in ("csv", "md", "tex")}


def test_an_empty_table_says_why_in_every_format(tmp_path: Path) -> None:
    table = _tables(tmp_path, [make_cell()])["table-3"]
    words = "does not vary the power cap"
    assert as_csv(table).splitlines()[0] == "note"
    assert all(words in text for text in (as_csv(table), as_markdown(table), as_latex(table)))


def test_csv_is_exact_where_markdown_and_latex_round(tmp_path: Path) -> None:
    cells = [make_cell(cap=cap) for cap in ("150", "250")]
    write_ok(tmp_path, cells[0], Numbers(batch_s=12))
    write_ok(tmp_path, cells[1])
    table = _tables(tmp_path, cells)["table-3"]
    (row,) = csv.DictReader(io.StringIO(as_csv(table)))
    assert float(row["duration_change_pct"]) == table.rows[0]["duration_change_pct"]
    assert "19.61" in as_markdown(table)
    assert "19.61" in as_latex(table)
    assert "engine" in row, "the CSV keeps what the others say once, in the note"
    assert "Throughout: engine reference, precision fp16, repeats 1" in as_markdown(table)


def test_latex_and_markdown_escape_what_would_be_read_as_markup(tmp_path: Path) -> None:
    assert latex(r"50 % of a_b & {c}\d $x^2$ #1 ~<>") == (
        r"50 \% of a\_b \& \{c\}\textbackslash{}d \$x\textasciicircum{}2\$ \#1 "
        r"\textasciitilde{}\textless{}\textgreater{}"
    )
    cell = make_cell()
    write_failed(tmp_path, cell, message="a | b_c\nnext 100% {")
    table = _tables(tmp_path, [cell])["outcomes"]
    assert r"a \| b_c next 100% {" in as_markdown(table)
    assert r"a | b\_c next 100\% \{" in as_latex(table)


def test_tables_of_simulated_cells_carry_the_word_in_title_note_and_column_in_every_format(
    tmp_path: Path,
) -> None:
    cells = [make_cell(engine="simulated", cap=cap, length=n) for cap in ("150", "250") for n in (256, 512)]
    for cell in cells:
        write_ok(tmp_path, cell)
    write_failed(tmp_path, failed := make_cell(engine="simulated", batch=5, cap="250"))
    made = _tables(tmp_path, [*cells, failed])
    with_rows = [table for table in made.values() if table.rows]
    assert {table.name for table in with_rows} >= {"table-2", "table-3", "table-4", "efficiency", "outcomes"}
    for table in with_rows:
        assert table.title.endswith(" (simulated)")
        assert table.note.startswith("Simulated: no model ran")
        rows = list(csv.DictReader(io.StringIO(as_csv(table))))
        assert {row["simulated"] for row in rows} == {"yes"}
        assert {row.get("energy_status", "") for row in rows} <= {"simulated", ""}
        assert all("simulated" in text for text in (as_markdown(table), as_latex(table)))


def test_a_table_of_both_kinds_says_of_each_row_whether_it_is_simulated(tmp_path: Path) -> None:
    cells = [make_cell(engine=engine) for engine in ("reference", "simulated")]
    for cell in cells:
        write_ok(tmp_path, cell)
    made = _tables(tmp_path, cells)
    for name in ("table-2", "efficiency"):
        table = made[name]
        assert table.title.endswith(" (partly simulated)")
        rows = list(csv.DictReader(io.StringIO(as_csv(table))))
        assert [(row["engine"], row["simulated"]) for row in rows] == [
            ("reference", "no"),
            ("simulated", "yes"),
        ]
        assert any(field.name == "simulated" for field in table.shown_fields)


def test_tables_of_cells_that_ran_do_not_speak_of_simulation(tmp_path: Path) -> None:
    cells = [make_cell(cap=cap) for cap in ("150", "250")]
    for cell in cells:
        write_ok(tmp_path, cell)
    assert not [table for table in _tables(tmp_path, cells).values() if "simulated" in as_csv(table)]
