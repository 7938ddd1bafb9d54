"""Guards `shardwatt check-site` against a real Slurm: a right site passes, each mistake is named, no more.

A run takes seconds, for it asks each environment's Python for torch. So mistakes that are told apart by their
GPU type share one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from slurm_cluster import Cluster
from slurm_project import PATIENCE_S

pytestmark = pytest.mark.slurm

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

A100 = {"partition": "a100", "gres": "gpu:a100", "constraint": "a100", "nodes": 2}

#: Words of a GPU type, by its name, and what is said of each; of two there is no error.
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no-such-partition": (
        {"partition": "v10"},
        ["partition: 'v10' is not there; Slurm has a100, high, low, v100; did you mean 'v100'?"],
    ),
    "no-such-gpus": (
        {"gres": "gpu:v10"},
        [
            "gres: 2 x gpu:v10 a node, and nodes offer gpu:v100, 2 a node; did you mean gres: gpu:v100?",
            "configuration is not available",
        ],
    ),
    "no-such-feature": (
        {"constraint": "v100&nvlink"},
        [
            "constraint: no node of partition v100 has the feature 'nvlink'; its nodes have v100",
            "Invalid feature specification",
        ],
    ),
    "fewer-nodes": (
        {"nodes": 5},
        [
            "nodes: 5, and 4 nodes of partition v100 fit: 4 idle; use nodes: 4",
            "a cell of 10 shards, last attempt: sbatch says: allocation failure",
        ],
    ),
    "fewer-cpus": (
        {"cpus_per_rank": 5},
        [
            "cpus_per_rank: 5 x 2 ranks are 10 CPUs a node, and nodes of partition v100 have 8",
            "a cell of 8 shards, last attempt: sbatch says",
        ],
    ),
    "less-memory": (
        {"memory_per_node_max_gib": 8},
        [
            "memory_per_node_max_gib: 8 GiB, and not every node of partition v100 has that for jobs; use "
            "at most 7; 0 of 4 nodes fit",
            "a cell of 8 shards, last attempt: sbatch says",
        ],
    ),
    "no-such-reservation": (
        {"extra": ["--reservation=paper"]},
        ["a cell of 1 shard, first attempt: sbatch says: allocation failure: "],
    ),
    "preempted": ({"partition": "low"}, []),
    "no-partition": ({"partition": None}, []),
}


@dataclass(frozen=True)
class Checked:
    """What the command said.

    Attributes:
        code: its exit code.
        lines: standard output, blanks brought together.
        said: standard error.
    """

    code: int
    lines: list[str]
    said: str

    def of(self, head: str) -> list[str]:
        """The lines under a heading, such as a GPU type's name."""
        rest = self.lines[self.lines.index(f"{head}:") + 1 :]
        end = next(
            (number for number, line in enumerate(rest) if line.endswith(":") and " " not in line), len(rest)
        )
        return rest[:end]

    def errors(self, head: str | None = None) -> list[str]:
        lines = self.lines if head is None else self.of(head)
        return [line.removeprefix("error ") for line in lines if line.startswith("error ")]

    def __str__(self) -> str:
        return self.said + "\n".join(self.lines)


def site_content(folder: Path, **types: Mapping[str, Any]) -> dict[str, Any]:
    """A site that fits the test cluster but for these words of its GPU types; ranks are processes, so that
    this machine's torch will do."""

    def kind(words: Mapping[str, Any]) -> dict[str, Any]:
        slurm = {key: value for key, value in {**WORDS, **words}.items() if value is not None}
        return {"kind": "cpu", "per_node": 2, "memory_gib": 2, "slurm": slurm}

    return {
        "name": "testbed",
        "launcher": "slurm",
        "models": str(folder),
        "data": str(folder),
        "network_interface": "lo",
        "max_gpu_hours": 10,
        "gpus": {name: kind(words) for name, words in (types or {"v100": {}}).items()},
    }


