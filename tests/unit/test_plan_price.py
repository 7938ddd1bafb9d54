"""Guards what joules and GPU hours cost and emit: against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shardwatt.plan.price import allocation_energy_j, carbon_kg, cost, supplied_kwh
from shardwatt.site import Site

PRICES = {"currency": "EUR", "kwh": 0.20, "source": "a bill of 2026"}
CARBON = {"g_per_kwh": 380.0, "source": "a grid's operator", "year": 2025}


def site(gpu: dict[str, Any] | None = None, **keys: Any) -> Site:
    gpus = {"a100": {"kind": "cuda", "per_node": 2, "memory_gib": 80, **(gpu or {})}}
    return Site.model_validate(
        {"name": "here", "launcher": "local", "models": Path("m"), "data": Path("d"), "gpus": gpus, **keys}
    )


def test_a_kwh_is_3_6_megajoules_times_what_the_centre_takes_beside() -> None:
    assert supplied_kwh(3.6e6, 1.0) == 1
    assert supplied_kwh(36e6, 1.25) == 12.5


def test_a_job_takes_its_window_and_rest_for_all_other_device_time() -> None:
    """Four GPUs held for 100 s, of which two work for 60 s: 280 s of rest at 25 W."""
    assert allocation_energy_j(9000.0, 25.0, held_s=4 * 100.0, used_s=2 * 60.0) == 9000 + 280 * 25


def test_electricity_costs_kwh_times_pue_times_price() -> None:
    of = site(prices=PRICES, pue=1.3)
    assert cost(of, "a100", device_hours=5.0, energy_j=7.2e6) == pytest.approx(2 * 1.3 * 0.20)


def test_a_price_of_gpu_hours_takes_the_place_of_electricity() -> None:
    of = site(prices={**PRICES, "gpu_hour": 1.5}, pue=1.3)
    assert cost(of, "a100", device_hours=8.0, energy_j=7.2e6) == 12
    assert cost(of, "a100", device_hours=8.0, energy_j=None) == 12


def test_a_gpu_types_own_price_comes_before_the_sites() -> None:
    of = site({"price_gpu_hour": 2.0}, prices={**PRICES, "gpu_hour": 1.5})
    assert cost(of, "a100", device_hours=8.0, energy_j=None) == 16


def test_a_price_of_nothing_is_a_price() -> None:
    assert cost(site(prices={**PRICES, "gpu_hour": 0.0}), "a100", device_hours=8.0, energy_j=None) == 0


def test_processors_have_no_price_of_a_gpu_hour_but_their_own_or_that_of_electricity() -> None:
    """Zero would be a price; device hours of processors are of their shares of a machine."""
    cpu, hourly = {"kind": "cpu"}, {**PRICES, "gpu_hour": 1.5}
    of_energy = cost(site(cpu, prices=hourly, pue=1.3), "a100", device_hours=8.0, energy_j=7.2e6)
    assert of_energy == pytest.approx(2 * 1.3 * 0.20)
    unknown = site(cpu, prices={**hourly, "kwh": None})
    assert cost(unknown, "a100", device_hours=8.0, energy_j=7.2e6) is None
    own = site({**cpu, "price_gpu_hour": 0.1}, prices=hourly, pue=1.3)
    assert cost(own, "a100", device_hours=8.0, energy_j=7.2e6) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("keys", "hours", "joules"),
    [
        ({}, 8.0, 1e6),
        ({"prices": PRICES}, 8.0, 1e6),
        ({"prices": PRICES, "pue": 1.2}, 8.0, None),
        ({"prices": {**PRICES, "gpu_hour": 1.5}, "pue": 1.2}, None, 1e6),
    ],
    ids=["no prices", "no PUE", "no joules", "no hours"],
)
def test_what_is_not_known_has_no_cost_and_never_a_cost_of_nothing(
    keys: dict[str, Any], hours: float | None, joules: float | None
) -> None:
    assert cost(site(**keys), "a100", device_hours=hours, energy_j=joules) is None


def test_carbon_is_kwh_times_pue_times_grams_over_1000() -> None:
    assert carbon_kg(site(pue=1.5, carbon=CARBON), 36e6) == pytest.approx(10 * 1.5 * 380 / 1000)


def test_without_pue_factor_or_joules_no_carbon_is_named() -> None:
    assert carbon_kg(site(carbon=CARBON), 1e6) is None
    assert carbon_kg(site(pue=1.5), 1e6) is None
    assert carbon_kg(site(pue=1.5, carbon=CARBON), None) is None


@pytest.mark.parametrize(
    "keys",
    [
        {"prices": {**PRICES, "kwh": -0.1}},
        {"prices": {**PRICES, "gpu_hour": -1.0}},
        {"carbon": {**CARBON, "g_per_kwh": -5.0}},
        {"pue": 0.9},
    ],
    ids=["kwh", "gpu_hour", "carbon", "pue"],
)
def test_negative_prices_and_a_pue_below_one_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        site(**keys)
