"""Guards what a site says for the plan: links, prices, carbon, and calibrations beside its file."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from shardwatt.errors import SiteError
from shardwatt.site import load_site
from shardwatt.siteplan import Calibration, Measured, calibration_file
from small_project import GPUS, make_site, site_content, write_yaml
from synthetic_cells import make_cell

BETWEEN = {"gb_s": 6.25, "latency_us": 5, "source": "a port"}
PRICES = {"currency": "EUR", "source": "a list"}
CARBON = {"g_per_kwh": 380, "source": "the grid", "year": 2025}

CALIBRATION: dict[str, Any] = {
    "compute": 0.5,
    "bandwidth": 0.7,
    "network": 0.6,
    "launch": 1.2,
    "power": 0.9,
    "fitted": ["compute", "launch"],
    "spread": {"duration_s": [0.9, 1.2]},
    "cells": 12,
    "source": "study first-light",
    "fitted_on": date(2026, 3, 1),
    "errors": {"duration_percent": 7.5},
}


def gpu(**changes: Any) -> dict[str, Any]:
    return {"gpus": {"v100": {**GPUS["v100"], **changes}}}


def calibrated(**changes: Any) -> dict[str, Any]:
    return {"calibration": {"v100/reference": {**CALIBRATION, **changes}}}


def test_a_types_own_links_replace_the_sites_one_by_one(tmp_path: Path) -> None:
    own = {"inside": {**BETWEEN, "gb_s": 12}}
    site = make_site(tmp_path, links={"between": BETWEEN, "inside": BETWEEN}, **gpu(links=own))
    inside, between = (site.link("v100", where) for where in ("inside", "between"))
    assert inside is not None
    assert between is not None
    assert (inside.gb_s, between.gb_s) == (12, 6.25)


def test_a_site_that_says_nothing_has_no_links_no_prices_and_no_calibration(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    assert site.link("v100", "between") is None
    assert site.price_gpu_hour("v100") is None
    assert (site.pue, site.carbon, site.calibration) == (None, None, {})


def test_a_types_own_price_replaces_the_sites(tmp_path: Path) -> None:
    types = {"gpus": {"v100": {**GPUS["v100"], "price_gpu_hour": 0.0}, "a100": GPUS["a100"]}}
    site = make_site(tmp_path, prices={**PRICES, "gpu_hour": 1.5}, **types)
    assert (site.price_gpu_hour("v100"), site.price_gpu_hour("a100")) == (0.0, 1.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prices": {**PRICES, "kwh": -0.3}}, "prices.kwh: found -0.3; expected at least 0"),
        ({"prices": {**PRICES, "gpu_hour": -1}}, "prices.gpu_hour: found -1; expected at least 0"),
        (
            {"prices": {**PRICES, "currency": "Euro"}},
            "prices.currency: found 'Euro'; expected three capital letters such as EUR",
        ),
        (
            {"prices": {**PRICES, "currency": "usd"}},
            "prices.currency: found 'usd'; expected three capital letters such as EUR; did you mean 'USD'?",
        ),
        (
            {"prices": {**PRICES, "gpu_hour": 1.0e308}},
            "prices.gpu_hour: found 1e+308; expected at most 100000000.0",
        ),
        ({"prices": {**PRICES, "kwh": 1e9}}, "prices.kwh: found 1000000000.0; expected at most 100000000.0"),
        (
            {"prices": PRICES, **gpu(price_gpu_hour=1e9)},
            "gpus.v100.price_gpu_hour: found 1000000000.0; expected at most 100000000.0",
        ),
        ({"pue": 130}, "pue: found 130; expected at most 10.0"),
        (
            {"carbon": {**CARBON, "g_per_kwh": 380_000}},
            "carbon.g_per_kwh: found 380000; expected at most 5000.0",
        ),
        (
            {"prices": {"currency": "EUR", "kwh": 0.3}},
            "prices.source: is missing; expected: Where the prices come from, and of when",
        ),
        (
            {"prices": PRICES, **gpu(price_gpu_hour=-2)},
            "gpus.v100.price_gpu_hour: found -2; expected at least 0",
        ),
        (
            gpu(price_gpu_hour=2),
            "gpus.v100.price_gpu_hour: found a price and no `prices`; expected "
            "prices: {currency: …, source: …} in the site, which says what of and from where",
        ),
        ({"pue": 0.9}, "pue: found 0.9; expected at least 1"),
        ({"carbon": {**CARBON, "g_per_kwh": -1}}, "carbon.g_per_kwh: found -1; expected at least 0"),
        (
            {"links": {"between": {**BETWEEN, "gb_s": 0}}},
            "links.between.gb_s: found 0; expected more than 0",
        ),
        (
            {"links": {"betwen": BETWEEN}},
            "links.betwen: unknown key; did you mean 'between'?; allowed: between, inside",
        ),
        (
            gpu(links={"inside": {"gb_s": 12, "latency_us": 4}}),
            "gpus.v100.links.inside.source: is missing; expected: Where the figures come from: a data sheet, "
            "or how they were measured",
        ),
        (
            {"calibration": {"v100": CALIBRATION}},
            "calibration.v100: found 'v100'; expected a GPU type and an engine with / between them, e.g. "
            "v100/reference",
        ),
    ],
)
def test_a_mistake_gets_one_message(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SiteError) as caught:
        make_site(tmp_path, **changes)
    assert str(caught.value) == f"site.yaml: {message}"


def test_a_calibration_is_read_from_beside_the_sites_file(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "site.yaml", site_content(tmp_path))
    assert load_site([path]).calibration == {}
    write_yaml(tmp_path / "site.calibration.yaml", calibrated())
    found = load_site([path]).calibration["v100/reference"]
    assert (found.compute, found.fitted_on, found.spread) == (
        0.5,
        date(2026, 3, 1),
        {"duration_s": (0.9, 1.2)},
    )
    assert Calibration.model_validate_json(found.model_dump_json()) == found


def test_a_cell_outside_of_what_was_measured_is_told_in_what() -> None:
    """A calibration without the range says nothing; with it each of a cell's axes is compared."""
    assert Calibration.model_validate(CALIBRATION).measured is None
    range_ = {"models": ["llama-7b", "llama-13b"], "shards": (2, 2), "batch": (1, 64), "length": (256, 512)}
    measured = Calibration.model_validate({**CALIBRATION, "measured": range_}).measured
    assert measured is not None
    within = make_cell(model="llama-13b", shards=2, batch=64, length=256)
    assert measured.outside(within) == []
    other = replace(within, precision="bf16", dataset="gsm8k", cap="100")
    assert measured.outside(other) == [], "a file that does not say them is read, and they are not compared"
    beyond = replace(within, model="llama-65b", shards=8, batch=128, length=255)
    assert measured.outside(beyond) == [
        "model llama-65b (llama-7b, llama-13b)", "shards 8 (2)", "batch 128 (1 to 64)",
        "length 255 (256 to 512)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        ({"cap": "175"}, []),
        ({"cap": "100"}, ["cap 100 (150, 200)"]),
        ({"cap": "none"}, ["cap none (150, 200)"]),
        ({"precision": "bf16"}, ["precision bf16 (fp16)"]),
        ({"dataset": "gsm8k"}, ["dataset gsm8k (alpaca)"]),
    ],
)
def test_precision_data_set_and_cap_are_compared_where_they_are_known(
    changes: dict[str, Any], said: list[str]
) -> None:
    measured = Measured(
        models=["llama-7b"], precisions=["fp16"], datasets=["alpaca"], caps=["150", "200"],
        shards=(1, 1), batch=(1, 1), length=(32, 32),
    )  # fmt: skip
    within = make_cell(model="llama-7b", shards=1, batch=1, length=32, cap="150")
    assert measured.outside(replace(within, **changes)) == said


