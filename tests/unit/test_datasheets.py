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
    assert 16 <= sheet.link_gb_s <= 1000
    assert 0.05 * sheet.tdp_w <= sheet.idle_w <= 0.25 * sheet.tdp_w
    assert 0.04 < sheet.lowest_clock_mhz / sheet.clock_mhz < 0.25
    if named := re.search(r"-(\d+)gb$", name):
        assert sheet.memory_gib == int(named[1])


@pytest.mark.parametrize(
    ("name", "link_gb_s", "clock_mhz"),
    [
        ("v100-pcie-32gb", 16, 1380),
        ("v100-sxm2-32gb", 150, 1530),
        ("a100-pcie-80gb", 32, 1410),
        ("a100-sxm-80gb", 300, 1410),
        ("h100-sxm-80gb", 450, 1830),
        ("b200-sxm-180gb", 900, 1965),
    ],
)
def test_links_are_those_of_one_direction(name: str, link_gb_s: float, clock_mhz: float) -> None:
    """Makers print both directions together: 300 GB/s of a V100's NVLink are 150 each way."""
    assert DATA_SHEETS[name].link_gb_s == link_gb_s
    assert DATA_SHEETS[name].clock_mhz == clock_mhz


@pytest.mark.parametrize(("name", "gb_s"), [("mi300x", 64), ("v100-sxm2-32gb", 50), ("a100-sxm-80gb", 100)])
def test_two_devices_without_a_switch_have_a_part_of_the_links_between_them(name: str, gb_s: float) -> None:
    sheet = DATA_SHEETS[name]
    assert sheet.link_gb_s / sheet.peers == gb_s
    assert sheet.meshed > sheet.peers


@pytest.mark.parametrize("name", ["v100-sxm2-32gb", "a100-sxm-80gb", "h100-sxm-80gb"])
def test_rates_are_what_the_matrix_units_do_at_the_boost_clock(name: str) -> None:
    """Multiprocessors x operations a cycle of each, from NVIDIA's architecture whitepapers, x the clock."""
    a_cycle = {"v100-sxm2-32gb": 80 * 1024, "a100-sxm-80gb": 108 * 2048, "h100-sxm-80gb": 132 * 4096}[name]
    sheet = DATA_SHEETS[name]
    assert sheet.flop_per_s["fp16"] == pytest.approx(a_cycle * sheet.clock_mhz * 1e6, rel=0.005)


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
        "| `v100s-pcie-32gb` | 32 | 1134 | 16.4 | none | 130 | 250 | 7.0 | 16 | 25 | 100 | 135 to 1597 | "
        "NVIDIA V100 data sheet, January 2020 |"
    )
