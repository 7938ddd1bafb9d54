"""Guards the checks of the plan's models: their bounds, their physics, and the page of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.positions import need, table_2_positions
from shardwatt.plan.published import A100, V100, published
from shardwatt.plan.reckoning import SITE, TOGETHER, Run
from shardwatt.plan.verification import (
    TABLE_3_READINGS,
    CheckRow,
    Reckon,
    calibrated_power,
    predictor,
    verification,
)
from shardwatt.plan.verificationpage import with_checks
from shardwatt.study import Study
from small_project import study_content
from synthetic_cells import make_cell

ROOT = Path(__file__).parents[2]
ETHERNET, BURSTS, NVLINK, CALIBRATED = TABLE_3_READINGS

#: What the two tables print of memory: Table V a mean, as it is taken, and Table IV a maximum.
MEMORY_ACTIVITY = ("memory_activity_percent", "memory_activity_max_percent")


@pytest.fixture(scope="module")
def rows() -> list[CheckRow]:
    return verification(ROOT)


@pytest.fixture(scope="module")
def reckoned() -> Reckon:
    return predictor(ROOT)


def test_the_page_shows_what_the_models_say_now() -> None:
    """`python -m shardwatt.plan.verificationpage docs/plan.md` writes it."""
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    assert with_checks(page, ROOT) == page


def test_table_2_comes_out_but_for_small_models_on_a100s(rows: list[CheckRow]) -> None:
    of_table = [row for row in rows if row.section == "Table II"]
    assert len(of_table) == 12
    asked = [row for row in of_table if row.bound is not None]
    assert len(asked) == 10
    assert all(row.is_met for row in asked)
    more = {row.published.model: row.predicted for row in of_table if row.bound is None}
    assert more == {"llama-7b": 128, "llama-13b": 128}


def test_every_published_value_is_checked_but_inverses(rows: list[CheckRow]) -> None:
    checked = {row.published for row in rows}
    for where in ("Table II", "Table III", "Table IV", "Table V", "findings", "ML.ENERGY"):
        wanted = {one for one in published(where) if one.quantity != "token_rate_change_percent"}
        assert wanted <= checked


def test_deviations_are_in_points_relative_or_nothing_inside_a_range(rows: list[CheckRow]) -> None:
    by = {row.published.quantity: row for row in rows}
    change = replace(by["energy_change_percent"], predicted=-20.0)
    assert change.deviation == pytest.approx(-20 - change.published.value)
    power = replace(by["power_w"], predicted=1.5 * by["power_w"].published.value)
    assert power.deviation == pytest.approx(50)
    of_range = by["energy_per_token_j"]
    inside = replace(of_range, published=replace(of_range.published, low=3.0, high=4.0), predicted=3.9)
    assert inside.deviation == 0
    assert replace(inside, predicted=5.0).deviation == pytest.approx(25)


def test_a_bound_is_met_or_missed_by_the_size_of_the_deviation(rows: list[CheckRow]) -> None:
    row = next(row for row in rows if row.section == "Table III")
    value = row.published.value
    assert replace(row, bound=5.0, predicted=value - 5).is_met
    assert replace(row, bound=5.0, predicted=value + 5.1).is_met is False
    assert replace(row, bound=None).is_met is None


def test_what_is_looked_at_is_not_called_a_check(rows: list[CheckRow]) -> None:
    """All readings of Table III but the first were thought of after its first rows; Table II chose T, and
    Table IV that it is the same for longer lengths."""
    by_role = {role: [row for row in rows if row.role == role] for role in {row.role for row in rows}}
    assert set(by_role) == {
        *("checks", "chooses T", "chooses T for longer lengths", "chooses the reading"),
        *("calibrates", "was weighed"),
    }
    longer = by_role["chooses T for longer lengths"]
    assert [(row.published.where, row.published.length) for row in longer] == [
        ("Table IV", 512), ("Table IV", 1024), ("Table IV", 2048)
    ]  # fmt: skip
    assert all(row.published.quantity in MEMORY_ACTIVITY and row.bound is None for row in longer)
    assert all(abs((row.planned or 0) - row.published.value) > 5 for row in longer), "no other T gives them"
    chosen = by_role["chooses the reading"]
    assert {(row.published.length, row.on) for row in chosen} == {
        (256, BURSTS), (256, NVLINK), (256, CALIBRATED)
    }  # fmt: skip
    assert len(chosen) == 12
    assert all(row.bound == 0 and row.section == "Table II" for row in by_role["chooses T"])
    assert len(by_role["chooses T"]) == 10
    (weighed,) = by_role["was weighed"]
    assert (weighed.published.quantity, weighed.section) == ("power_w", "Measurements of others")


def test_one_row_calibrates_and_comes_out_by_itself(rows: list[CheckRow]) -> None:
    (one,) = (row for row in rows if row.role == "calibrates")
    assert (one.published.quantity, one.published.length, one.published.cap_w) == (
        "energy_change_percent", 512, 175
    )  # fmt: skip
    assert one.on == CALIBRATED
    assert one.predicted == pytest.approx(one.published.value, abs=1e-4)
    assert one.bound is None, "what it was fitted to is no check"


def test_table_2_comes_out_for_the_positions_that_are_named_and_no_others() -> None:
    least, most = table_2_positions()

    def comes_out(positions: int) -> bool:
        def fits(model: str, shards: int, batch: int, gpu: str) -> bool:
            has_gib = {V100: 32, A100: 80}[gpu]
            return need(model, shards, batch, positions).total_gib <= has_gib

        one_gpu = fits("llama-7b", 1, 64, V100) and not fits("llama-7b", 1, 128, V100)
        two = fits("llama-13b", 2, 64, V100) and not fits("llama-13b", 2, 128, V100)
        two = two and not fits("llama-13b", 1, 64, V100)
        eight = fits("llama-65b", 8, 64, V100) and not fits("llama-65b", 8, 128, V100)
        eight = eight and not fits("llama-65b", 4, 64, V100)
        small = fits("llama-7b", 1, 64, A100) and fits("llama-13b", 1, 64, A100)
        four = fits("llama-65b", 4, 128, A100) and not fits("llama-65b", 4, 256, A100)
        return one_gpu and two and eight and small and four and not fits("llama-65b", 2, 64, A100)

    assert [comes_out(positions) for positions in (least - 1, least, 512, most, most + 1)] == [
        False, True, True, True, False
    ]  # fmt: skip


def test_rows_of_lengths_from_512_on_are_one_prediction(rows: list[CheckRow]) -> None:
    """At T = 512: eight predictions in twelve rows, and five in the seven rows of memory activity."""
    for on in TABLE_3_READINGS:
        found = [row for row in rows if row.on == on]
        assert len({(row.published.quantity, row.published.cap_w, row.driver) for row in found}) <= 8
        for one in (row for row in found if row.published.length == 512):
            (other,) = (
                row
                for row in found
                if row.published.length == 1024
                and (row.published.quantity, row.published.cap_w)
                == (one.published.quantity, one.published.cap_w)
            )
            assert other.predicted == one.predicted
    activity = [row for row in rows if row.published.quantity in MEMORY_ACTIVITY]
    assert (len(activity), len({row.predicted for row in activity})) == (7, 5)
    checking = [row for row in activity if row.role == "checks"]
    assert (len(checking), len({row.predicted for row in checking})) == (4, 4), (
        "as README and docs count them"
    )


def test_findings_are_shown_with_the_positions_of_a_plan_too(rows: list[CheckRow], reckoned: Reckon) -> None:
    found = [row for row in rows if row.section == "Findings in words"]
    assert all(row.planned is not None for row in found)
    (one,) = (row for row in found if row.published.quantity == "energy_per_token_j")
    planned = Run("llama-65b", V100, 8, 64, 512, ("alpaca", "gsm8k"), 250, cache_tokens=None)
    assert one.planned == reckoned(planned).energy_per_token_j
    assert one.planned > one.predicted, "more positions, for the same tokens"


def test_memory_activity_halves_as_shards_double(reckoned: Reckon) -> None:
    """Table V: a rank's traffic halves while the step, which collectives fill, stays as long."""
    runs = [Run("llama-65b", V100, shards, 64, 256, ("gsm8k",), 250) for shards in (8, 16, 32)]
    shares = [reckoned(run).memory_share for run in runs]
    assert 1.6 < shares[0] / shares[1] < 2.2
    assert 1.6 < shares[1] / shares[2] < 2.2