def test_a_calibration_beside_a_later_file_replaces_entries_of_earlier_ones(tmp_path: Path) -> None:
    first = write_yaml(tmp_path / "site.yaml", {**site_content(tmp_path), **calibrated(compute=0.1)})
    second = write_yaml(tmp_path / "mine.yaml", {"name": "mine"})
    write_yaml(calibration_file(first), {"calibration": {"a100/fast": CALIBRATION}})
    write_yaml(calibration_file(second), calibrated(compute=0.8))
    found = load_site([first, second]).calibration
    assert {key: one.compute for key, one in found.items()} == {"v100/reference": 0.8, "a100/fast": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            calibrated(compute=-0.5),
            r"calibration\.v100/reference\.compute: found -0\.5; expected more than 0",
        ),
        (
            calibrated(spread={"duration_s": [1.2, 0.9]}),
            r"calibration\.v100/reference\.spread\.duration_s: expected the lower end first",
        ),
        (
            {**calibrated(), "name": "mine"},
            r"name: unknown key; allowed: calibration",
        ),
        (calibrated(network=12.0), r"calibration\.v100/reference\.network: found 12\.0; expected at most 10"),
        ({**calibrated(), "schema_version": 2}, r"schema_version: found 2; expected 1"),
        (
            {"calibration": {"v10/reference": CALIBRATION}},
            r"calibration\.v10/reference: 'v10' is no GPU type of the site; did you mean 'v100'\?; expected",
        ),
        (
            {"calibration": {"v100/referense": CALIBRATION}},
            r"calibration\.v100/referense: 'referense' is no engine; did you mean 'reference'\?; expected",
        ),
        (
            {"calibration": {"v100/simulated": CALIBRATION}},
            r"calibration\.v100/simulated: 'simulated' is no engine; expected one of reference, "
            r"reference-v2, fast, fast-drop, fast-refill, hf: ",
        ),
    ],
)
def test_a_damaged_calibration_is_named_with_its_file(
    tmp_path: Path, content: dict[str, Any], message: str
) -> None:
    path = write_yaml(tmp_path / "site.yaml", site_content(tmp_path))
    write_yaml(calibration_file(path), content)
    with pytest.raises(SiteError, match=rf"^{calibration_file(path)}: {message}"):
        load_site([path])


def test_a_calibration_in_the_site_itself_is_checked_alike(tmp_path: Path) -> None:
    content = {**site_content(tmp_path), "calibration": {"h100/reference": CALIBRATION}}
    path = write_yaml(tmp_path / "site.yaml", content)
    with pytest.raises(SiteError, match=r"calibration\.h100/reference: 'h100' is no GPU type of the site"):
        load_site([path])
    write_yaml(path, site_content(tmp_path))
    write_yaml(calibration_file(path), {"schema_version": 1, **calibrated()})
    assert list(load_site([path]).calibration) == ["v100/reference"]
