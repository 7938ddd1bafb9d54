"""Guards jobs of several cells: which cells share one, and that it asks for what a job of one would."""

from __future__ import annotations

import os
import shlex
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from executor_words import sbatch_words
from shardwatt.attempts import Claim
from shardwatt.cell import Cell
from shardwatt.checkpoints import ModelError
from shardwatt.errors import NoAnswerError, ShardwattError, SlurmError
from shardwatt.layout import claim_file, claims
from shardwatt.plan.cellforecast import CellForecast
from shardwatt.recordfiles import read
from shardwatt.run.together import (
    SharedJob,
    in_random_order,
    shared_jobs,
    split_comparisons,
    submit_together,
)
from shardwatt.site import Site
from shardwatt.sitepower import PowerLimits
from slurm_site import V100, slurm_cell, slurm_site
from small_project import make_checkpoint, make_root, write_yaml

#: Short options as the executor writes them, by what they mean.
LONG = {"-p": "--partition", "-t": "--time", "-C": "--constraint", "-A": "--account"}


#: Cap and repeat of eight cells in the order of seed 2023.
PINNED = [("250", 2), ("250", 1), ("150", 1), ("150", 2), ("200", 1), ("none", 1), ("200", 2), ("none", 2)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose models lie in the folder `models` of the same root."""
    make_root(tmp_path)
    make_checkpoint(tmp_path / "models" / "llama-65b", 8)
    return tmp_path


def site_of(root: Path, words: dict[str, object] | None = None) -> Site:
    return slurm_site(words).model_copy(update={"models": root / "models"})


def batches(cell: Cell, *sizes: int) -> list[Cell]:
    return [replace(cell, batch=size) for size in sizes]


def executors_words(site: Site, cell: Cell) -> dict[str, str]:
    """What the executor asks of Slurm for a cell, by option; short options by their long names."""
    words = iter(sbatch_words(site, cell))
    found = {}
    for word in words:
        if word in LONG or word == "--mem":
            found[LONG.get(word, word)] = next(words)
        else:
            name, _, value = word.partition("=")
            found[name] = value
    return found


@pytest.mark.parametrize(
    ("words", "cell"),
    [
        (V100, slurm_cell(1)),
        (V100, slurm_cell(8)),
        ({**V100, "exclusive": False, "account": "me", "qos": "long"}, slurm_cell(2)),
        ({"gres": "gpu", "constraint": "a100&nvlink"}, slurm_cell(4)),
        ({"constraint": "a100"}, slurm_cell(4)),
        (V100, slurm_cell(6, "cpu")),
        ({**V100, "extra": ["--reservation=paper", "--nice=10"]}, slurm_cell(1)),
    ],
)
def test_it_asks_for_what_the_executor_would_ask_for_one_cell(words: dict[str, object], cell: Cell) -> None:
    site = slurm_site(words)
    own = SharedJob((cell, replace(cell, batch=1)), 777).sbatch_words(site, "paper", Path("/logs"))
    assert own[0] == "sbatch"
    found = {name: value for name, _, value in (word.partition("=") for word in own[1:])}
    expected = executors_words(site, cell)
    # The time is that of all cells. A job that Slurm starts again would run all of them again.
    del expected["--time"]
    assert found.pop("--time") == "777"
    assert expected.pop("--requeue") == found.pop("--no-requeue") == ""
    for name in ("--parsable", "--job-name", "--comment", "--output", "--export"):
        del found[name]
    assert found == expected


def test_only_cells_that_need_the_same_ranks_share_a_job(root: Path) -> None:
    eight, two = slurm_cell(8), slurm_cell(2)
    other = replace(eight, precision="bf16")
    jobs = shared_jobs(
        root,
        site_of(root),
        [*batches(eight, 1, 2), *batches(two, 1, 2), other, *batches(eight, 4)],
        8,
        seed=None,
    )
    assert [job.cells for job in jobs] == [
        tuple(batches(eight, 1, 2, 4)),
        tuple(batches(two, 1, 2)),
        (other,),
    ]


def test_data_set_length_and_repeat_may_differ_in_a_job(root: Path) -> None:
    cell = slurm_cell(8)
    alike = [cell, replace(cell, dataset="alpaca"), replace(cell, length=16), replace(cell, repeat=2)]
    (job,) = shared_jobs(root, site_of(root, {**V100, "runtime_max_min": None}), alike, 8, seed=None)
    assert job.cells == tuple(alike)


def capped(cell: Cell, caps: list[str], repeats: int = 1) -> list[Cell]:
    """A comparison: in matrix order, repeat by repeat within each cap."""
    return [replace(cell, cap=cap, repeat=repeat) for cap in caps for repeat in range(1, repeats + 1)]


def test_cells_that_differ_in_cap_and_repeat_alone_share_a_job(root: Path) -> None:
    cell = replace(slurm_cell(8), batch=1)
    free = site_of(root, {**V100, "runtime_max_min": None})
    caps = ["none", "250", "150"]
    small, large = capped(cell, caps), capped(replace(cell, batch=2), caps)
    mixed = [one for pair in zip(small, large, strict=True) for one in pair]
    jobs = shared_jobs(root, free, mixed, 4, seed=None)
    assert [set(job.cells) for job in jobs] == [set(small), set(large)], "4 fit, and would tear a group apart"
    assert split_comparisons(jobs) == []
    (job,) = shared_jobs(root, free, mixed, 6, seed=None)
    assert set(job.cells) == {*small, *large}


def test_a_comparison_too_large_for_a_job_is_split_between_repeats_and_said_to_be(root: Path) -> None:
    free = site_of(root, {**V100, "runtime_max_min": None})
    group = capped(slurm_cell(8), ["none", "250", "150"], repeats=3)
    jobs = shared_jobs(root, free, group, 7, seed=None)
    assert [{cell.repeat for cell in job.cells} for job in jobs] == [{1, 2}, {3}]
    assert [len(job.cells) for job in jobs] == [6, 3]
    assert [set(split) for split in split_comparisons(jobs)] == [set(group)]
    jobs = shared_jobs(root, free, group, 2, seed=None)
    assert max(len(job.cells) for job in jobs) == 2
    assert sorted(cell for job in jobs for cell in job.cells) == sorted(group), "each once"


def test_a_prolog_that_sets_limits_has_one_cap_a_job(root: Path) -> None:
    site = site_of(root, {**V100, "runtime_max_min": None})
    site = site.model_copy(update={"power_limits": PowerLimits(set_by="prolog")})
    group = capped(slurm_cell(8), ["none", "250"], repeats=2)
    jobs = shared_jobs(root, site, group, 8, seed=None)
    assert [{cell.cap for cell in job.cells} for job in jobs] == [{"none"}, {"250"}]
    assert len(split_comparisons(jobs)) == 1


def test_the_random_order_is_that_of_the_seed_and_of_nothing_else(root: Path) -> None:
    free = site_of(root, {**V100, "runtime_max_min": None})
    group = capped(slurm_cell(8), ["none", "250", "200", "150"], repeats=2)
    (job,) = shared_jobs(root, free, group, 8, seed=2023)
    (again,) = shared_jobs(root, free, reversed(group), 8, seed=2023)
    (other,) = shared_jobs(root, free, group, 8, seed=7)
    assert job.cells == again.cells
    assert len({job.cells, other.cells, tuple(group)}) == 3
    assert set(job.cells) == set(group)
    # Pinned: the order of a published study must not change with a version of Python or of shardwatt.
    assert [(cell.cap, cell.repeat) for cell in job.cells] == PINNED
    some = [cell for cell in job.cells if cell.repeat == 1]
    assert in_random_order(reversed(some), 2023) == some, "what is missing does not change the rest"


def test_every_place_in_a_job_falls_to_every_cap() -> None:
    """Over many seeds each cap comes first about equally often: a fixed order would favour one."""
    group = capped(slurm_cell(8), ["none", "250", "150"])
    first = Counter(in_random_order(group, seed)[0].cap for seed in range(300))
    assert min(first.values()) > 60
    assert set(first) == {"none", "250", "150"}


def test_a_job_has_the_time_of_all_its_cells_and_no_more_of_them_than_wanted(root: Path) -> None:
    site = site_of(root, {**V100, "runtime_max_min": None})
    jobs = shared_jobs(root, site, batches(slurm_cell(8), 1, 2, 4, 8, 16), 2, seed=None)
    assert [len(job.cells) for job in jobs] == [2, 2, 1]
    assert [job.runtime_min for job in jobs] == [120, 120, 60]


def test_no_job_is_longer_than_its_partition_allows(root: Path) -> None:
    """V100: an hour a cell, at most 200 minutes a job."""
    jobs = shared_jobs(root, site_of(root), batches(slurm_cell(8), 1, 2, 4, 8), 8, seed=None)
    assert [(len(job.cells), job.runtime_min) for job in jobs] == [(3, 180), (1, 60)]


def forecast(cell: Cell) -> CellForecast:
    """Ten minutes, and 1 GiB of the host, for each row of the batch, if no response ends by itself."""
    return CellForecast(
        cell=cell,
        need=None,
        memory_gib=32,
        fits=None,
        nodes=4,
        gpus=8,
        gpus_held=8,
        allocation_duration_s=60.0,
        longest_job_s=600.0 * cell.batch,
        host_memory_gib=float(cell.batch),
    )


def test_each_cell_has_the_time_and_the_job_the_memory_that_the_plan_says(root: Path) -> None:
    """Twice the planned time and 2 min, 200 min at most; 1.5 x the most memory that one of them takes."""
    words: dict[str, object] = {
        "runtime_max_min": 200,
        "memory_per_node_gib": 1.0,
        "memory_per_node_max_gib": 99,
    }
    site = site_of(root, words)
    cells = batches(slurm_cell(8), 8, 1, 2, 4)
    jobs = shared_jobs(root, site, cells, 8, seed=None, forecast=forecast)
    assert [[cell.batch for cell in job.cells] for job in jobs] == [[8, 1], [2, 4]]
    assert [job.runtime_min for job in jobs] == [162 + 22, 42 + 82]
    asked = [job.sbatch_words(site, "paper", Path("/logs")) for job in jobs]
    assert [[word for word in one if word.startswith("--mem=")] for one in asked] == [
        [f"--mem={int(1.5 * batch * 1024)}"] for batch in (8, 4)
    ]


def test_a_cell_that_is_longer_than_the_partition_allows_has_a_job_of_its_own(root: Path) -> None:
    site = site_of(root, {"runtime_max_min": 130})
    jobs = shared_jobs(root, site, batches(slurm_cell(8), 8, 1, 2), 8, seed=None, forecast=forecast)
    assert [[cell.batch for cell in job.cells] for job in jobs] == [[8], [1, 2]]
    assert [job.runtime_min for job in jobs] == [130, 64]


def test_a_model_that_is_not_made_yet_is_named_with_the_command_that_makes_it(root: Path) -> None:
    recipe = {
        "about": "a test",
        "dim": 32,
        "n_layers": 1,
        "n_heads": 4,
        "mean_response_tokens": 4,
    }
    write_yaml(root / "config" / "models" / "tiny.yaml", recipe)
    folder = root / "models" / "tiny" / "shards-1"
    with pytest.raises(ModelError, match=rf"make it first: snakemake --profile profiles/slurm {folder}$"):
        shared_jobs(root, site_of(root), [replace(slurm_cell(2), model="tiny")], 8, seed=None)


def test_the_script_runs_all_cells_in_order_whatever_the_folders_are_called() -> None:
    cells = tuple(batches(slurm_cell(8), 2, 4))
    script = SharedJob(cells, 120).script("/my env/bin/python", "paper")
    first, command = script.splitlines()
    assert first == "#!/bin/sh"
    assert shlex.split(command) == [
        *("exec", "/my env/bin/python", "-m", "shardwatt", "run-cell", "paper"),
        *(cell.path for cell in cells),
    ]


SBATCH = """\
#!/bin/sh
ls {claims} >> {folder}/seen
count=$(wc -l < {folder}/calls 2> /dev/null || echo 0)
echo "$*" >> {folder}/calls
[ "$count" -lt {good} ] && echo $((17 + count)) && exit
echo 'sbatch: error: Batch job submission failed: {refusal}' >&2
exit 1
"""


@pytest.mark.parametrize(
    ("good", "refusal", "known", "error"),
    [
        (3, "", {"17", "18", "19"}, None),
        (1, "Invalid partition name specified", {"17"}, SlurmError),
        (1, "Socket timed out on send/recv operation", {"17", "pending"}, NoAnswerError),
    ],
)
def test_what_jobs_run_is_noted_before_the_first_is_submitted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    good: int,
    refusal: str,
    known: set[str],
    error: type[Exception] | None,
) -> None:
    """And stays noted where nobody knows whether there is a job: a time-out is no refusal."""
    notes = claims(tmp_path, "paper")
    script = SBATCH.format(claims=notes, folder=tmp_path, good=good, refusal=refusal)
    (tmp_path / "sbatch").write_text(script)
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    jobs = [SharedJob((cell,), 60) for cell in batches(slurm_cell(8), 1, 2, 4)]
    numbers = submit_together(tmp_path, site_of(tmp_path), "paper", "python", jobs)
    with nullcontext() if error is None else pytest.raises(error):
        assert list(numbers) == ["17", "18", "19"]
    first = (tmp_path / "seen").read_text().splitlines()[:3]
    assert all(name.startswith("pending-") for name in first), first
    assert {path.stem.partition("-")[0] for path in notes.iterdir()} == known
    assert read(Claim, claim_file(tmp_path, "paper", "17")) == Claim(
        job_id="17", cells=[jobs[0].cells[0].path]
    )
    assert f"claim={Path(first[0]).stem.partition('-')[0]}-" in (tmp_path / "calls").read_text()


def test_a_snakemake_that_runs_when_all_is_noted_lets_nothing_be_submitted(tmp_path: Path) -> None:
    def refuse() -> None:
        assert len(list(claims(tmp_path, "paper").iterdir())) == 2
        raise ShardwattError("Snakemake runs")

    jobs = [SharedJob((cell,), 60) for cell in batches(slurm_cell(8), 1, 2)]
    with pytest.raises(ShardwattError, match="Snakemake runs"):
        list(submit_together(tmp_path, site_of(tmp_path), "paper", "python", jobs, refuse))
    assert list(claims(tmp_path, "paper").iterdir()) == []


def test_simulated_cells_share_jobs_without_any_model(root: Path) -> None:
    """And never one with cells whose model runs: their ranks are not the same."""
    real = slurm_cell(8)
    rehearsed = replace(real, engine="simulated", model="llama-2-70b")
    cells = [rehearsed, replace(rehearsed, repeat=2), real, replace(rehearsed, model="llama-65b")]
    jobs = shared_jobs(root, site_of(root), cells, 8, seed=None)
    assert [job.cells for job in jobs] == [tuple(cells[:2]), (real,), (cells[3],)]
