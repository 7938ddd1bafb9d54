"""The paper's values beside a study's own: which cells count, what is computed, how far they are apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from shardwatt.analysis.aggregate import aggregate
from shardwatt.analysis.publishedtable import published
from shardwatt.analysis.survey import survey
from shardwatt.analysis.tableformats import as_csv, as_latex, shown
from shardwatt.analysis.tablemodel import Row, Table
from shardwatt.cell import Cell
from shardwatt.plan.published import PAPER, PUBLISHED, USUAL_CAP_W
from shardwatt.readings import Mean
from synthetic_cells import CONSTANTS, STUDY, Numbers, make_cell, write_does_not_fit, write_failed, write_ok


def _table(base: Path, cells: list[Cell]) -> Table:
    return published(aggregate(survey(base, STUDY, cells, CONSTANTS)).astype(object))


def _rows(base: Path, cells: list[Cell], where: str, quantity: str = "") -> list[Row]:
    rows = _table(base, cells).rows
    return [row for row in rows if row["where"].startswith(where) and row["quantity"].startswith(quantity)]


def _65b(**axes: Any) -> Cell:
    return make_cell(**{"model": "llama-65b", "gpu": "a100", "shards": 4, "batch": 64, "cap": "250", **axes})


def test_fewest_gpus_and_largest_batch_are_of_the_cells_that_ran(tmp_path: Path) -> None:
    cells = [make_cell(model="llama-13b", shards=s, batch=b, cap="250") for s in (1, 2) for b in (64, 128)]
    for cell in cells:
        unfit = cell.shards == 1 or cell.batch == 128
        (write_does_not_fit if unfit else write_ok)(tmp_path, cell)
    fewest, largest = _rows(tmp_path, cells, "Table II")
    assert (fewest["quantity"], fewest["published"], fewest["here"], fewest["difference"]) == (
        "fewest GPUs",
        2,
        2,
        0,
    )
    assert (largest["quantity"], largest["published"], largest["here"]) == ("largest batch", 64, 64)


def test_changes_under_a_cap_stand_beside_table_iii_in_percentage_points(tmp_path: Path) -> None:
    # A batch and 1 s: 11 s at 4 x 100 W against 13 s at 4 x 60 W.
    cells = [_65b(dataset="gsm8k", cap=cap) for cap in ("250", "175")]
    write_ok(tmp_path, cells[0])
    write_ok(tmp_path, cells[1], Numbers(batch_s=12, power_w=60))
    time, energy, rate = _rows(tmp_path, cells, "Table III")
    assert (time["cap"], time["published"], time["unit"], time["difference_in"]) == (
        "175",
        6.23,
        "%",
        "points",
    )
    assert time["here"] == pytest.approx(100 * (13 / 11 - 1))
    assert time["difference"] == pytest.approx(100 * (13 / 11 - 1) - 6.23)
    assert energy["here"] == pytest.approx(100 * (780 / 1100 - 1))
    assert rate["here"] == pytest.approx(100 * (11 / 13 - 1))
    assert energy["energy_status"] == "measured"
    assert time["energy_status"] is None


def test_both_data_sets_are_averaged_and_uncapped_cells_stand_for_the_usual_cap(tmp_path: Path) -> None:
    cells = [_65b(gpu="v100", shards=8, cap="none", dataset=name) for name in ("alpaca", "gsm8k")]
    for cell, share in zip(cells, (0.9, 0.8), strict=True):
        busy = Numbers().utilisation.model_copy(update={"sm_utilisation": Mean(mean=share, max=1.0)})
        write_ok(tmp_path, cell, Numbers(utilisation=busy))
    (row,) = _rows(tmp_path, cells, "Table V", "SM")
    assert (row["shards"], row["cap"], row["published"]) == (8, "none", 94.75)
    assert row["here"] == pytest.approx(85)
    assert row["difference"] == pytest.approx(85 - 94.75)


def test_a_published_maximum_of_memory_activity_stands_beside_the_maximum_and_the_mean(
    tmp_path: Path,
) -> None:
    """Table IV's is a maximum, and a study has both; Table V does not say which it prints."""
    busy = Numbers().utilisation.model_copy(update={"memory_activity": Mean(mean=0.2, max=0.6)})
    cells = [_65b(), _65b(gpu="v100", shards=8)]
    for cell in cells:
        write_ok(tmp_path, cell, Numbers(utilisation=busy))
    maximum, mean = _rows(tmp_path, cells, "Table IV", "memory")
    assert (maximum["quantity"], mean["quantity"]) == (
        "memory activity, maximum",
        "memory activity, mean, beside a published maximum",
    )
    assert maximum["published"] == mean["published"] == 23.36
    assert (maximum["here"], mean["here"]) == (pytest.approx(60), pytest.approx(20))
    assert (maximum["difference"], mean["difference"]) == (pytest.approx(36.64), pytest.approx(-3.36))
    (five,) = _rows(tmp_path, cells, "Table V", "memory")
    assert (five["quantity"], five["here"]) == ("memory activity, mean", pytest.approx(20))


