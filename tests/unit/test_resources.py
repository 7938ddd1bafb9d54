"""Guards what a cell's job asks for: per attempt, in the plan's words, and within what is agreed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shardwatt.cell import Cell
from shardwatt.errors import SiteError
from shardwatt.plan.cellforecast import CellForecast, PhaseForecast
from shardwatt.plan.memory import MemoryNeed
from shardwatt.plan.rehearsal import own_job, played
from shardwatt.plan.warned import Warned
from shardwatt.resources import (
    agreed_gpu_hours,
    budget,
    cell_resources,
    describe_job,
    resource_names,
)
from shardwatt.study import Study
from slurm_site import V100, slurm_cell, slurm_site
from small_project import study_content


def words(**changes: Any) -> dict[str, Any]:
    return {**V100, **changes}


def test_a_job_asks_for_what_the_site_says() -> None:
    assert cell_resources(slurm_site(words(account="acc", qos="q", constraint="a&b")), slurm_cell(8), 1) == {
        "mpi": "",
        "slurm_partition": "v100",
        "slurm_account": "acc",
        "qos": "q",
        "constraint": "a&b",
        "nodes": 4,
        "cpus_per_task": 8,
        "gres": "gpu:v100:2",
        "mem_mb": 65536,
        "runtime": 60,
        "slurm_extra": "--exclusive --signal=TERM@60 --open-mode=append --exclude=",
    }


def test_what_a_site_leaves_out_is_absent_and_not_empty() -> None:
    found = cell_resources(slurm_site({}), slurm_cell(2), 1)
    assert set(found) == {"mpi", "nodes", "tasks", "cpus_per_task", "runtime", "slurm_extra"}
    assert found["runtime"] == 120


@pytest.mark.parametrize(
    "types", [V100, words(account="a", qos="q", constraint="c"), {}, {"gres": "gpu", "exclusive": False}]
)
def test_the_rule_asks_for_what_a_type_has_and_nothing_else(types: dict[str, Any]) -> None:
    site = slurm_site(types)
    given = {name for gpu in site.gpus for name in cell_resources(site, slurm_cell(2, gpu), 1)}
    assert set(resource_names(site)) == given


@pytest.mark.parametrize(
    ("attempt", "mem_mb", "runtime"), [(1, 65536, 60), (2, 98304, 120), (3, 131072, 200), (9, 131072, 200)]
)
def test_memory_and_time_grow_with_attempts_up_to_what_there_is(
    attempt: int, mem_mb: int, runtime: int
) -> None:
    found = cell_resources(slurm_site(), slurm_cell(2), attempt)
    assert (found["mem_mb"], found["runtime"]) == (mem_mb, runtime)


def test_nothing_grows_where_the_most_is_not_known() -> None:
    site = slurm_site(words(memory_per_node_max_gib=None, runtime_max_min=None))
    assert cell_resources(site, slurm_cell(2), 3) == cell_resources(site, slurm_cell(2), 1)


@pytest.mark.parametrize(("stop_s", "signal_s"), [(120.0, 60), (200.0, 100), (20.0, 10), (1.5, 1)])
def test_slurms_warning_comes_after_the_supervisors_own_end(stop_s: float, signal_s: int) -> None:
    extra = str(cell_resources(slurm_site(stop_before_limit_s=stop_s), slurm_cell(1), 1)["slurm_extra"])
    assert f"--signal=TERM@{signal_s}" in extra.split()
    # Slurm may be 60 s early.
    assert stop_s < 120 or signal_s + 60 <= stop_s


def test_a_sites_own_excluded_nodes_are_the_last_word() -> None:
    extra = str(cell_resources(slurm_site(words(extra=["--exclude=n3"])), slurm_cell(1), 1)["slurm_extra"])
    assert [word for word in extra.split() if word.startswith("--exclude")] == ["--exclude=n3"]


def test_the_plan_says_where_and_how_long_in_one_line() -> None:
    first, second = describe_job(slurm_site(), "paper", slurm_cell(8), 1).splitlines()
    assert first == "paper: 4 nodes x 2 v100, partition v100, time 1:00 h, 64 GiB a node"
    assert second.strip() == slurm_cell(8).path
    retry = describe_job(slurm_site({"exclusive": False, "gres": "gpu"}), "paper", slurm_cell(1), 2)
    assert retry.startswith(
        "paper: 1 node x 1 v100, partition (the default one), time 2:00 h, nodes shared, attempt 2\n"
    )


@pytest.mark.parametrize(
    ("changes", "shards", "hours"),
    [
        ({}, 8, 8.0),
        ({}, 1, 2.0),  # the node's other GPU is held too
        ({"exclusive": False}, 1, 1.0),
        ({"runtime_min": 30}, 8, 4.0),
    ],
)
def test_gpu_hours_count_every_gpu_that_is_held(changes: dict[str, Any], shards: int, hours: float) -> None:
    site = slurm_site(words(**changes))
    assert budget(site, [("paper", slurm_cell(shards))], None).gpu_hours == hours


def test_a_processor_takes_no_gpu_hours() -> None:
    assert budget(slurm_site(), [("paper", slurm_cell(2, "cpu"))], None).gpu_hours == 0


def test_a_budget_is_the_sum_over_the_cells() -> None:
    planned = budget(slurm_site(), [("paper", slurm_cell(shards)) for shards in (1, 2, 4, 8)], 20.0)
    assert planned.gpu_hours == 2 + 2 + 4 + 8
    assert str(planned) == (
        "4 cells to submit, at most 16 GPU hours at the first attempt (max_gpu_hours: 20)"
    )
    planned.check()


def test_more_than_agreed_is_refused_with_what_takes_it() -> None:
    planned = budget(slurm_site(), [("paper", slurm_cell(8 if n == 7 else 1)) for n in range(12)], 20.0)
    assert str(planned).endswith(": more than max_gpu_hours, 20; a run will be refused")
    with pytest.raises(SiteError) as caught:
        planned.check()
    assert str(caught.value).splitlines() == [
        "this run may take 30 GPU hours, and max_gpu_hours is 20; nothing was submitted. Ask for fewer "
        "targets, lower runtime_factor and runtime_floor_min (runtime_min where the plan does not set the "
        "limit), or agree to more for this run: --config max_gpu_hours=N, last on the line",
        "    22 h: 11 x paper: llama-65b on 1 node x 1 v100",
        "    8 h: 1 x paper: llama-65b on 4 nodes x 2 v100",
    ]


def test_without_a_limit_nothing_is_refused() -> None:
    planned = budget(slurm_site(), [("x", slurm_cell(8))] * 5000, None)
    planned.check()
    assert str(planned) == "5000 cells to submit, at most 40000 GPU hours at the first attempt"


@pytest.mark.parametrize("value", ["many", 0, -3, True, float("inf"), float("nan"), [1]])
def test_a_limit_is_a_number_above_zero(value: object) -> None:
    with pytest.raises(SiteError, match=r"max_gpu_hours: found .*; expected a number of GPU hours above 0"):
        agreed_gpu_hours(value)


def test_a_limit_may_be_left_out() -> None:
    assert agreed_gpu_hours(None) is None
    assert agreed_gpu_hours(5) == 5.0


def forecast(
    cell: Cell,
    *,
    allocation_duration_s: float | None = 2000.0,
    longest_job_s: float | None = 3000.0,
    host_memory_gib: float | None = 20.0,
) -> CellForecast:
    """What a plan may say of a cell, whose responses end by themselves in two thirds of the longest time."""
    return CellForecast(
        cell=cell,
        need=None,
        memory_gib=32,
        fits=None,
        nodes=1,
        gpus=cell.shards,
        gpus_held=2,
        batches=1,
        prompt_tokens=100,
        output_tokens=100,
        generated_tokens=100,
        phases={},
        duration_s=allocation_duration_s,
        allocation_duration_s=allocation_duration_s,
        longest_job_s=longest_job_s,
        power_w=600.0,
        energy_j=None if allocation_duration_s is None else 600 * allocation_duration_s,
        duration_range_s=None,
        energy_range_j=None,
        gpu_hours=None if allocation_duration_s is None else 2 * allocation_duration_s / 3600,
        node_hours=None,
        cost=None,
        carbon_kg=None,
        host_memory_gib=host_memory_gib,
        notes=(),
    )


@pytest.mark.parametrize(
    ("types", "longest_job_s", "minutes"),
    [
        (
            {},
            3000.0,
            102,
        ),  # 2 x the 50 min without any early end, and the 2 min before the limit at which a cell ends itself
        ({}, 3001.0, 103),
        ({}, 30.0, 10),
        ({}, None, 120),
        ({"runtime_factor": 3.0}, 3000.0, 152),
        ({"runtime_floor_min": 25}, 30.0, 25),
        ({"runtime_min": 60, "runtime_floor_min": 25}, None, 60),
        ({"runtime_min": 60}, 3000.0, 60),  # a site that says nothing but a limit of its own
        ({"runtime_max_min": 130}, 30_000.0, 130),
        ({"runtime_max_min": 60}, None, 60),
    ],
)
def test_a_time_limit_is_the_plans_with_the_sites_factor_and_floor(
    types: dict[str, Any], longest_job_s: float | None, minutes: int
) -> None:
    cell = slurm_cell(2)
    found = cell_resources(slurm_site(types), cell, 1, forecast(cell, longest_job_s=longest_job_s))
    assert found["runtime"] == minutes


def test_a_planned_time_limit_grows_with_attempts_up_to_what_the_partition_allows() -> None:
    site, cell = slurm_site({"runtime_max_min": 360}), slurm_cell(2)
    limits = [cell_resources(site, cell, attempt, forecast(cell))["runtime"] for attempt in (1, 2, 3)]
    assert limits == [102, 204, 360]


@pytest.mark.parametrize(
    ("types", "host_memory_gib", "mem_mb"),
    [
        ({}, 20.0, None),
        ({"memory_per_node_gib": 16.0, "memory_per_node_max_gib": 128.0}, 20.0, 30 * 1024),
        ({"memory_per_node_gib": 16.0, "memory_per_node_max_gib": 24.0}, 20.0, 24 * 1024),
        ({"memory_per_node_gib": 16.0}, 20.0, 16 * 1024),
        ({"memory_per_node_gib": 16.0, "memory_per_node_max_gib": 128.0}, 2.0, 16 * 1024),
        ({"memory_per_node_gib": 16.0, "memory_per_node_max_gib": 128.0}, None, 16 * 1024),
        (
            {"memory_per_node_gib": 16.0, "memory_per_node_max_gib": 128.0, "memory_factor": 2.0},
            *(20.0, 40 * 1024),
        ),
    ],
)
def test_memory_is_the_plans_where_it_is_more_than_the_sites_and_there_is_as_much(
    types: dict[str, Any], host_memory_gib: float | None, mem_mb: int | None
) -> None:
    cell = slurm_cell(2)
    found = cell_resources(slurm_site(types), cell, 1, forecast(cell, host_memory_gib=host_memory_gib))
    assert found.get("mem_mb") == mem_mb


def test_a_simulated_cell_asks_for_what_it_takes_itself_whatever_the_site_says_of_others() -> None:
    words = {"runtime_min": 120, "memory_per_node_gib": 128.0, "memory_per_node_max_gib": 360.0}
    site, real, study = slurm_site(words), slurm_cell(4), Study(**study_content(simulated_window_s=3.0))
    cell = replace(real, engine="simulated")
    planned = replace(forecast(cell, allocation_duration_s=90_000.0, host_memory_gib=300.0), nodes=2)
    own = own_job(planned, site.gpus[cell.gpu], study)
    assert own.allocation_duration_s == own.longest_job_s == 90 + 2 * (30 + 10) + 3
    assert own.energy_j is None
    assert cell_resources(site, real, 1, forecast(real))["mem_mb"] == 128 * 1024
    found = cell_resources(site, cell, 1, own)
    assert found["runtime"] == 10
    assert found["mem_mb"] == int(1.5 * (0.3 + 2 * 0.4) * 1024)
    assert budget(site, [("paper", cell)], None, lambda study, one: own).gpu_hours == 4 * 10 / 60


def test_the_identity_of_a_rehearsal_is_that_of_its_forecast() -> None:
    phase = PhaseForecast(3.0, {}, 100.0, 1.0, 1.0, 1.0)
    first = replace(forecast(slurm_cell(2)), phases={"decode": phase})
    assert played(first) == played(replace(first, cell=slurm_cell(2), notes=("a note",)))
    for other in (
        replace(phase, duration_s=3.001),
        replace(phase, power_w=101.0),
        replace(phase, power_w=None),
        replace(phase, busy=0.9),
        replace(phase, busy_memory=None),
    ):
        assert played(replace(first, phases={"decode": other})) != played(first)
    need = MemoryNeed(weights_gib=15.5, kv_cache_gib=8.0, activations_gib=1.0, workspace_gib=0.75)
    held = replace(first, need=need)
    assert len({played(one) for one in (first, held, replace(held, memory_gib=60.0))}) == 3


def test_the_plan_shows_what_it_predicts_beside_what_is_asked_for() -> None:
    cell = slurm_cell(2)
    line = describe_job(slurm_site({}), "paper", cell, 1, forecast(cell)).splitlines()[0]
    assert line == "paper: 1 node x 2 v100, partition (the default one), time 1:42 h, plan 0:34 h"


def test_a_budget_tells_what_the_plan_predicts_and_what_it_does_not_know() -> None:
    site = slurm_site({"runtime_max_min": 130}, prices={"currency": "EUR", "source": "a list"})
    said = {1: 3000.0, 2: 30_000.0, 4: None}
    planned = budget(
        site,
        [("paper", slurm_cell(shards)) for shards in said],
        None,
        lambda study, cell: forecast(
            cell, allocation_duration_s=said[cell.shards], longest_job_s=said[cell.shards]
        ),
    )
    assert planned.gpu_hours == pytest.approx((102 * 2 + 130 * 2 + 120 * 4) / 60)
    assert planned.outlook() == (
        "the plan predicts at least 9.17 h of jobs one after the other, at least 18.3 GPU hours, "
        "at least 5.50 kWh\n"
        "1 cell takes longer by the plan than its first time limit: see runtime_max_min"
    )


def test_simulated_cells_make_no_gap_in_what_is_predicted_of_the_others() -> None:
    """Nothing of what they stand for is spent, and their own watts are not of GPUs."""
    site, study = slurm_site(), Study(**study_content(simulated_window_s=3.0))
    real, rehearsed = slurm_cell(2), replace(slurm_cell(2), engine="simulated")

    def asked(_: str, cell: Cell) -> CellForecast:
        planned = forecast(cell)
        return planned if cell == real else own_job(planned, site.gpus[cell.gpu], study)

    both = budget(site, [("paper", real), ("paper", rehearsed)], None, asked).outlook()
    assert both is not None
    assert both.endswith(" GPU hours, 0.333 kWh (simulated cells aside)")
    assert "at least" not in both
    alone = budget(site, [("paper", real)], None, asked).outlook()
    assert alone is not None
    assert alone.endswith(" GPU hours, 0.333 kWh")


def test_a_cell_that_needs_more_memory_than_a_job_may_ask_for_asks_for_all_there_is() -> None:
    """That it is too little is a warning of its forecast: tests/unit/test_plan_forecast.py."""
    cell = slurm_cell(2)
    site = slurm_site({"memory_per_node_gib": 16.0, "memory_per_node_max_gib": 24.0})
    found = [cell_resources(site, cell, attempt, forecast(cell, host_memory_gib=30.0)) for attempt in (1, 3)]
    assert [one["mem_mb"] for one in found] == [24 * 1024, 24 * 1024]
    assert site.words(cell.gpu).most_memory_gib == 24
    assert slurm_site({"memory_per_node_gib": 16.0}).words(cell.gpu).most_memory_gib == 16
    assert slurm_site({}).words(cell.gpu).most_memory_gib is None


def test_the_outlook_warns_of_links_that_nobody_says() -> None:
    cell = slurm_cell(4)
    note = Warned("v100: 25 Gb/s Ethernet between nodes is assumed; give links.between")
    noted = replace(forecast(cell), notes=(note, "another"))
    outlook = budget(slurm_site(), [("paper", cell)], None, lambda study, cell: noted).outlook()
    assert outlook is not None
    assert outlook.splitlines()[0] == f"warning: {note}"
    assert "another" not in outlook


def test_without_forecasts_a_budget_predicts_nothing() -> None:
    assert budget(slurm_site(), [("paper", slurm_cell(1))], None).outlook() is None
