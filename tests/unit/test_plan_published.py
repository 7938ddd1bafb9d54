"""Guards the published values: against the tables as they are printed, and against being fitted to."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shardwatt.plan
from shardwatt.architectures import CATALOGUE
from shardwatt.datasheets import DATA_SHEETS
from shardwatt.plan.published import A100, PUBLISHED, V100, implied_power_ratio, published

PLAN = Path(shardwatt.plan.__file__).parent


def test_table_2_is_as_printed() -> None:
    found = {(one.model, one.gpu, one.quantity): one.value for one in published("Table II")}
    assert found == {
        ("llama-7b", V100, "fewest_gpus"): 1,
        ("llama-7b", V100, "largest_batch"): 64,
        ("llama-13b", V100, "fewest_gpus"): 2,
        ("llama-13b", V100, "largest_batch"): 64,
        ("llama-65b", V100, "fewest_gpus"): 8,
        ("llama-65b", V100, "largest_batch"): 64,
        ("llama-7b", A100, "fewest_gpus"): 1,
        ("llama-7b", A100, "largest_batch"): 64,
        ("llama-13b", A100, "fewest_gpus"): 1,
        ("llama-13b", A100, "largest_batch"): 64,
        ("llama-65b", A100, "fewest_gpus"): 4,
        ("llama-65b", A100, "largest_batch"): 128,
    }


def test_table_3_agrees_with_itself_and_with_the_averages_in_words() -> None:
    """Token rates are the inverse of times; in words: 175 W +6.7 and -23.2 %, 150 W +19.5 and -34 %."""

    def mean(quantity: str, cap_w: int) -> float:
        found = [
            one.value for one in published("Table III") if (one.quantity, one.cap_w) == (quantity, cap_w)
        ]
        assert len(found) == 3
        return sum(found) / 3

    assert mean("duration_change_percent", 175) == pytest.approx(6.7, abs=0.05)
    assert mean("energy_change_percent", 175) == pytest.approx(-23.2, abs=0.05)
    assert mean("duration_change_percent", 150) == pytest.approx(19.5, abs=0.1)
    assert mean("energy_change_percent", 150) == pytest.approx(-34, abs=0.1)
    rates = {
        (one.cap_w, one.length): one.value for one in published("Table III", "token_rate_change_percent")
    }
    for one in published("Table III", "duration_change_percent"):
        inverse = 100 * (1 / (1 + one.value / 100) - 1)
        assert rates[one.cap_w, one.length] == pytest.approx(inverse, abs=0.2)


def test_the_rows_of_table_3_imply_less_power_at_150_w_than_the_cap_allows() -> None:
    assert [implied_power_ratio(150, length) for length in (256, 512, 1024)] == pytest.approx(
        [0.583, 0.537, 0.538], abs=5e-4
    )
    assert all(implied_power_ratio(150, length) < 150 / 250 for length in (256, 512, 1024))
    assert all(implied_power_ratio(175, length) > 175 / 250 for length in (256, 512, 1024))


def test_tables_4_and_5_are_as_printed() -> None:
    memory = [one.value for one in published("Table IV", "memory_activity_max_percent")]
    busy = [one.value for one in published("Table IV", "sm_utilisation_percent")]
    assert (memory, busy) == ([23.36, 24.54, 24.85, 27.00], [95.00, 98.81, 98.85, 98.00])
    five = {one.shards: one.value for one in published("Table V", "memory_activity_percent")}
    assert five == {8: 24.25, 16: 13.33, 32: 6.66}


def test_every_value_says_of_what_and_by_whom() -> None:
    assert len(PUBLISHED) == len(set(PUBLISHED))
    for one in PUBLISHED:
        assert one.source
        assert one.model in CATALOGUE
        assert one.gpu in DATA_SHEETS
        assert one.low <= one.value <= one.high


def test_a_table_that_nobody_published_is_an_error_with_those_there_are() -> None:
    with pytest.raises(KeyError, match="Table II"):
        published("Table VI")


#: What compares the models with the published values; every other module of the plan is of the models.
COMPARING = {"positions", "published", "reckoning", "verification", "verificationpage"}


@pytest.mark.parametrize("module", sorted({path.stem for path in PLAN.glob("*.py")} - COMPARING))
def test_no_model_knows_what_it_is_checked_against(module: str) -> None:
    """What a model imports, it may have been fitted to."""
    tree = ast.parse((PLAN / f"{module}.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {f"shardwatt.plan.{name}" for name in COMPARING}
