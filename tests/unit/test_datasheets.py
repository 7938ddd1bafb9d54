"""Guards the catalogue of data sheets: figures as they are printed, and none that cannot be."""

from __future__ import annotations

import re

import pytest

from shardwatt.datasheets import DATA_SHEETS, markdown


@pytest.mark.parametrize(
    ("name", "bandwidth_gb_s", "fp32", "bf16", "fp16", "tdp_w"),
    [
        ("v100-sxm2-32gb", 900, 15.7, None, 125, 300),
        ("v100-pcie-32gb", 900, 14, None, 112, 250),
        ("a100-sxm-80gb", 2039, 19.5, 312, 312, 400),
        ("h100-sxm-80gb", 3350, 67, 989.5, 989.5, 700),
        ("h200-sxm-141gb", 4800, 67, 989.5, 989.5, 700),
        ("t4", 320, 8.1, None, 65, 70),
    ],
)
def test_figures_are_those_of_the_data_sheets(
    name: str, bandwidth_gb_s: float, fp32: float, bf16: float | None, fp16: float, tdp_w: float
) -> None:
    sheet = DATA_SHEETS[name]
    assert sheet.memory_bandwidth_b_s == pytest.approx(bandwidth_gb_s * 1e9)
    rates = [None if rate is None else pytest.approx(rate * 1e12) for rate in (fp32, bf16, fp16)]
    assert [sheet.flop_per_s[precision] for precision in ("fp32", "bf16", "fp16")] == rates
    assert sheet.tdp_w == tdp_w


@pytest.mark.parametrize("name", sorted(DATA_SHEETS))
def test_a_sheet_can_be_one_of_a_gpu_for_inference(name: str) -> None:
    sheet = DATA_SHEETS[name]
    assert sheet.name == name
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
    assert re.search(r"\b20[12][0-9]\b", sheet.source), "a source has a year"
    assert 300e9 <= sheet.memory_bandwidth_b_s <= 10e12
    assert 50 <= sheet.tdp_w <= 1500
    fp32, fp16 = sheet.flop_per_s["fp32"], sheet.flop_per_s["fp16"]
    assert fp32 is not None
    assert fp16 is not None
    assert 5e12 < fp32 < fp16 < 5e15
    if named := re.search(r"-(\d+)gb$", name):
        assert sheet.memory_gib == int(named[1])


@pytest.mark.parametrize("name", [n for n, sheet in DATA_SHEETS.items() if sheet.compute_capability])
def test_bfloat16_is_there_from_compute_capability_8_on(name: str) -> None:
    sheet = DATA_SHEETS[name]
    major = int(str(sheet.compute_capability).split(".")[0])
    assert (sheet.flop_per_s["bf16"] is not None) == (major >= 8)
    if major >= 8:
        assert sheet.flop_per_s["bf16"] == sheet.flop_per_s["fp16"], "of the same units"


def test_the_table_shows_every_sheet_in_the_units_of_data_sheets() -> None:
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(DATA_SHEETS)
    (row,) = (line for line in lines if line.startswith("| `v100s-pcie-32gb` |"))
    assert row == (
        "| `v100s-pcie-32gb` | 32 | 1134 | 16.4 | none | 130 | 250 | 7.0 | "
        "NVIDIA V100 data sheet, January 2020 |"
    )