def test_where_the_study_has_the_usual_cap_uncapped_cells_are_left_out(tmp_path: Path) -> None:
    cells = [_65b(length=512, gpu="v100", shards=8, cap=cap) for cap in ("250", "none")]
    write_ok(tmp_path, cells[0], Numbers(power_w=50))
    write_ok(tmp_path, cells[1])
    (row,) = _rows(tmp_path, cells, "findings, figure 4")
    assert (row["cap"], row["here"], row["published"]) == ("250", 400, 300)
    assert row["difference"] == pytest.approx(100 / 3), "in % of the published value"


def test_within_a_published_range_there_is_no_difference(tmp_path: Path) -> None:
    cells = [_65b(length=512, gpu="v100", shards=8)]
    # 20 answers of 256 tokens in 11 s: 3.5 J a token.
    write_ok(tmp_path, cells[0], Numbers(power_w=3.5 * 20 * 256 / 11 / 8))
    (row,) = _rows(tmp_path, cells, "findings, figure 6")
    assert (row["published"], row["published_high"]) == (3, 4)
    assert row["here"] == pytest.approx(3.5)
    assert row["difference"] == pytest.approx(0)


def test_throughput_of_a100s_is_over_that_of_v100s_each_at_its_fewest(tmp_path: Path) -> None:
    cells = [
        make_cell(model="llama-7b", gpu="a100", shards=1, batch=64, cap="250"),
        make_cell(model="llama-7b", gpu="v100", shards=1, batch=64, cap="none"),
        make_cell(model="llama-7b", gpu="v100", shards=2, batch=64, cap="none"),
    ]
    for cell, batch_s in zip(cells, (10, 30, 5), strict=True):
        write_ok(tmp_path, cell, Numbers(batch_s=batch_s, between_s=0))
    (row,) = _rows(tmp_path, cells, "findings, figure 2")
    assert (row["published"], row["here"]) == (2, pytest.approx(3))


def test_what_has_not_run_is_unknown_beside_its_published_value(tmp_path: Path) -> None:
    cells = [_65b(gpu="v100", shards=shards) for shards in (8, 16)]
    write_failed(tmp_path, cells[0])
    rows = _rows(tmp_path, cells, "Table V")
    assert [(row["shards"], row["here"], row["difference"]) for row in rows] == [
        (8, None, None),
        (8, None, None),
        (16, None, None),
        (16, None, None),
    ]


def test_gpu_types_are_told_by_their_name_and_engines_apart(tmp_path: Path) -> None:
    cells = [
        _65b(gpu=gpu, shards=8, engine=engine)
        for gpu in ("v100-32gb", "v1000")
        for engine in ("reference", "fast")
    ]
    found = {(row["gpu"], row["engine"]) for row in _rows(tmp_path, cells, "Table V")}
    assert found == {("v100-32gb", "reference"), ("v100-32gb", "fast")}


def test_only_cells_in_the_papers_precision_stand_beside_it(tmp_path: Path) -> None:
    """A mean over precisions is nobody's run."""
    watts = {("bf16", "250"): 25, ("bf16", "175"): 10, ("fp16", "250"): 50, ("fp16", "175"): 40}
    capped = [_65b(dataset="gsm8k", precision=name, cap=cap) for name, cap in watts]
    cells = [*capped, *(_65b(length=512, gpu="v100", shards=8, precision=name) for name in ("bf16", "fp16"))]
    for cell in cells:
        write_ok(tmp_path, cell, Numbers(power_w=watts[cell.precision, cell.cap]))
    (power,) = _rows(tmp_path, cells, "findings, figure 4")
    assert power["here"] == 400
    (energy,) = _rows(tmp_path, cells, "Table III", "energy")
    assert energy["here"] == pytest.approx(-20)
    assert not _rows(tmp_path, [cell for cell in cells if cell.precision == "bf16"], "")


