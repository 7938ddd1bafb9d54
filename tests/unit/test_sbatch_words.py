"""Guards the words of sbatch, as the pinned executor writes them, for each shape of job."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
from snakemake_executor_plugin_slurm.validation import get_forbidden_slurm_options

from executor_words import PROFILE, ROOT, sbatch_words
from shardwatt.cell import Cell
from shardwatt.site import MANAGED_OPTIONS, Site, load_site
from slurm_site import V100, slurm_cell, slurm_site

#: What every job on whole nodes is given beside its shape.
WHOLE = ["--exclusive", "--signal=TERM@60", "--open-mode=append", "--exclude="]
SHARED = WHOLE[1:]


@pytest.mark.parametrize(
    ("site", "cell", "words"),
    [
        pytest.param(
            slurm_site(),
            slurm_cell(1),
            "-p v100 -t 60 --mem 65536 --nodes=1 --requeue --cpus-per-task=4 WHOLE --gres=gpu:v100:1",
            id="one rank on a node of two GPUs",
        ),
        pytest.param(
            slurm_site(),
            slurm_cell(2),
            "-p v100 -t 60 --mem 65536 --nodes=1 --requeue --cpus-per-task=8 WHOLE --gres=gpu:v100:2",
            id="one node",
        ),
        pytest.param(
            slurm_site(),
            slurm_cell(8),
            "-p v100 -t 60 --mem 65536 --nodes=4 --requeue --cpus-per-task=8 WHOLE --gres=gpu:v100:2",
            id="four nodes of two GPUs",
        ),
        pytest.param(
            slurm_site(per_node=1),
            slurm_cell(4),
            "-p v100 -t 60 --mem 65536 --nodes=4 --requeue --cpus-per-task=4 WHOLE --gres=gpu:v100:1",
            id="four nodes of one GPU",
        ),
        pytest.param(
            slurm_site({**V100, "exclusive": False}),
            slurm_cell(2),
            "-p v100 -t 60 --mem 65536 --nodes=1 --requeue --cpus-per-task=8 SHARED --gres=gpu:v100:2",
            id="shared nodes",
        ),
        pytest.param(
            slurm_site({"gres": "gpu", "constraint": "a100&nvlink", "qos": "long"}),
            slurm_cell(4),
            "-t 120 -C a100&nvlink --qos=long --nodes=2 --requeue --cpus-per-task=2 WHOLE --gres=gpu:2",
            id="GPUs without a type, nodes by constraint",
        ),
        pytest.param(
            slurm_site({"constraint": "a100"}),
            slurm_cell(4),
            "-t 120 -C a100 --nodes=2 --requeue --ntasks=2 --cpus-per-task=2 WHOLE",
            id="whole nodes by constraint alone",
        ),
        pytest.param(
            slurm_site(),
            slurm_cell(2, "cpu"),
            "-p cpu -t 10 --nodes=1 --requeue --ntasks=1 --cpus-per-task=2 SHARED",
            id="processors of one node",
        ),
        pytest.param(
            slurm_site(),
            slurm_cell(6, "cpu"),
            "-p cpu -t 10 --nodes=3 --requeue --ntasks=3 --cpus-per-task=2 SHARED",
            id="processors of three nodes",
        ),
        pytest.param(
            slurm_site({**V100, "extra": ["--reservation=paper", "--nice=10"]}),
            slurm_cell(1),
            "-p v100 -t 60 --mem 65536 --nodes=1 --requeue --cpus-per-task=4 WHOLE"
            " --reservation=paper --nice=10 --gres=gpu:v100:1",
            id="a site's own words",
        ),
    ],
)
def test_the_words_for_each_shape(site: Site, cell: Cell, words: str) -> None:
    expected = [
        word for part in words.split() for word in {"WHOLE": WHOLE, "SHARED": SHARED}.get(part, [part])
    ]
    assert sbatch_words(site, cell) == expected


@pytest.mark.parametrize(
    ("attempt", "time_and_memory"),
    [
        (1, ["-t", "60", "--mem", "65536"]),
        (2, ["-t", "120", "--mem", "98304"]),
        (3, ["-t", "200", "--mem", "131072"]),
    ],
)
def test_attempts_ask_for_more_time_and_memory_and_nothing_else(
    attempt: int, time_and_memory: list[str]
) -> None:
    words = sbatch_words(slurm_site(), slurm_cell(8), attempt)
    assert words[2:6] == time_and_memory
    first = sbatch_words(slurm_site(), slurm_cell(8))
    assert words[:2] + words[6:] == first[:2] + first[6:]


def test_a_failed_node_list_locks_no_small_partition() -> None:
    words = sbatch_words(slurm_site(), slurm_cell(8), failed_nodes=frozenset({"v100-[0-3]"}))
    assert [word for word in words if word.startswith("--exclude")] == ["--exclude=v100-[0-3]", "--exclude="]


def test_what_the_executor_writes_is_refused_in_a_site_file() -> None:
    """A site's `extra` is refused when it is read, not when the first job is submitted."""
    managed = {option for options in MANAGED_OPTIONS.values() for option in options}
    executors = re.findall(r"--([a-z-]+)", " ".join(get_forbidden_slurm_options()))
    # `--workdir` is gone from sbatch since 17.11.
    assert set(executors) - {"workdir"} <= managed


def test_the_profiles_own_site_gives_words_that_the_executor_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHARDWATT_MODELS", raising=False)
    site = load_site([ROOT / "profiles" / "slurm" / "site.yaml"])
    assert sbatch_words(site, slurm_cell(8))[-1] == "--gres=gpu:v100:2"
    assert "--gres=gpu:2" in sbatch_words(site, slurm_cell(4, "a100"))
    assert "--ntasks=1" in sbatch_words(site, slurm_cell(2, "cpu"))


def test_squeue_is_believed_with_slurms_default_settings() -> None:
    """The executor turns to sacct, without a word, where MinJobAge is under three first checks."""
    assert PROFILE["slurm-status-command"] == "squeue"
    default_min_job_age_s, slowest_check_s = 300, 180
    assert 3 * PROFILE["slurm-init-seconds-before-status-checks"] <= default_min_job_age_s
    assert slowest_check_s < default_min_job_age_s


def test_the_profile_uses_no_job_arrays_and_keeps_every_log() -> None:
    assert not any(key.startswith("slurm-array") for key in PROFILE)
    assert PROFILE["slurm-keep-successful-logs"] is True
    assert PROFILE["slurm-requeue"] is True


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("snakemake", "9.27.1"),
        ("snakemake-executor-plugin-slurm", "2.8.0"),
        ("snakemake-executor-plugin-slurm-jobstep", "0.6.1"),
    ],
)
def test_what_is_tested_is_what_is_pinned(package: str, version: str) -> None:
    assert importlib.metadata.version(package) == version
    assert f'"{package}=={version}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
