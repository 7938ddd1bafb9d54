"""Guards `shardwatt check-site` against a real Slurm: a right site passes, each mistake is named, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm_cluster import Cluster

ROOT = Path(__file__).parents[2]

WORDS: dict[str, Any] = {
    "partition": "v100",
    "gres": "gpu:v100",
    "constraint": "v100",
    "nodes": 4,
    "cpus_per_rank": 4,
    "memory_per_node_gib": 4,
    "memory_per_node_max_gib": 7,
    "runtime_min": 10,
    "runtime_max_min": 60,
}


def site_content(folder: Path, words: Mapping[str, Any]) -> dict[str, Any]:
    """A site that fits the test cluster; ranks are processes, so that this machine's torch will do."""
    slurm = {key: value for key, value in {**WORDS, **words}.items() if value is not None}
    return {
        "name": "testbed",
        "launcher": "slurm",
        "models": str(folder),
        "data": str(folder),
        "network_interface": "lo",
        "max_gpu_hours": 10,
        "gpus": {"v100": {"kind": "cpu", "per_node": 2, "memory_gib": 2, "slurm": slurm}},
    }


def write_site(folder: Path, content: object) -> Path:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def check_site(
    cluster: Cluster, site: Path, environment: Mapping[str, str] = {}
) -> tuple[int, list[str], str]:
    """Run the command; returns its exit code, its lines and standard error."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SHARDWATT_")}
    run = subprocess.run(
        [sys.executable, "-m", "shardwatt", "check-site", "--root", str(ROOT), "--site", str(site)],
        cwd=site.parent,
        env=own | cluster.environment() | dict(environment),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in run.stdout + run.stderr
    return run.returncode, [" ".join(line.split()) for line in run.stdout.splitlines()], run.stderr


def errors(lines: list[str]) -> list[str]:
    return [line.removeprefix("error ") for line in lines if line.startswith("error ")]


@pytest.fixture
def settings(cluster: Cluster) -> Iterator[Callable[..., None]]:
    """Changes a setting of partition a100 for the time of a test."""
    changed: list[str] = []

    def change(**values: str) -> None:
        changed.extend(values)
        cluster.run("scontrol", "update", "partitionname=a100", *(f"{k}={v}" for k, v in values.items()))

    yield change
    normal = {"MaxTime": "UNLIMITED", "State": "UP", "MaxNodes": "UNLIMITED", "OverSubscribe": "NO"}
    for key in changed:
        cluster.run("scontrol", "update", "partitionname=a100", f"{key}={normal[key]}")


def test_a_site_that_fits_has_no_error_and_submits_nothing(cluster: Cluster, tmp_path: Path) -> None:
    code, lines, said = check_site(cluster, write_site(tmp_path, site_content(tmp_path, {})))
    assert code == 0, said + "\n".join(lines)
    assert errors(lines) == []
    assert "ok 4 nodes of partition v100 fit: 4 idle" in lines
    quoted = [line for line in lines if "sbatch says: Job" in line]
    assert [line.partition(": sbatch")[0] for line in quoted] == [
        "ok a cell of 1 shard, first attempt",
        "ok a cell of 8 shards, last attempt",
    ]
    assert "on nodes v100-[0-3] in partition v100" in quoted[1]
    assert any("jobs are followed by squeue" in line for line in lines)
    assert any(line.startswith("note Slurm has no accounting here") for line in lines)
    assert cluster.run("squeue", "--noheader") == ""


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        pytest.param(
            {"partition": "v10"},
            ["partition: 'v10' is not there; Slurm has a100, high, low, v100; did you mean 'v100'?"],
            id="no such partition",
        ),
        pytest.param(
            {"gres": "gpu:v10"},
            [
                "gres: 2 x gpu:v10 a node, and nodes offer gpu:v100, 2 a node; did you mean gres: gpu:v100?",
                "configuration is not available",
            ],
            id="no such GPUs",
        ),
        pytest.param(
            {"constraint": "v100&nvlink"},
            [
                "constraint: no node of partition v100 has the feature 'nvlink'; its nodes have v100",
                "Invalid feature specification",
            ],
            id="no such feature",
        ),
        pytest.param(
            {"nodes": 5},
            [
                "nodes: 5, and 4 nodes of partition v100 fit: 4 idle; use nodes: 4",
                "a cell of 10 shards, last attempt: sbatch says: allocation failure",
            ],
            id="fewer nodes",
        ),
        pytest.param(
            {"cpus_per_rank": 5},
            [
                "cpus_per_rank: 5 x 2 ranks are 10 CPUs a node, and nodes of partition v100 have 8",
                "a cell of 8 shards, last attempt: sbatch says",
            ],
            id="fewer CPUs",
        ),
        pytest.param(
            {"memory_per_node_max_gib": 8},
            [
                "memory_per_node_max_gib: 8 GiB, and not every node of partition v100 has that for jobs; use "
                "at most 7; 0 of 4 nodes fit",
                "a cell of 8 shards, last attempt: sbatch says",
            ],
            id="less memory",
        ),
        pytest.param(
            {"extra": ["--reservation=paper"]},
            ["a cell of 1 shard, first attempt: sbatch says: allocation failure: "],
            id="no such reservation",
        ),
    ],
)
def test_each_mistake_is_named(
    cluster: Cluster, tmp_path: Path, words: dict[str, Any], messages: list[str]
) -> None:
    code, lines, said = check_site(cluster, write_site(tmp_path, site_content(tmp_path, words)))
    found = errors(lines)
    assert code == 1
    assert len(found) == len(messages), "\n".join(lines)
    assert all(message in line for message, line in zip(messages, found, strict=True)), "\n".join(found)
    count = len(messages)
    assert f"shardwatt: {count} error{'s' if count > 1 else ''} and" in said


A100 = {"partition": "a100", "gres": "gpu:a100", "constraint": "a100", "nodes": 2}


def test_a_partitions_limits_are_compared(
    cluster: Cluster, tmp_path: Path, settings: Callable[..., None]
) -> None:
    settings(MaxTime="30", State="DOWN", MaxNodes="1", OverSubscribe="FORCE:2")
    code, lines, _ = check_site(cluster, write_site(tmp_path, site_content(tmp_path, A100)))
    assert code == 1
    found = "\n".join(errors(lines))
    assert "runtime_max_min: 60 min, and partition a100 allows 30 (MaxTime)" in found
    assert "runtime_min" not in found
    assert "partition: a100 is DOWN" in found
    assert "nodes: 2, and partition a100 gives a job 1 at most" in found
    assert any("OverSubscribe=FORCE:2" in line for line in lines if line.startswith("warning"))


@pytest.mark.parametrize("runtime_min", [None, 30])
def test_planned_time_limits_need_the_most_that_a_partition_allows(
    cluster: Cluster, tmp_path: Path, settings: Callable[..., None], runtime_min: int | None
) -> None:
    """Any cell may ask for more; that none asks for the default of 120 min is no reason to say nothing."""
    settings(MaxTime="60")
    words = {**A100, "runtime_min": runtime_min, "runtime_factor": 2.0, "runtime_max_min": None}
    code, lines, said = check_site(cluster, write_site(tmp_path, site_content(tmp_path, words)))
    assert code == 0, said + "\n".join(lines)
    told = [line for line in lines if "MaxTime" in line]
    assert told == [
        "warning runtime_max_min: found none, and the plan sets time limits: a job that asks for more than "
        "the 60 min that partition a100 allows (MaxTime) is refused, or waits for ever; say "
        "runtime_max_min: 60"
    ]
    follow = site_content(tmp_path, {**words, "runtime_max_min": 60})
    code, lines, said = check_site(cluster, write_site(tmp_path, follow))
    assert code == 0, said + "\n".join(lines)
    assert not any("runtime" in line for line in lines)
    assert "partition a100 is UP; its longest time limit: 60 min" in "\n".join(lines)


def test_drained_nodes_are_no_error(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "nodename=a100-1", "state=drain", "reason=a test, Gres=gpu:a100:9")
    try:
        code, lines, said = check_site(cluster, write_site(tmp_path, site_content(tmp_path, A100)))
    finally:
        cluster.resume("a100-1")
    assert code == 0, said + "\n".join(lines)
    assert any(
        "2 nodes of partition a100 fit: 1 idle, 1 drain; 1 of them take jobs" in line for line in lines
    )
    assert any(line.startswith("warning a cell of 4 shards, last attempt: sbatch says") for line in lines)


def test_a_preempted_partition_is_told(cluster: Cluster, tmp_path: Path) -> None:
    _, lines, _ = check_site(cluster, write_site(tmp_path, site_content(tmp_path, {"partition": "low"})))
    assert any(line.startswith("note partition low: preempted jobs start again") for line in lines)


def test_no_partition_is_slurms_default(cluster: Cluster, tmp_path: Path) -> None:
    code, lines, _ = check_site(cluster, write_site(tmp_path, site_content(tmp_path, {"partition": None})))
    assert code == 0
    assert "note partition: none is named; jobs go to Slurm's default, v100" in lines


def test_accounts_and_qos_are_compared_where_there_is_accounting(
    accounting_cluster: Cluster, tmp_path: Path
) -> None:
    words = {"account": "rooot", "qos": "nromal"}
    code, lines, _ = check_site(accounting_cluster, write_site(tmp_path, site_content(tmp_path, words)))
    assert code == 1
    assert errors(lines)[:2] == [
        "account: 'rooot' is none of yours; expected root; did you mean 'root'?: the executor refuses it",
        "qos: 'nromal' is not there; Slurm has normal; did you mean 'normal'?",
    ]
    assert not any("no accounting" in line for line in lines)
    right = site_content(tmp_path, {"account": "root", "qos": "normal"})
    code, lines, said = check_site(accounting_cluster, write_site(tmp_path, right))
    assert code == 0, said + "\n".join(lines)


def test_a_profile_that_waits_for_ever_is_an_error(cluster: Cluster, tmp_path: Path) -> None:
    """Without accounting sacct tells nothing; the profile beside the site's file is the one compared."""
    site = write_site(tmp_path, site_content(tmp_path, {}))
    profile = tmp_path / "profile.v9+.yaml"
    profile.write_text("slurm-status-command: sacct\nslurm-requeue: true\n")
    _, lines, _ = check_site(cluster, site)
    assert [line for line in errors(lines) if "Snakemake would wait for ever; use squeue" in line]
    profile.write_text(
        "slurm-status-command: squeue\nslurm-requeue: true\nslurm-init-seconds-before-status-checks: 101\n"
    )
    _, lines, _ = check_site(cluster, site)
    assert [line for line in errors(lines) if "turns from squeue to sacct by itself" in line]


def test_a_broken_site_gets_its_ordinary_message(cluster: Cluster, tmp_path: Path) -> None:
    content = site_content(tmp_path, {})
    content["gpus"]["v100"]["slurm"]["partitoin"] = "v100"
    code, lines, said = check_site(cluster, write_site(tmp_path, content))
    assert (code, lines) == (1, [])
    assert "partitoin" in said


def test_where_there_is_no_slurm_the_rest_is_checked(cluster: Cluster, tmp_path: Path) -> None:
    site = write_site(tmp_path, site_content(tmp_path, {}))
    python = Path(sys.executable).parent
    code, lines, _ = check_site(cluster, site, {"PATH": f"{python}:/nowhere"})
    assert code == 1
    assert len(errors(lines)) == 1
    assert errors(lines)[0].startswith("scontrol: not found on PATH")
    assert any("torch" in line for line in lines if line.startswith("ok environment"))