def test_a_study_of_other_runs_has_no_rows_and_a_note_that_says_why(tmp_path: Path) -> None:
    table = _table(tmp_path, [make_cell(model="demo-llama", gpu="cpu")])
    assert not table.rows
    assert "prints no value for a cell of this study" in table.note


def test_every_value_of_the_paper_can_be_found_in_a_study_that_has_its_run(tmp_path: Path) -> None:
    paper = [one for one in PUBLISHED if one.source == PAPER]
    cells = {
        make_cell(
            model=one.model,
            gpu=gpu,
            shards=one.shards or 8,
            batch=one.batch or 64,
            length=one.length,
            dataset="gsm8k",
            cap=str(cap_w),
        )
        for one in paper
        for gpu in {one.gpu.partition("-")[0], "v100"}
        for cap_w in (one.cap_w, USUAL_CAP_W)
    }
    for cell in sorted(cells, key=lambda cell: cell.path):
        write_ok(tmp_path, cell)
    rows = _table(tmp_path, list(cells)).rows
    twice = [one for one in paper if one.quantity == "memory_activity_max_percent"]
    assert len(rows) == len(paper) + len(twice) == len(paper) + 4
    assert not [row for row in rows if row["here"] is None]


def test_joules_by_shards_are_compared_with_eight_and_the_best_is_named(tmp_path: Path) -> None:
    cells = [_65b(gpu="v100", dataset="gsm8k", length=512, shards=shards) for shards in (8, 16, 32)]
    for cell, power_w in zip(cells, (100, 25, 50), strict=True):
        write_ok(tmp_path, cell, Numbers(power_w=power_w))
    (ratio,) = _rows(tmp_path, cells, "findings, figure 6", "energy per token over")
    assert (ratio["published"], ratio["published_high"]) == (1, math.inf)
    assert (ratio["here"], ratio["difference"]) == (pytest.approx(2), 0)
    (best,) = _rows(tmp_path, cells, "findings, figure 6", "shards with")
    assert (best["published"], best["here"], best["difference"]) == (16, 16, 0)


def _printed(base: Path, cells: list[Cell], quantity: str) -> dict[str, str]:
    """The row of a quantity as it is shown, by column."""
    table = _table(base, cells)
    labels = [field.label for field in table.shown_fields]
    rows = [dict(zip(labels, row, strict=True)) for row in shown(table)]
    return next(row for row in rows if row["quantity"] == quantity)


def test_counts_and_watts_are_printed_without_decimals(tmp_path: Path) -> None:
    cells = [
        make_cell(model="llama-13b", shards=2, batch=64, cap="250"),
        _65b(length=512, gpu="v100", shards=8),
    ]
    for cell in cells:
        write_ok(tmp_path, cell, Numbers(power_w=50))
    fewest = _printed(tmp_path, cells, "fewest GPUs")
    assert [fewest[name] for name in ("published", "here", "unit", "difference", "in")] == [
        *("2", "2", "GPUs"),
        *("0", "GPUs"),
    ]
    power = _printed(tmp_path, cells, "power of all GPUs")
    assert [power[name] for name in ("published", "here", "unit", "difference", "in")] == [
        *("300", "400", "W"),
        *("33.3", "%"),
    ]


def test_what_is_rounded_to_zero_has_no_sign(tmp_path: Path) -> None:
    busy = Numbers().utilisation.model_copy(update={"sm_utilisation": Mean(mean=0.947499, max=1.0)})
    write_ok(tmp_path, _65b(gpu="v100", shards=8), Numbers(utilisation=busy))
    row = _printed(tmp_path, [_65b(gpu="v100", shards=8)], "SM utilisation, mean")
    assert (row["published"], row["here"], row["difference"]) == ("94.75", "94.75", "0.00")


def test_a_range_without_an_upper_end_is_shown_as_one(tmp_path: Path) -> None:
    cells = [_65b(gpu="v100", dataset="gsm8k", length=512, shards=shards) for shards in (8, 32)]
    for cell in cells:
        write_ok(tmp_path, cell)
    quantity = "energy per token over that of 8 shards"
    row = _printed(tmp_path, cells, quantity)
    assert (row["published"], row["up to"], row["unit"]) == ("1.00", "∞", "times")
    table = _table(tmp_path, cells)
    assert r"$\infty$" in as_latex(table)
    assert "1.0,inf," in as_csv(table)