def write_site(folder: Path, content: object) -> Path:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def check_site(cluster: Cluster, site: Path, environment: Mapping[str, str] = {}) -> Checked:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SHARDWATT_")}
    run = subprocess.run(
        [sys.executable, "-m", "shardwatt", "check-site", "--root", str(ROOT), "--site", str(site)],
        cwd=site.parent,
        env=own | cluster.environment() | dict(environment),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "Traceback" not in run.stdout + run.stderr
    lines = [" ".join(line.split()) for line in run.stdout.splitlines()]
    return Checked(run.returncode, lines, run.stderr)


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
    found = check_site(cluster, write_site(tmp_path, site_content(tmp_path)))
    assert found.code == 0, found
    assert found.errors() == []
    assert "ok 4 nodes of partition v100 fit: 4 idle" in found.lines
    quoted = [line for line in found.lines if "sbatch says: Job" in line]
    assert [line.partition(": sbatch")[0] for line in quoted] == [
        "ok a cell of 1 shard, first attempt",
        "ok a cell of 8 shards, last attempt",
    ]
    assert "on nodes v100-[0-3] in partition v100" in quoted[1]
    assert any("jobs are followed by squeue" in line for line in found.lines)
    assert any(line.startswith("note Slurm has no accounting here") for line in found.lines)
    assert cluster.run("squeue", "--noheader") == ""


@pytest.fixture(scope="module")
def with_mistakes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Checked:
    """Of a site whose GPU types have one of `MISTAKES` each."""
    folder = tmp_path_factory.mktemp("mistakes")
    types = {name: words for name, (words, _) in MISTAKES.items()}
    return check_site(cluster, write_site(folder, site_content(folder, **types)))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_named(with_mistakes: Checked, mistake: str) -> None:
    messages = MISTAKES[mistake][1]
    found = with_mistakes.errors(mistake)
    assert len(found) == len(messages), "\n".join(with_mistakes.of(mistake))
    assert all(message in line for message, line in zip(messages, found, strict=True)), "\n".join(found)


def test_all_errors_are_counted(with_mistakes: Checked) -> None:
    count = sum(len(messages) for _, messages in MISTAKES.values())
    assert with_mistakes.code == 1
    assert len(with_mistakes.errors()) == count
    assert f"shardwatt: {count} errors and" in with_mistakes.said


def test_a_preempted_partition_is_told(with_mistakes: Checked) -> None:
    told = "note partition low: preempted jobs start again"
    assert [line.startswith(told) for line in with_mistakes.of("preempted")].count(True) == 1


def test_no_partition_is_slurms_default(with_mistakes: Checked) -> None:
    told = "note partition: none is named; jobs go to Slurm's default, v100"
    assert told in with_mistakes.of("no-partition")


def test_a_partitions_limits_are_compared(
    cluster: Cluster, tmp_path: Path, settings: Callable[..., None]
) -> None:
    settings(MaxTime="30", State="DOWN", MaxNodes="1", OverSubscribe="FORCE:2")
    checked = check_site(cluster, write_site(tmp_path, site_content(tmp_path, a100=A100)))
    assert checked.code == 1
    found = "\n".join(checked.errors())
    assert "runtime_max_min: 60 min, and partition a100 allows 30 (MaxTime)" in found
    assert "runtime_min" not in found
    assert "partition: a100 is DOWN" in found
    assert "nodes: 2, and partition a100 gives a job 1 at most" in found
    assert any("OverSubscribe=FORCE:2" in line for line in checked.lines if line.startswith("warning"))


def test_planned_time_limits_need_the_most_that_a_partition_allows(
    cluster: Cluster, tmp_path: Path, settings: Callable[..., None]
) -> None:
    """Any cell may ask for more; that none asks for the default of 120 min is no reason to say nothing."""
    settings(MaxTime="60")
    types: dict[str, Mapping[str, Any]] = {}
    for name, runtime_min in {"default": None, "short": 30}.items():
        words = {**A100, "runtime_min": runtime_min, "runtime_factor": 2.0}
        types[name] = {**words, "runtime_max_min": None}
        types[f"{name}-followed"] = {**words, "runtime_max_min": 60}
    checked = check_site(cluster, write_site(tmp_path, site_content(tmp_path, **types)))
    assert checked.code == 0, checked
    for name in ("default", "short"):
        assert [line for line in checked.of(name) if "MaxTime" in line] == [
            "warning runtime_max_min: found none, and the plan sets time limits: a job that asks for more "
            "than the 60 min that partition a100 allows (MaxTime) is refused, or waits for ever; say "
            "runtime_max_min: 60"
        ]
        followed = checked.of(f"{name}-followed")
        assert not any("runtime" in line for line in followed)
        assert "partition a100 is UP; its longest time limit: 60 min" in "\n".join(followed)


def test_drained_nodes_are_no_error(cluster: Cluster, tmp_path: Path) -> None:
    cluster.run("scontrol", "update", "nodename=a100-1", "state=drain", "reason=a test, Gres=gpu:a100:9")
    try:
        found = check_site(cluster, write_site(tmp_path, site_content(tmp_path, a100=A100)))
    finally:
        cluster.resume("a100-1")
    assert found.code == 0, found
    assert any(
        "2 nodes of partition a100 fit: 1 idle, 1 drain; 1 of them take jobs" in line for line in found.lines
    )
    refused = "warning a cell of 4 shards, last attempt: sbatch says"
    assert any(line.startswith(refused) for line in found.lines)


def test_accounts_and_qos_are_compared_where_there_is_accounting(
    accounting_cluster: Cluster, tmp_path: Path
) -> None:
    types = {
        "wrong": {"account": "rooot", "qos": "nromal"},
        "right": {"account": "root", "qos": "normal"},
    }
    found = check_site(accounting_cluster, write_site(tmp_path, site_content(tmp_path, **types)))
    assert found.code == 1
    assert found.errors("wrong")[:2] == [
        "account: 'rooot' is none of yours; expected root; did you mean 'root'?: the executor refuses it",
        "qos: 'nromal' is not there; Slurm has normal; did you mean 'normal'?",
    ]
    assert found.errors("right") == []
    assert found.errors() == found.errors("wrong")
    assert not any("no accounting" in line for line in found.lines)


def test_a_profile_that_waits_for_ever_is_an_error(cluster: Cluster, tmp_path: Path) -> None:
    """Without accounting sacct tells nothing; the profile beside the site's file is the one compared."""
    site = write_site(tmp_path, site_content(tmp_path))
    profile = tmp_path / "profile.v9+.yaml"
    profile.write_text("slurm-status-command: sacct\nslurm-requeue: true\n")
    found = check_site(cluster, site)
    assert [line for line in found.errors() if "Snakemake would wait for ever; use squeue" in line]
    # Three first looks are longer than the hour for which the cluster remembers a job.
    profile.write_text(
        "slurm-status-command: squeue\nslurm-requeue: true\nslurm-init-seconds-before-status-checks: 1201\n"
    )
    found = check_site(cluster, site)
    assert [line for line in found.errors() if "turns from squeue to sacct by itself" in line]


def test_a_broken_site_gets_its_ordinary_message(cluster: Cluster, tmp_path: Path) -> None:
    content = site_content(tmp_path)
    content["gpus"]["v100"]["slurm"]["partitoin"] = "v100"
    found = check_site(cluster, write_site(tmp_path, content))
    assert (found.code, found.lines) == (1, [])
    assert "partitoin" in found.said


def test_where_there_is_no_slurm_the_rest_is_checked(cluster: Cluster, tmp_path: Path) -> None:
    site = write_site(tmp_path, site_content(tmp_path))
    python = Path(sys.executable).parent
    found = check_site(cluster, site, {"PATH": f"{python}:/nowhere"})
    assert found.code == 1
    assert len(found.errors()) == 1
    assert found.errors()[0].startswith("scontrol: not found on PATH")
    assert any("torch" in line for line in found.lines if line.startswith("ok environment"))
