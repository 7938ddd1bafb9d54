"""Guards what check-site concludes where no cluster is needed: constraints, GPUs' names, torch, folders."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from shardwatt.checks.caps import check_caps
from shardwatt.checks.constraint import feature_names, is_met
from shardwatt.checks.environments import Environment, check_environment, probe, runs_on
from shardwatt.checks.findings import Finding, Level
from shardwatt.checks.folders import file_system
from shardwatt.checks.jobs import sbatch_words
from shardwatt.checks.nodes import fitting_nodes
from shardwatt.dag import command_environment
from shardwatt.site import GpuType
from shardwatt.sitepower import PowerLimits
from shardwatt.slurmsite import Node, Partition, minutes, nodes, seconds
from slurm_site import V100, slurm_site

ROOT = Path(__file__).parents[2]

CU126 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
CU130 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"


@pytest.mark.parametrize(
    ("constraint", "features", "met"),
    [
        ("a100", {"a100"}, True),
        ("a100&nvlink", {"a100"}, False),
        ("a100|h100", {"h100"}, True),
        ("a100|h100&nvlink", {"a100"}, False),  # from left to right
        ("a100|(h100&nvlink)", {"a100"}, True),
        ("[rack1*2|rack2*2]", {"rack2"}, True),
        ("xeon-gold", {"xeon-gold"}, True),
    ],
)
def test_constraints_are_read_as_sbatch_reads_them(constraint: str, features: set[str], met: bool) -> None:
    assert is_met(constraint, features) is met


def test_the_features_of_a_constraint_are_named() -> None:
    assert feature_names("[rack1*2|rack2]&nvlink") == ["rack1", "rack2", "nvlink"]


@pytest.mark.parametrize("constraint", ["a100&", "(a100", "a100)", "&a100"])
def test_a_constraint_that_is_none_is_refused(constraint: str) -> None:
    with pytest.raises(ValueError, match=r"expected|closed"):
        is_met(constraint, {"a100"})


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_70", (7, 0), True),
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_75", (8, 0), False),
        ("compute_70", (9, 0), True),
        ("compute_90", (8, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_90a", (9, 1), False),
        ("compute_90a", (10, 0), False),
        ("sm_100f", (10, 3), True),
        ("sm_120", (12, 0), True),
        ("sm_100", (12, 0), False),
    ],
)
def test_what_torch_was_built_for_runs_where_nvidia_says(
    architecture: str, capability: tuple[int, int], runs: bool
) -> None:
    assert runs_on(architecture, capability) is runs


def gpu_type(**changes: Any) -> GpuType:
    return GpuType(**{"kind": "cuda", "per_node": 2, "memory_gib": 32, **changes})


def environment(architectures: str, cuda: str | None, **changes: Any) -> Environment:
    torch = {"version": "2.11.0", "cuda": cuda, "architectures": architectures.split()}
    return Environment(
        {"python": "3.11.2", "executable": "/envs/bin/python", "torch": torch, "missing": {}, **changes}
    )


def first(kind: GpuType, found: Environment) -> Finding:
    return next(iter(check_environment(kind, found, ROOT / "src")))


def test_v100s_need_the_wheels_of_cuda_12_6() -> None:
    v100 = gpu_type(compute_capability="7.0")
    assert first(v100, environment(CU126, "12.6")).level is Level.OK
    refused = first(v100, environment(CU130, "13.0"))
    assert refused.level is Level.ERROR
    assert "does not run on compute capability 7.0: it was built for sm_75" in refused.text
    assert refused.text.endswith("CUDA 12.6 are the last for these GPUs: TORCH_INDEX=…/whl/cu126")


def test_new_gpus_need_a_new_torch() -> None:
    b200 = gpu_type(compute_capability="10.0")
    assert first(b200, environment(CU130, "13.0")).level is Level.OK
    refused = first(b200, environment(CU126, "12.6"))
    assert refused.level is Level.ERROR
    assert refused.text.endswith("install a newer torch, for a newer CUDA")
    slow = first(gpu_type(compute_capability="12.1"), environment("sm_90 compute_90", "12.6"))
    assert slow.level is Level.WARNING
    assert "only compute_90, which the driver compiles" in slow.text


@pytest.mark.parametrize(
    ("kind", "found", "level", "text"),
    [
        (gpu_type(), environment(CU130, "13.0"), Level.WARNING, "compute_capability: not given"),
        (gpu_type(), environment("", None), Level.ERROR, "no rank would see a GPU"),
        (
            gpu_type(compute_capability="8.0"),
            environment(CU130, "13.0", missing={"fairscale": "No module named 'fairscale'"}),
            Level.ERROR,
            "lacks fairscale (No module named 'fairscale')",
        ),
        (gpu_type(), environment(CU130, "13.0", python="3.9.2"), Level.ERROR, "expected 3.11 or newer"),
        (
            gpu_type(),
            environment(CU130, "13.0", shardwatt="/elsewhere/__init__.py"),
            Level.ERROR,
            "leave PYTHONPATH as it is",
        ),
        (gpu_type(kind="cpu"), environment("", None), Level.OK, "torch 2.11.0 without CUDA"),
    ],
)
def test_environments_are_judged(kind: GpuType, found: Environment, level: Level, text: str) -> None:
    finding = first(kind, found)
    assert finding.level is level
    assert text in finding.text


def test_the_python_of_the_lines_tells_what_it_has() -> None:
    found = probe(["export A=1", "echo loaded"], ROOT, command_environment(ROOT, []))
    assert found.found is not None
    assert Path(found.found["shardwatt"]) == ROOT / "src" / "shardwatt" / "__init__.py"
    assert found.found["missing"] == {}


def test_a_line_that_fails_is_named() -> None:
    """As a job would: whichever Python comes first would run otherwise."""
    lines = ["export A=1", "source /nowhere/bin/activate", "echo loaded"]
    found = probe(lines, ROOT, command_environment(ROOT, []))
    assert found.found is None
    assert "/nowhere/bin/activate: No such file or directory" in found.problem
    finding = first(gpu_type(kind="cpu", environment=lines), found)
    assert finding.level is Level.ERROR
    assert "`source /nowhere/bin/activate` failed" in finding.text


def test_an_environment_without_python_is_an_error() -> None:
    found = probe(["export PATH=/nowhere"], ROOT, {})
    assert found.found is None
    assert "python: not found" in found.problem or "No such file" in found.problem
    assert first(gpu_type(environment=["export PATH=/nowhere"]), found).level is Level.ERROR


#: Lines of `scontrol show node` as Slurm 23.11 prints them; the comment has no say.
NODES = """\
NodeName=g1 Arch=x86_64 CoresPerSocket=32  CPUAlloc=0 CPUEfctv=62 CPUTot=64 CPULoad=0.10 \
AvailableFeatures=a100,nvlink ActiveFeatures=a100,nvlink Gres=gpu:a100-sxm4-80gb:4(S:0-1),shard:8 \
RealMemory=512000 AllocMem=0 State=IDLE+PLANNED ThreadsPerCore=1 Partitions=a100,all MemSpecLimit=4096 \
Comment=old Gres=gpu:9
NodeName=g2 CPUTot=64 AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:2(S:0),gpu:v100:1 \
RealMemory=1000 State=DOWN*+DRAIN Partitions=all Reason=broken
NodeName=c1 CPUTot=8 AvailableFeatures=(null) Gres=(null) RealMemory=1000 State=ALLOCATED Partitions=cpu
"""


def test_nodes_are_read_as_newer_slurms_print_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{NODES}END\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    g1, g2, c1 = nodes()
    assert g1.gpus == {"a100-sxm4-80gb": 4}
    assert g1.features == {"a100", "nvlink"}
    assert (g1.cpus, g1.memory_mib, g1.state, g1.is_usable) == (62, 512000 - 4096, "idle", True)
    assert g2.gpus == {"": 2, "v100": 1}
    assert (g2.state, g2.is_usable, g2.features) == ("down", False, frozenset())
    assert (c1.gpus, c1.state, c1.is_usable) == ({}, "allocated", True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("UNLIMITED", None), ("00:30:00", 30), ("2-12:00:00", 3600), ("45:00", 45)],
)
def test_time_limits_are_read(text: str, expected: int | None) -> None:
    assert minutes(text) == expected


LEASES = {"leases": "/var/lib/shardwatt/power-limits"}


@pytest.mark.parametrize(
    ("settings", "limits", "warnings"),
    [
        ({"Epilog": "/etc/epilog"}, {"set_by": "nvml"}, []),
        ({"Epilog[0]": "/etc/epilog"}, {"set_by": "nvml"}, []),
        ({"Epilog": "", "Prolog": ""}, {"set_by": "nvml"}, ["no Epilog=: what a killed job leaves"]),
        ({"EpilogSlurmctld": "/etc/epilog"}, {"set_by": "nvml"}, ["no Epilog="]),
        ({"Epilog": "/etc/epilog"}, {"set_by": "prolog"}, ["no Prolog=, and power_limits are set by one"]),
        ({"Prolog": "/etc/prolog"}, {"set_by": "prolog"}, ["no Epilog=: no job's limits are set back"]),
        ({}, {"set_by": "prolog"}, ["no Prolog=", "no Epilog="]),
        (
            {"Epilog": "/etc/epilog", "JobContainerType": "job_container/tmpfs"},
            {"set_by": "nvml"},
            ["jobs may have /var/tmp to themselves, and leases there vanish with their job"],
        ),
        ({"Epilog": "/e", "JobContainerType": "job_container/tmpfs"}, {"set_by": "nvml", **LEASES}, []),
        ({"Epilog": "/e", "JobContainerType": "job_container/none"}, {"set_by": "nvml"}, []),
    ],
)
def test_who_sets_limits_back_is_compared(
    settings: dict[str, str], limits: dict[str, Any], warnings: list[str]
) -> None:
    first, *found = check_caps(settings, PowerLimits(**limits))
    assert first == Finding(Level.OK, f"power_limits: set_by: {limits['set_by']}")
    assert [finding.level for finding in found] == [Level.WARNING] * len(warnings)
    assert all(words in finding.text for words, finding in zip(warnings, found, strict=True))


def test_settings_in_seconds_are_read() -> None:
    assert (seconds("300 sec"), seconds("")) == (300, None)


def node(name: str, gpus: dict[str, int], **changes: Any) -> Node:
    values: dict[str, Any] = {
        "states": frozenset({"IDLE"}),
        "partitions": frozenset({"v100"}),
        "features": frozenset({"volta"}),
        "cpus": 40,
        "memory_mib": 384000,
        **changes,
    }
    return Node(name=name, gpus=gpus, **values)


PARTITION = Partition("v100", "UP", True, None, "OFF", "NO", None, None, None, None, None, None, None)


def compare(words: dict[str, Any], *of: Node) -> list[str]:
    site = slurm_site({**V100, "nodes": len(of), **words})
    _, found = fitting_nodes(list(of), [PARTITION], site, "v100")
    return [f"{finding.level}: {finding.text}" for finding in found]


def test_a_near_miss_of_the_gpus_name_is_suggested() -> None:
    (found,) = compare({}, node("n1", {"tesla_v100": 2}))
    assert found == (
        "error: gres: 2 x gpu:v100 a node, and nodes offer gpu:tesla_v100, 2 a node; "
        "did you mean gres: gpu:tesla_v100?"
    )


def test_for_a_type_with_a_hyphen_a_constraint_is_suggested() -> None:
    (found,) = compare({}, node("n1", {"v100-sxm2-32gb": 2}))
    assert found.endswith("the executor takes no type with a hyphen: use gres: gpu, and constraint: volta")


def test_types_are_compared_in_any_case_and_untyped_ones_with_all() -> None:
    for words in ({"gres": "gpu:V100"}, {"gres": "gpu"}):
        assert compare(words, node("n1", {"v100": 2})) == ["ok: 1 nodes of partition v100 fit: 1 idle"]


def test_too_few_gpus_a_node_are_an_error() -> None:
    (found,) = compare({}, node("n1", {"v100": 1}))
    assert found.startswith("error: gres: 2 x gpu:v100 a node, and nodes offer gpu:v100, 1 a node")


def test_some_small_nodes_among_enough_others_are_a_warning() -> None:
    big = [node(f"n{number}", {"v100": 2}) for number in range(2)]
    small = node("n9", {"v100": 2}, cpus=4)
    found = compare({"nodes": 2}, *big, small)
    assert found[0].startswith("warning: cpus_per_rank: 4 x 2 ranks are 8 CPUs a node")
    assert found[0].endswith("have 4 to 40; 2 of 3 nodes fit")
    assert found[1] == "ok: 2 nodes of partition v100 fit: 2 idle"


def test_memory_that_no_job_may_ask_for_is_named_with_what_the_nodes_have() -> None:
    """The plan asks for what cells need, up to memory_per_node_max_gib, and for no more than that."""
    first, _ = compare({"memory_per_node_max_gib": None}, node("n1", {"v100": 2}))
    assert first == (
        "note: memory_per_node_max_gib: not given; no job asks for more than 64 GiB a node, even where a "
        "cell needs it by the plan; every node has 375"
    )
    assert len(compare({}, node("n1", {"v100": 2}))) == 1, "with both there is nothing to say"
    all_there_is = {"memory_per_node_gib": 375.0, "memory_per_node_max_gib": None}
    assert len(compare(all_there_is, node("n1", {"v100": 2}))) == 1, "nor where jobs ask for all there is"


def test_sbatch_is_asked_with_the_words_of_a_cell() -> None:
    words = sbatch_words(slurm_site(), "v100", 8, Path("/base"))
    assert words[0] == "sbatch"
    for word in ("--partition=v100", "--nodes=4", "--gres=gpu:v100:2", "--cpus-per-task=8", "--mem=65536"):
        assert word in words
    assert "--time=60" in words
    assert "--exclusive" in words


@pytest.mark.parametrize(
    ("words", "minutes"),
    [
        ({"runtime_min": 30}, 30),
        ({}, 10),
        ({"runtime_min": 30, "runtime_factor": 2.0}, 10),
        ({"runtime_floor_min": 25, "runtime_max_min": 60}, 25),
        ({"runtime_max_min": 5}, 5),
    ],
)
def test_of_planned_time_limits_sbatch_is_asked_for_the_least(words: dict[str, Any], minutes: int) -> None:
    """The 120 min of a site that says nothing are asked for by no cell that the plan knows the time of."""
    assert f"--time={minutes}" in sbatch_words(slurm_site(words), "v100", 1, Path("/base"))


def test_the_file_system_of_a_folder_is_that_of_its_nearest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "disk / ext4 rw 0 0\nserver:/nfs /nfs nfs4 rw 0 0\nsite /nfs/my\\040data lustre rw 0 0\n"
    )
    assert file_system(Path("/nfs/me/models"), mounts) == "nfs4"
    assert file_system(Path("/nfs/my data/models"), mounts) == "lustre"
    assert file_system(Path("/nfs2"), mounts) == "ext4"
    assert file_system(Path("/"), tmp_path / "none") == "an unknown file system"
