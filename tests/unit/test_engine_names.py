"""Guards the names of engines: each that runs models has one simulated counterpart, alike in all but that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardwatt.cell import is_axis_value
from shardwatt.engines import ENGINES, MODEL_ENGINES, loop_of, simulated_counterpart

SIMULATED = [name for name, facts in ENGINES.items() if facts.simulates is not None]


@pytest.mark.parametrize("name", MODEL_ENGINES)
def test_a_simulated_engine_has_the_facts_of_the_one_that_it_stands_for(name: str) -> None:
    simulated = ENGINES[simulated_counterpart(name)]
    assert simulated.simulates == name
    assert replace(simulated, about="", simulates=None) == replace(MODEL_ENGINES[name], about="")
    assert name in simulated.about


def test_names_of_simulated_engines_say_that_they_are() -> None:
    assert simulated_counterpart("reference") == "simulated"
    assert simulated_counterpart("reference-v2") == "simulated-reference-v2"
    assert len(SIMULATED) == len(MODEL_ENGINES) == len(ENGINES) / 2
    assert all(name.startswith("simulated") and is_axis_value("engine", name) for name in SIMULATED)


@pytest.mark.parametrize("name", [*SIMULATED, "fats"])
def test_what_is_simulated_or_unknown_has_no_other_counterpart(name: str) -> None:
    assert simulated_counterpart(name) == name


def test_an_engine_is_paced_by_itself_or_by_the_one_that_it_stands_for() -> None:
    assert {loop_of(name) for name in SIMULATED} == set(MODEL_ENGINES)
    assert all(loop_of(name) == name for name in MODEL_ENGINES)
