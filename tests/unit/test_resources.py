"""Guards what a cell's job asks for: per attempt, in the plan's words, and within what is agreed."""

from __future__ import annotations

from typing import Any

import pytest

from shardwatt.errors import SiteError
from shardwatt.resources import (
    agreed_gpu_hours,
    budget,
    cell_resources,
    describe_job,
    gpu_hours,
    resource_names,
)
from slurm_site import V100, slurm_cell, slurm_site


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
    assert gpu_hours(slurm_site(words(**changes)), slurm_cell(shards)) == hours


def test_a_processor_takes_no_gpu_hours() -> None:
    assert gpu_hours(slurm_site(), slurm_cell(2, "cpu")) == 0


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
        "targets, lower runtime_min, or agree to more for this run: "
        "--config max_gpu_hours=N, last on the line",
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
