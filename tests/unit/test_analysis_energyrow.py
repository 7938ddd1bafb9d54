"""Energy in the tidy tables: net, ratios, what stands beside, coverage, caps, and a row for each device."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from shardwatt.analysis.aggregate import aggregate, aggregate_devices
from shardwatt.analysis.build import build_cells
from shardwatt.analysis.columns import DEVICE_COLUMNS
from shardwatt.analysis.survey import survey
from shardwatt.analysis.tidy import read_tidy
from shardwatt.cell import Cell
from shardwatt.cellfiles import write_table
from shardwatt.layout import CellPaths
from shardwatt.power.rules import TROUBLE
from shardwatt.power.states import REASONS
from shardwatt.readings import Method, Status, Violation
from synthetic_cells import CONSTANTS, STUDY, Numbers, make_cell, write_does_not_fit, write_ok


def _tables(base: Path, cells: list[Cell]) -> tuple[pd.DataFrame, pd.DataFrame]:
    states = survey(base, STUDY, cells, CONSTANTS)
    frame = aggregate(states)
    return frame, aggregate_devices(states, frame)


def _row(base: Path, numbers: Numbers, **axes: object) -> pd.Series:
    cell = make_cell(**axes)
    write_ok(base, cell, numbers)
    return _tables(base, [cell])[0].iloc[0]


def test_net_of_both_baselines_by_hand(tmp_path: Path) -> None:
    # 51 s at 2 x 100 W; idle 2 x 20 W before a CUDA context, 2 x 40 W with the model loaded.
    row = _row(tmp_path, Numbers(), shards=2)
    assert (row["idle_unloaded_w"], row["idle_loaded_w"]) == (40, 80)
    assert (row["energy_net_unloaded_j"], row["energy_net_loaded_j"]) == (160 * 51, 120 * 51)
    assert row["energy_per_token_net_loaded_j"] == pytest.approx(120 * 51 / 2560)
    assert (row["idle_unloaded_status"], row["idle_loaded_status"]) == ("measured", "measured")


def test_a_baseline_above_the_run_is_a_negative_net_and_not_hidden(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers(idle_loaded_w=110.0))
    assert row["energy_net_loaded_j"] == pytest.approx(-510)


def test_a_baseline_that_was_not_read_is_null_with_its_reason(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers(idle_loaded_w=None))
    nothing = ["idle_loaded_w", "energy_net_loaded_j", "energy_per_token_net_loaded_j"]
    assert row[nothing].isna().all()
    assert (row["idle_loaded_status"], row["idle_loaded_detail"]) == ("unavailable", "no baseline was read")
    assert row["energy_net_unloaded_j"] == 80 * 51


def test_the_two_ratios_stand_apart_and_say_what_each_is_of(tmp_path: Path) -> None:
    # Two nodes; the second draws 10 % more: twice the first is 200 of 210. DCGM counts 98 % of the first.
    row = _row(tmp_path, Numbers(skew=0.1), shards=4)
    assert row["energy_j"] == pytest.approx(420 * 51)
    assert row["energy_rank0_scaled_j"] == pytest.approx(400 * 51)
    assert row["scope_ratio"] == pytest.approx(200 / 210)
    assert row["method_ratio"] == pytest.approx(0.98, abs=1e-3)
    # The paper's accounting: whole joules of two GPUs, from one interval before to one after, times two.
    assert row["energy_dcgm_j"] == 2 * 2 * int(100 * 51.2 * 0.98)
    assert row["energy_dcgm_status"] == "measured"


def test_without_dcgm_its_joules_and_ratio_are_null_and_the_reason_is_told(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers(dcgm_share=None), shards=2)
    assert row[["energy_dcgm_j", "method_ratio"]].isna().all()
    assert (row["energy_dcgm_status"], row["energy_dcgm_detail"]) == (
        "unavailable",
        "dcgmi is not on this node",
    )
    assert row["scope_ratio"] == 1


def test_what_stands_beside_is_never_in_the_headline(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers(slurm_w=700.0), shards=4)
    assert (row["cpu_energy_j"], row["dram_energy_j"]) == (2 * 50 * 51, 2 * 5 * 51)
    assert row["slurm_node_energy_j"] == 2 * 700 * 51
    assert row["energy_j"] == 400 * 51


@pytest.mark.parametrize(
    ("name", "status"),
    [("cpu", "permission_denied"), ("dram", "permission_denied"), ("slurm_node", "unavailable")],
)
def test_what_could_not_be_read_beside_says_why(tmp_path: Path, name: str, status: str) -> None:
    row = _row(tmp_path, Numbers(cpu_w=None, dram_w=None))
    assert pd.isna(row[f"{name}_energy_j"])
    assert row[f"{name}_energy_status"] == status
    assert row[f"{name}_energy_detail"]


def test_coverage_has_period_jitter_gaps_ticks_and_clocks(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers(), shards=4)
    names = ("asked_period", "period", "jitter", "late", "max_gap", "tick")
    assert [row[f"energy_{name}_s"] for name in names] == [0.1, 0.1, 0.002, 0.001, 0.3, 0.1]
    assert (row["energy_gaps"], row["clock_offset_s"], row["counter_over_integral"]) == (0, 0.004, 1.01)
    assert (row["energy_missed"], row["energy_sampler_cpu_share"], row["clock_drift_s"]) == (3, 0.004, 0.002)


def test_violations_are_codes_once_their_number_and_their_words(tmp_path: Path) -> None:
    broken = [
        Violation(code="short_window", message="window 3.2 s; expected at least 5 s"),
        Violation(code="counter_backwards", message="GPU-0: by 3 J"),
        Violation(code="counter_backwards", message="GPU-1: by 4 J"),
    ]
    row = _row(tmp_path, Numbers(violations=broken))
    assert (row["violations_n"], row["violations"]) == (3, "short_window, counter_backwards")
    assert [entry["message"] for entry in json.loads(row["violations_detail"])] == [
        one.message for one in broken
    ]
    assert row["energy_j"] == 5100, "the number stands"
    whole = _row(tmp_path, Numbers(), batch=5)
    assert whole["violations_n"] == 0
    assert whole[["violations", "violations_detail"]].isna().all()


@pytest.mark.parametrize(
    ("shares", "throttled", "reasons"),
    [
        ({}, None, None),
        ({"sw_power_cap": 0.25}, None, "sw_power_cap 0.25"),
        (
            {"sw_thermal_slowdown": 0.02, "sw_power_cap": 0.25, "hw_slowdown": 0.125},
            0.125,
            "sw_power_cap 0.25, hw_slowdown 0.125, sw_thermal_slowdown 0.02",
        ),
    ],
    ids=["none or not told", "a limit that somebody set", "trouble"],
)
def test_throttling_is_the_trouble_that_stood_longest(
    tmp_path: Path, shares: dict[str, float], throttled: float | None, reasons: str | None
) -> None:
    held = Numbers().utilisation.model_copy(update={"throttled": shares})
    row = _row(tmp_path, Numbers(utilisation=held))
    found = [None if pd.isna(row[name]) else row[name] for name in ("throttled", "throttle_reasons")]
    assert found == [throttled, reasons]


def test_reasons_of_trouble_are_those_that_the_rules_know() -> None:
    assert set(TROUBLE) <= set(REASONS.values())


def test_clocks_and_temperature_are_means_and_maxima(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers())
    assert (row["clock_sm_mhz"], row["clock_sm_mhz_max"], row["clock_memory_mhz"]) == (1380, 1530, 877)
    assert (row["temperature_c"], row["temperature_c_max"]) == (61, 70)


def test_a_cap_is_told_as_asked_enforced_and_found_before(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers(limit_before_w=275.0, cool_down_s=12.5), shards=2, cap="150")
    assert (row["cap_w"], row["cap_set_by"], row["cool_down_s"]) == (150, "nvml", 12.5)
    assert (row["limit_min_w"], row["limit_max_w"]) == (150, 150)
    assert (row["cap_before_min_w"], row["cap_before_max_w"]) == (275, 275)
    none = _row(tmp_path, Numbers(), shards=2)
    assert none[[name for name in none.index if name.startswith("cap_")]].isna().all()


def test_the_limits_of_a_cell_without_a_cap_are_told_too(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers(limit_before_w=250.0, limit_default_w=275.0), shards=2)
    limits = ["limit_min_w", "limit_max_w", "limit_default_min_w", "limit_default_max_w"]
    assert row[limits].tolist() == [250, 250, 275, 275]
    _, devices = _tables(tmp_path, [make_cell(shards=2)])
    assert devices[["limit_w", "limit_default_w"]].to_numpy().tolist() == [[250, 275]] * 2
    estimated = _row(tmp_path, Numbers(status=Status.ESTIMATED), shards=2, batch=5)
    assert estimated[limits].isna().all()


def test_a_cell_whose_model_was_loaded_before_has_none_of_the_papers_figures(tmp_path: Path) -> None:
    paper = ["power_paper_w", "energy_per_token_paper_j", "energy_per_response_paper_j"]
    first, second = _row(tmp_path, Numbers()), _row(tmp_path, Numbers(was_loaded=True), batch=5)
    assert (first["was_loaded"], second["was_loaded"]) == (False, True)
    assert first[paper].notna().all()
    assert second[paper].isna().all()
    assert second["job_energy_j"] > 0


def test_phases_and_net_joules_stand_with_their_uncertainty(tmp_path: Path) -> None:
    row = _row(tmp_path, Numbers())
    for name in ("prefill", "walk", "decode", "between"):
        assert row[f"{name}_uncertainty_j"] == 10
    assert row["energy_net_unloaded_uncertainty_j"] == 10 + 51
    assert row["energy_net_loaded_uncertainty_j"] == 10 + 51
    unknown = _row(tmp_path, Numbers(power_w=None), batch=5)
    assert unknown[["prefill_uncertainty_j", "energy_net_loaded_uncertainty_j"]].isna().all()


def test_uuids_are_in_order_and_null_where_a_device_has_none(tmp_path: Path) -> None:
    assert _row(tmp_path, Numbers(gpus="GPU-b"), shards=2)["device_uuids"] == "GPU-b-0, GPU-b-1"
    write_does_not_fit(tmp_path, make_cell(batch=10))
    assert pd.isna(_tables(tmp_path, [make_cell(batch=10)])[0].iloc[0]["device_uuids"])


def test_devices_add_up_to_their_cell_and_keep_what_was_read_of_each(tmp_path: Path) -> None:
    cell = make_cell(shards=4, cap="150")
    write_ok(tmp_path, cell, Numbers(skew=0.1, job_id="99"))
    frame, devices = _tables(tmp_path, [cell])
    assert devices["uuid"].tolist() == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    assert devices["node"].tolist() == ["node000"] * 2 + ["node001"] * 2
    assert devices["device"].tolist() == [0, 1, 0, 1]
    for name in ("energy_j", "prefill_j", "walk_j", "decode_j", "between_j", "job_energy_j"):
        assert devices[name].sum() == pytest.approx(frame[name].iloc[0]), name
    assert devices["power_w"].tolist() == pytest.approx([100, 100, 110, 110])
    assert devices["counter_over_integral"].tolist() == pytest.approx([1.01] * 4)
    assert devices["dcgm_j"].isna().tolist() == [False, False, True, True], "of the rank-0 node alone"
    assert set(devices["limit_w"]) == {150}
    assert set(devices["power_source"]) == {"instant"}
    assert devices["net_unloaded_j"].tolist() == pytest.approx([80 * 51, 80 * 51, 90 * 51, 90 * 51])
    assert devices["net_loaded_j"].sum() == pytest.approx(frame["energy_net_loaded_j"].iloc[0])
    assert set(devices["cap_restored_w"]) == {300}
    assert set(devices["job_id"]) == {"99"}
    assert set(devices["cap"]) == {"150"}


def test_an_integral_is_no_cross_check_of_itself(tmp_path: Path) -> None:
    cell = make_cell()
    write_ok(tmp_path, cell, Numbers(method=Method.POWER_INTEGRAL, status=Status.DERIVED))
    _, devices = _tables(tmp_path, [cell])
    (row,) = devices.to_dict("records")
    assert (row["method"], row["status"]) == ("power_integral", "derived")
    assert row["integral_j"] > 0
    assert pd.isna(row["counter_over_integral"])


def test_an_estimate_has_no_baseline_and_no_cross_check(tmp_path: Path) -> None:
    cell = make_cell()
    write_ok(tmp_path, cell, Numbers(status=Status.ESTIMATED))
    _, devices = _tables(tmp_path, [cell])
    (row,) = devices.to_dict("records")
    assert (row["method"], row["status"]) == ("estimate", "estimated")
    assert pd.isna(row["counter_over_integral"])
    assert pd.isna(row["idle_loaded_w"])
    assert pd.isna(row["net_loaded_j"])
    assert row["energy_j"] == 5100


def test_only_cells_that_ran_have_devices(tmp_path: Path) -> None:
    good, torn, unfit = (make_cell(batch=batch) for batch in (4, 5, 10))
    for cell in (good, torn):
        write_ok(tmp_path, cell)
    write_does_not_fit(tmp_path, unfit)
    write_table(CellPaths(tmp_path, STUDY, torn).results / "batches.parquet", [])
    frame, devices = _tables(tmp_path, [good, torn, unfit])
    assert frame["outcome"].tolist() == ["ok", "invalid", "does_not_fit"]
    assert devices["batch"].tolist() == [4]


def test_devices_are_written_beside_the_cells_and_read_back(tmp_path: Path) -> None:
    cell = make_cell(shards=2)
    write_ok(tmp_path, cell)
    paths = build_cells(survey(tmp_path, STUDY, [cell], CONSTANTS), tmp_path / "out")
    assert [path.name for path in paths] == ["cells.parquet", "cells.csv", "devices.parquet", "devices.csv"]
    _, devices = _tables(tmp_path, [cell])
    pd.testing.assert_frame_equal(read_tidy(paths[2], DEVICE_COLUMNS), devices)
    assert list(pd.read_csv(paths[3]).columns) == [column.name for column in DEVICE_COLUMNS]