def test_what_collectives_take_is_told_apart_from_what_their_bytes_take(
    rows: list[CheckRow], reckoned: Reckon
) -> None:
    """Latency is an assumption, the bandwidth is that of Table I: they are no one figure."""
    for row in (row for row in rows if row.published.where == "Table V"):
        found = reckoned(Run("llama-65b", V100, row.published.shards or 0, 64, 256, ("alpaca", "gsm8k"), 250))
        assert 0.5 * found.collective_share < found.transfer_share < 0.9 * found.collective_share
        assert (
            f"collectives {found.collective_share:.0%} (transfer alone {found.transfer_share:.0%})"
            in row.driver
        )


def test_a_card_draws_less_with_more_shards_and_all_together_more(reckoned: Reckon) -> None:
    found = [reckoned(Run("llama-65b", V100, shards, 64, 512, ("gsm8k",), 250)) for shards in (8, 16, 32)]
    assert found[0].gpu_w > found[1].gpu_w > found[2].gpu_w
    assert found[0].power_w < found[1].power_w < found[2].power_w
    assert found[0].energy_per_token_j < found[1].energy_per_token_j < found[2].energy_per_token_j


@pytest.mark.parametrize(("gpu", "shards", "cap_w"), [(V100, 8, 250), (TOGETHER, 4, 150)])
def test_what_is_checked_is_what_a_plan_forecasts(
    reckoned: Reckon, gpu: str, shards: int, cap_w: int
) -> None:
    run = Run("llama-65b", gpu, shards, 64, 256, ("gsm8k",), cap_w)
    checked = reckoned(run)
    study = Study(**study_content(prompts=run.prompts, cache_tokens=run.cache_tokens))
    on_nodes = SITE.model_copy(update={"launcher": "slurm"})
    cell = make_cell(model=run.model, gpu=gpu, shards=shards, batch=64, dataset="gsm8k", cap=str(cap_w))
    planned = Forecaster(ROOT, "paper", study, on_nodes).cell(cell)
    assert planned.duration_s == pytest.approx(checked.duration_s)
    assert planned.energy_j == pytest.approx(checked.energy_j)
    assert planned.output_tokens == checked.output_tokens
    assert planned.nodes == shards // SITE.gpus[gpu].per_node


