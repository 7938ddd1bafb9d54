"""Guards which power caps are refused before anything is submitted, where a site names no limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardwatt.datasheets import DATA_SHEETS
from shardwatt.gpulimits import cap_problem
from small_project import make_site

OWN = {"memory_bandwidth_gb_s": 500, "source": "measured"}


def problem(cap: str, **gpu: Any) -> str | None:
    gpus = {"it": {"kind": "cuda", "per_node": 2, "memory_gib": 16, **gpu}}
    return cap_problem(make_site(Path("/nowhere"), gpus=gpus), "it", cap)


@pytest.mark.parametrize(
    ("sheet", "refused", "taken"),
    [
        ("a100-pcie-80gb", "149", "150"),
        ("a100-sxm-80gb", "99", "100"),
        ("v100-pcie-32gb", "26", "100"),
        ("h100-sxm-80gb", "199", "200"),
        # Of this one no listing was found: what it draws at rest is all that is known.
        ("h100-pcie-80gb", "50", "51"),
    ],
)
def test_no_cap_is_below_what_such_boards_take(sheet: str, refused: str, taken: str) -> None:
    assert problem(taken, data_sheet=sheet) is None
    said = problem(refused, data_sheet=sheet)
    assert said is not None
    assert "gpus.it.power_limits_w" in said
    assert problem(refused, data_sheet=sheet, power_limits_w=[20, 300]) is None, "the site's word comes first"


def test_a_listing_of_limits_agrees_with_the_data_sheet() -> None:
    known = [sheet for sheet in DATA_SHEETS.values() if sheet.power_min_w is not None]
    assert len(known) == 12
    assert all(sheet.idle_w < sheet.power_min_w < sheet.tdp_w for sheet in known if sheet.power_min_w)


def test_without_a_data_sheet_the_sites_own_watts_count() -> None:
    own = {"tdp_w": 300, "peak": {**OWN, "idle_w": 45.0}}
    assert [problem(cap, **own) is None for cap in ("45", "46", "450", "451")] == [False, True, True, False]
    assert problem("5000", **own) == (
        "cap: 5000 on it: this GPU draws some 45 W at rest and is made for 300 W; use a cap between, or say "
        "in the site's key gpus.it.power_limits_w what these GPUs take"
    )
    # 13 % of the TDP are assumed where nobody says what it draws at rest.
    assert [problem(cap, tdp_w=300) is None for cap in ("39", "40", "5000")] == [False, True, False]


def test_a_gpu_of_ones_own_may_have_a_lowest_limit_too() -> None:
    own = {"tdp_w": 300, "peak": {**OWN, "idle_w": 45.0, "power_min_w": 120.0}}
    assert [problem(cap, **own) is None for cap in ("119", "120", "450", "451")] == [False, True, True, False]
    assert problem("100", **own) == (
        "cap: 100 on it: this GPU takes no limit below 120 W and is made for 300 W; use a cap between, or "
        "say in the site's key gpus.it.power_limits_w what these GPUs take"
    )
    assert problem("100", **own, power_limits_w=[90.0, 300.0]) is None, "the site's word comes first"


def test_where_nothing_is_known_the_driver_decides() -> None:
    assert problem("1") is None
    assert problem("5000", peak=OWN) is None


def test_the_watts_of_processors_are_no_limit_of_the_gpus_that_are_metered_beside_them() -> None:
    assert problem("400", kind="cpu", meter="nvml", tdp_w=100) is None
