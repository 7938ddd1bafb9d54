"""Table III: what is a pair, what is not, and what follows for value and interval."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from shardwatt.analysis.aggregate import aggregate
from shardwatt.analysis.captable import power_caps
from shardwatt.analysis.stats import t_quantile, unpaired_ratio_half
from shardwatt.analysis.survey import survey
from shardwatt.analysis.tableformats import as_latex, as_markdown
from shardwatt.analysis.tablemodel import Table
from shardwatt.cell import Cell
from synthetic_cells import CONSTANTS, STUDY, Numbers, make_cell, write_failed, write_ok


def _put(base: Path, cap: str, repeat: int = 1, /, **numbers: Any) -> Cell:
    cell = make_cell(cap=cap, repeat=repeat)
    write_ok(base, cell, Numbers(**numbers))
    return cell


def _table(base: Path, cells: list[Cell]) -> Table:
    return power_caps(aggregate(survey(base, STUDY, cells, CONSTANTS)))


def test_one_job_and_the_same_gpus_are_a_pair(tmp_path: Path) -> None:
    cells = [_put(tmp_path, cap, job_id="7") for cap in ("none", "150")]
    table = _table(tmp_path, cells)
    assert table.rows[0]["paired"] == "yes"
    assert "arXiv 2208.11035" not in table.note, "nothing to warn of"


@pytest.mark.parametrize(
    ("other", "words", "warns"),
    [
        ({"job_id": "8"}, "same GPUs, other jobs", False),
        ({"job_id": "7", "gpus": "GPU-other"}, "no", True),
        ({"job_id": "8", "gpus": "GPU-other"}, "no", True),
    ],
    ids=["another time", "started again elsewhere", "another job"],
)
def test_another_job_or_other_gpus_are_none(
    tmp_path: Path, other: dict[str, str], words: str, warns: bool
) -> None:
    cells = [_put(tmp_path, "none", job_id="7"), _put(tmp_path, "150", **other)]
    table = _table(tmp_path, cells)
    assert table.rows[0]["paired"] == words
    for text in (as_markdown(table), as_latex(table)):
        assert ("arXiv 2208.11035" in text) is warns
        assert ("8 " in text.partition("differ in")[2][:12]) is warns


def test_a_missing_side_is_neither_paired_nor_unpaired(tmp_path: Path) -> None:
    cells = [_put(tmp_path, "none"), make_cell(cap="150")]
    write_failed(tmp_path, cells[1])
    (row,) = _table(tmp_path, cells).rows
    assert row["paired"] is None
    assert row["energy_change_pct"] is None


def test_paired_repeats_leave_out_what_a_pair_has_in_common(tmp_path: Path) -> None:
    # Job by job the GPUs differ by 8 %, the cap takes 20, 21 and 19 % of the power: a small interval.
    free, share = [100.0, 108.0, 92.0], [0.80, 0.79, 0.81]
    cells = []
    for index, (power_w, part) in enumerate(zip(free, share, strict=True)):
        shared = {"job_id": str(index), "gpus": f"GPU-{index}"}
        cells.append(_put(tmp_path, "none", index + 1, power_w=power_w, **shared))
        cells.append(_put(tmp_path, "150", index + 1, power_w=power_w * part, **shared))
    (row,) = _table(tmp_path, cells).rows
    assert (row["paired"], row["repeats"], row["repeats_against"]) == ("yes", 3, 3)
    capped = [power_w * part for power_w, part in zip(free, share, strict=True)]
    ratio = sum(capped) / 300
    assert row["energy_change_pct"] == pytest.approx(100 * (ratio - 1))
    squares = sum((low - ratio * high) ** 2 for low, high in zip(capped, free, strict=True))
    half = 4.303 * math.sqrt(squares / 6) / 100
    assert row["energy_change_half_pct"] == pytest.approx(100 * half)

    # The same joules from other GPUs each: the difference of the GPUs is in the interval.
    apart = tmp_path / "apart"
    cells = []
    for index, (power_w, low_w) in enumerate(zip(free, capped, strict=True)):
        cells.append(_put(apart, "none", index + 1, power_w=power_w, job_id=f"a{index}", gpus=f"A{index}"))
        cells.append(_put(apart, "150", index + 1, power_w=low_w, job_id=f"b{index}", gpus=f"B{index}"))
    (other,) = _table(apart, cells).rows
    assert other["paired"] == "no"
    assert other["energy_change_pct"] == pytest.approx(row["energy_change_pct"])
    assert other["energy_change_half_pct"] > 5 * row["energy_change_half_pct"]


def test_two_repeats_have_no_interval(tmp_path: Path) -> None:
    cells = [_put(tmp_path, cap, repeat) for cap in ("none", "150") for repeat in (1, 2)]
    (row,) = _table(tmp_path, cells).rows
    assert row["paired"] == "yes"
    assert row["energy_change_half_pct"] is None


def test_a_repeat_without_its_other_half_is_left_out_of_pairs(tmp_path: Path) -> None:
    cells = [_put(tmp_path, "none", 1, power_w=100.0), _put(tmp_path, "150", 1, power_w=80.0)]
    cells.append(_put(tmp_path, "none", 2, power_w=400.0))
    (row,) = _table(tmp_path, cells).rows
    assert (row["paired"], row["repeats"], row["repeats_against"]) == ("yes", 1, 1)
    assert row["energy_change_pct"] == pytest.approx(-20)


def test_pairs_in_part_are_counted_and_compared_as_if_there_were_none(tmp_path: Path) -> None:
    cells = [_put(tmp_path, "none", repeat, power_w=100.0) for repeat in (1, 2)]
    cells.append(_put(tmp_path, "150", 1, power_w=80.0))
    cells.append(_put(tmp_path, "150", 2, power_w=60.0, gpus="GPU-other"))
    table = _table(tmp_path, cells)
    (row,) = table.rows
    assert row["paired"] == "1 of 2"
    assert row["energy_change_pct"] == pytest.approx(-30)
    assert "arXiv 2208.11035" in table.note


def test_unknown_joules_of_one_half_leave_that_pair_out_of_energy_alone(tmp_path: Path) -> None:
    cells = [_put(tmp_path, "none", 1, power_w=100.0), _put(tmp_path, "150", 1, power_w=80.0)]
    cells += [_put(tmp_path, "none", 2, power_w=None), _put(tmp_path, "150", 2, power_w=20.0, batch_s=20.0)]
    (row,) = _table(tmp_path, cells).rows
    assert row["energy_change_pct"] == pytest.approx(-20)
    assert row["duration_change_pct"] == pytest.approx(100 * ((51 + 101) / (2 * 51) - 1))
    assert row["energy_status"] == "measured, unavailable"


def test_welchs_degrees_of_freedom_are_those_of_the_side_that_scatters() -> None:
    half = unpaired_ratio_half([10.0, 11.0, 12.0], [5.0, 5.0, 5.0])
    assert half is not None
    assert half == pytest.approx(2.2 * t_quantile(2) * (1 / 11) / math.sqrt(3))
    assert unpaired_ratio_half([1.0, 1.0], [1.0, 1.0, 1.0]) is None
    assert unpaired_ratio_half([2.0] * 3, [1.0] * 3) == 0