def test_rows_of_a_server_are_of_its_steady_state(rows: list[CheckRow], reckoned: Reckon) -> None:
    """Its last rows run out alone; ten times as many prompts change nothing."""
    one = next(one for one in published("ML.ENERGY") if one.batch == 512 and one.quantity == "step_s")
    run = Run(one.model, one.gpu, 1, 512, one.length, ("chat",), None, "fast-refill", "bf16", None)
    (row,) = (row for row in rows if row.published == one)
    steady = reckoned(replace(run, prompts=10_000 * 512)).step_s
    assert row.predicted == pytest.approx(steady, rel=0.01)


def test_caps_cost_cards_that_wait_for_the_network_nothing(reckoned: Reckon) -> None:
    free, capped = (reckoned(Run("llama-65b", A100, 4, 64, 256, ("gsm8k",), cap_w)) for cap_w in (250, 175))
    assert free.gpu_w < 175
    assert capped.duration_s == free.duration_s


def test_caps_slow_cards_that_read_memory_all_the_time(reckoned: Reckon) -> None:
    found = [reckoned(Run("llama-65b", TOGETHER, 4, 64, 256, ("gsm8k",), cap_w)) for cap_w in (250, 175, 150)]
    assert found[0].duration_s < found[1].duration_s < found[2].duration_s
    assert found[0].energy_j > found[1].energy_j > found[2].energy_j
    assert found[0].clock > found[1].clock > found[2].clock


def test_table_3_comes_out_on_fast_links_but_for_two_times_at_150_w(rows: list[CheckRow]) -> None:
    """Those two are short by less than 8 points; docs/plan.md says why."""
    found = [row for row in rows if row.on == NVLINK]
    assert len(found) == 12
    missed = {row.published for row in found if not row.is_met}
    late = published("Table III", "duration_change_percent")
    assert missed == {one for one in late if one.cap_w == 150 and one.length != 256}
    assert all(abs(row.deviation) < 8 for row in found)


def test_table_3_comes_out_on_fast_links_with_power_calibrated_on_one_row(
    rows: list[CheckRow], reckoned: Reckon
) -> None:
    found = [row for row in rows if row.on == CALIBRATED]
    assert len(found) == 12
    assert all(row.is_met for row in found if row.role != "calibrates")
    assert 1 < calibrated_power(reckoned) < 1.05, "close to what is assumed"


def test_table_3_does_not_come_out_on_the_network_of_table_1(rows: list[CheckRow]) -> None:
    found = [row for row in rows if row.on == ETHERNET]
    assert len(found) == 12
    assert not any(row.is_met for row in found)


def test_memory_activity_and_ratios_of_throughput_come_out(rows: list[CheckRow]) -> None:
    """The mean that is predicted, beside a maximum in Table IV."""
    activity = [row for row in rows if row.published.quantity in MEMORY_ACTIVITY and row.role == "checks"]
    assert {row.published.length for row in activity} == {256}, "T = 512 was read off the longer ones"
    assert all(abs(row.deviation) < 2 for row in activity)
    maxima = {row.published.where for row in rows if row.published.quantity == MEMORY_ACTIVITY[1]}
    assert maxima == {"Table IV"}
    ratios = [row for row in rows if row.published.quantity == "throughput_ratio"]
    assert len(ratios) == 3
    assert all(abs(row.deviation) < 10 for row in ratios)


def test_a_limiter_that_sees_bursts_saves_what_table_3_says_but_costs_less_time(rows: list[CheckRow]) -> None:
    found = [row for row in rows if row.on == BURSTS]
    assert len(found) == 12
    energy = [row for row in found if row.published.quantity == "energy_change_percent"]
    assert all(abs(row.deviation) < 3 for row in energy if row.published.cap_w == 175)
    time = [row for row in found if row.published.quantity == "duration_change_percent"]
    assert all(row.deviation < 0 for row in time)
