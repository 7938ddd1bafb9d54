"""The table of cells: values by hand, nulls, intervals, and what is refused."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from shardwatt.analysis.aggregate import aggregate, aggregate_devices, read_cells, write_cells
from shardwatt.analysis.columns import COLUMNS, DEVICE_COLUMNS, WITH_INTERVAL, markdown, with_columns
from shardwatt.analysis.figures import QUANTITIES
from shardwatt.analysis.survey import survey
from shardwatt.analysis.tables import bare_minimum, tables
from shardwatt.cell import AXES, Cell
from shardwatt.cellfiles import write_table
from shardwatt.errors import RecordError
from shardwatt.layout import CellPaths
from shardwatt.plan.columns import PLAN_COLUMNS
from shardwatt.plan.leftout import LeftOut
from shardwatt.plan.memory import MemoryNeed
from shardwatt.readings import Status
from synthetic_cells import (
    CONSTANTS,
    STUDY,
    Numbers,
    make_cell,
    write_does_not_fit,
    write_failed,
    write_ok,
    write_outdated,
    write_torn,
)

DOCS = Path(__file__).parents[2] / "docs" / "results.md"


def _frame(base: Path, cells: list[Cell]) -> pd.DataFrame:
    return aggregate(survey(base, STUDY, cells, CONSTANTS))


def test_values_by_hand(tmp_path: Path) -> None:
    # 20 prompts in 5 batches of 4, 10 s each and 1 s beside: 51 s at 2 x 100 W; 128 tokens an answer.
    cell = make_cell(shards=2, cap="250")
    write_ok(tmp_path, cell)
    row = _frame(tmp_path, [cell]).iloc[0]
    assert (row["outcome"], row["cap"], row["cap_w"], row["nodes"]) == ("ok", "250", 250, 1)
    assert (row["duration_s"], row["energy_j"], row["power_w"]) == (51, 10200, 200)
    assert (row["output_tokens"], row["words"], row["responses"]) == (2560, 60, 20)
    assert row["tokens_per_s"] == pytest.approx(2560 / 51)
    assert row["words_per_s"] == pytest.approx(60 / 51)
    assert row["responses_per_s"] == pytest.approx(20 / 51)
    assert row["energy_per_token_j"] == pytest.approx(10200 / 2560)
    assert row["energy_per_generated_token_j"] == pytest.approx(10200 / 5120)
    assert row["energy_per_response_j"] == pytest.approx(510)
    # The job: 1.5 x 51 s x 200 W of energy in 102 s; the paper's tokens are one more an answer.
    assert (row["job_energy_j"], row["job_duration_s"], row["power_paper_w"]) == (15300, 102, 150)
    assert row["energy_per_token_paper_j"] == pytest.approx(15300 / 2580)
    assert row["energy_per_response_paper_j"] == pytest.approx(765)
    assert (row["prefill_j"], row["walk_j"], row["decode_j"]) == pytest.approx((1000, 2000, 7000))
    assert (row["energy_method"], row["energy_status"]) == ("nvml_counter", "measured")
    assert (row["sm_utilisation"], row["sm_utilisation_max"]) == (0.95, 1.0)
    assert (row["memory_activity"], row["memory_filled"]) == (0.24, 0.41)
    assert row["device_names"] == "Tesla V100"


def test_interval_within_a_run_by_hand(tmp_path: Path) -> None:
    cell = make_cell()
    write_ok(tmp_path, cell, Numbers(drift=0.1))
    row = _frame(tmp_path, [cell]).iloc[0]
    lasted = [10.2, 11.2, 12.2, 13.2, 14.2]  # the second beside the batches is shared among the five
    left_out = [math.log(4 * 4 * 128 / (sum(lasted) - one)) for one in lasted]
    centre = sum(left_out) / 5
    factor = math.exp(2.776 * math.sqrt(4 / 5 * sum((rate - centre) ** 2 for rate in left_out)))
    assert row["tokens_per_s_low"] == pytest.approx(2560 / 61 / factor)
    assert row["tokens_per_s_high"] == pytest.approx(2560 / 61 * factor)
    assert (row["interval_kind"], row["interval_n"]) == ("within run", 5)
    assert row["power_w_low"] == pytest.approx(100), "power does not vary: the interval is a point"


def test_interval_over_three_repeats_replaces_the_one_within_runs(tmp_path: Path) -> None:
    cells = [make_cell(repeat=repeat) for repeat in (1, 2, 3)]
    for cell, power_w in zip(cells, (90.0, 100.0, 110.0), strict=True):
        write_ok(tmp_path, cell, Numbers(power_w=power_w))
    frame = _frame(tmp_path, cells)
    assert set(frame["interval_kind"]) == {"repeats"}
    half = 4.303 * 10 / math.sqrt(3)
    assert frame["power_w_low"].tolist() == pytest.approx([100 - half] * 3)
    assert frame["power_w_high"].tolist() == pytest.approx([100 + half] * 3)


def test_two_repeats_or_two_batches_make_no_interval(tmp_path: Path) -> None:
    cells = [make_cell(batch=10, repeat=repeat) for repeat in (1, 2)]
    for cell in cells:
        write_ok(tmp_path, cell)
    frame = _frame(tmp_path, cells)
    assert frame["interval_kind"].isna().all()
    assert frame["tokens_per_s_low"].isna().all()


def test_unknown_energy_is_null_everywhere_and_an_empty_field_in_the_csv(tmp_path: Path) -> None:
    cell = make_cell()
    write_ok(tmp_path, cell, Numbers(power_w=None, cpu_w=None, dram_w=None))
    frame = _frame(tmp_path, [cell])
    names = [c.name for c in COLUMNS if c.unit in ("J", "W", "J/token", "J/response")]
    unknown = [name for name in names if name != "cap_w"]
    assert len(unknown) > 30
    assert frame[unknown].isna().all(axis=None)
    _, path = write_cells(frame, tmp_path / "out")
    with path.open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert {row[name] for name in unknown} == {""}
    assert row["energy_status"] == "unavailable"
    assert row["tokens_per_s_low"] != "", "throughput has its interval without energy"


def test_one_bad_cell_hides_no_other(tmp_path: Path) -> None:
    cells = [make_cell(batch=batch) for batch in (1, 2, 4, 5, 10, 20)]
    write_ok(tmp_path, cells[0])
    write_does_not_fit(tmp_path, cells[1])
    write_failed(tmp_path, cells[2])
    write_torn(tmp_path, cells[3])
    write_outdated(tmp_path, cells[4])
    frame = _frame(tmp_path, cells)
    assert frame["outcome"].tolist() == ["ok", "does_not_fit", "failed", "invalid", "outdated", "missing"]
    assert frame["energy_j"].notna().tolist() == [True] + [False] * 5
    assert frame["batch"].tolist() == [1, 2, 4, 5, 10, 20]
    assert frame["peak_memory_gib"].tolist()[:2] == [13.5, 31.0]
    assert frame["target"].str.endswith("/result.json").all()


@pytest.mark.parametrize("damage", ["torn", "rows"])
def test_batches_that_are_torn_or_contradict_the_record_make_the_cell_invalid(
    tmp_path: Path, damage: str
) -> None:
    good, bad = make_cell(batch=5), make_cell(batch=10)
    for cell in (good, bad):
        write_ok(tmp_path, cell)
    path = CellPaths(tmp_path, STUDY, bad).results / "batches.parquet"
    if damage == "torn":
        path.write_bytes(b"PAR1" + bytes(64) + b"PAR1")
    else:
        write_table(path, [])
    frame = _frame(tmp_path, [good, bad])
    assert frame["outcome"].tolist() == ["ok", "invalid"]
    assert frame["tokens_per_s"].isna().tolist() == [False, True]
    assert "batches.parquet" in frame["detail"].iloc[1]


def test_parquet_and_csv_give_back_what_was_written(tmp_path: Path) -> None:
    cells = [make_cell(cap="none"), make_cell(cap="250"), make_cell(cap="150")]
    for cell in cells[:2]:
        write_ok(tmp_path, cell)
    frame = _frame(tmp_path, cells)
    parquet, path = write_cells(frame, tmp_path / "out")
    pd.testing.assert_frame_equal(read_cells(parquet), frame)
    again = pd.read_csv(path)
    assert list(again.columns) == [column.name for column in COLUMNS]
    assert again["energy_j"].tolist()[:2] == frame["energy_j"].tolist()[:2]
    assert again["started_at"].iloc[0] == "2026-01-02T03:04:05Z"
    assert pq.read_schema(parquet).field("energy_j").metadata[b"unit"] == b"J"
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == ["cells.csv", "cells.parquet"]


def test_a_study_without_any_record_still_has_its_rows(tmp_path: Path) -> None:
    frame = _frame(tmp_path, [make_cell(), make_cell(batch=8)])
    parquet, _ = write_cells(frame, tmp_path / "out")
    assert read_cells(parquet)["outcome"].tolist() == ["missing", "missing"]


def test_a_cell_that_is_left_out_has_its_planned_memory_and_is_named_so(tmp_path: Path) -> None:
    cells = [make_cell(batch=batch, dataset=name) for batch in (64, 512) for name in ("alpaca", "gsm8k")]
    for cell in cells[:2]:
        write_ok(tmp_path, cell)
    need = MemoryNeed(weights_gib=15.5, kv_cache_gib=28.0, activations_gib=1.0, workspace_gib=0.75)

    def left_out(cell: Cell) -> LeftOut:
        return LeftOut(cell, need, 32.0)

    frame = aggregate(survey(tmp_path, STUDY, cells, CONSTANTS, left_out=left_out))
    assert frame["outcome"].tolist() == ["ok", "ok", "does_not_fit", "does_not_fit"]
    assert frame["reason"].tolist()[2:] == ["predicted", "predicted"]
    assert frame["planned_memory_gib"].tolist() == [14.75, 14.75, 45.25, 45.25]
    assert frame["planned_allocated_gib"].tolist()[2:] == [44.5, 44.5]
    assert frame["energy_j"].isna().tolist() == [False, False, True, True]
    by_name = {table.name: table for table in tables(frame)}
    assert by_name["table-2"].rows[0]["above"] == "512: does not fit (predicted)"
    assert [row["reason"] for row in by_name["outcomes"].rows] == ["predicted", "predicted"]
    alone = aggregate(survey(tmp_path, STUDY, cells[2:], CONSTANTS, left_out=left_out))
    assert bare_minimum(alone).rows[0]["above"] == "2 does not fit (predicted)"


def test_a_table_that_is_not_one_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="aggregate again"):
        read_cells(tmp_path / "cells.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "cells.parquet")
    with pytest.raises(RecordError, match="other columns"):
        read_cells(tmp_path / "cells.parquet")


def test_an_estimate_keeps_its_label(tmp_path: Path) -> None:
    cell = make_cell()
    write_ok(tmp_path, cell, Numbers(status=Status.ESTIMATED))
    row = _frame(tmp_path, [cell]).iloc[0]
    assert (row["energy_status"], row["energy_method"]) == ("estimated", "estimate")
    assert "65 W TDP" in row["energy_detail"]


def test_docs_show_the_columns_as_the_code_has_them() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert with_columns(page) == page, "run: python -m shardwatt.analysis.columns docs/results.md"
    assert markdown(COLUMNS).count("\n") == len(COLUMNS) + 1
    assert markdown(DEVICE_COLUMNS).count("\n") == len(DEVICE_COLUMNS) + 1
    with pytest.raises(ValueError, match="device columns: begin"):
        with_columns(page.replace("<!-- device columns: begin (generated) -->", ""))


def test_columns_are_unique_complete_and_say_which_figures_show_them() -> None:
    for columns in (COLUMNS, DEVICE_COLUMNS):
        assert len({column.name for column in columns}) == len(columns)
        assert all(column.unit and column.definition and column.source for column in columns)
    names = [column.name for column in COLUMNS]
    assert {f"{name}_{end}" for name in WITH_INTERVAL for end in ("low", "high")} <= set(names)
    used = {column.name: column.used_by for column in COLUMNS}
    for kind, quantities in QUANTITIES.items():
        shown = {name for name, _ in quantities}
        assert {name for name in names if kind in used[name]} >= shown
        assert {n for n in WITH_INTERVAL if kind in used[n]} == shown & set(WITH_INTERVAL)
        assert {n for n in WITH_INTERVAL if kind in used[f"{n}_low"]} == shown & set(WITH_INTERVAL)


def test_a_name_that_plan_and_record_share_means_the_same() -> None:
    """Who joins the two tables compares columns by name. Time and joules of a whole job are not the same
    thing there, so that they have two names each."""
    planned, found = ({column.name: column.unit for column in columns} for columns in (PLAN_COLUMNS, COLUMNS))
    shared = planned.keys() & found.keys()
    work = {"batches", "prompt_tokens", "output_tokens", "generated_tokens"}
    window = {"prefill_s", "walk_s", "decode_s", "duration_s", "tokens_per_s"}
    joules = {"power_w", "energy_j", "energy_per_token_j"}
    assert shared == {*AXES, "cap_w", "nodes"} | work | window | joules
    assert all(planned[name] == found[name] for name in shared)
    assert {"allocation_duration_s", "allocation_energy_j"} <= planned.keys()
    assert {"job_duration_s", "job_energy_j"} <= found.keys()


def test_simulated_cells_are_told_apart_and_have_no_intervals(tmp_path: Path) -> None:
    cells = [make_cell(engine=engine, repeat=n) for engine in ("fast", "simulated") for n in (1, 2, 3)]
    cells += [make_cell(engine="simulated-fast"), make_cell(engine="simulated", batch=5)]
    for cell in cells[:-1]:
        write_ok(tmp_path, cell)
    frame = _frame(tmp_path, cells)
    assert frame["simulated"].tolist() == [False] * 3 + [True] * 5, "also one that has not run"
    assert frame["interval_kind"].notna().tolist() == [True] * 3 + [False] * 5
    assert frame["power_w_low"].notna().tolist() == [True] * 3 + [False] * 5


def test_devices_of_simulated_cells_are_marked_too(tmp_path: Path) -> None:
    cells = [make_cell(engine=engine) for engine in ("fast", "simulated-fast")]
    for cell in cells:
        write_ok(tmp_path, cell)
    states = survey(tmp_path, STUDY, cells, CONSTANTS)
    devices = aggregate_devices(states, aggregate(states))
    marked = devices.groupby("engine")["simulated"].unique().to_dict()
    assert {engine: list(found) for engine, found in marked.items()} == {
        "fast": [False],
        "simulated-fast": [True],
    }
