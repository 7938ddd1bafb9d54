"""Guards `shardwatt calibrate`: what it writes and where, what it says, and how a user's mistake ends."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from shardwatt.cli import main
from small_project import DATASETS, make_root, site_content, write_yaml
from synthetic_calibration import CONSTANTS, GPUS, TOKENS, TRUE, cells, observed, write_observed
from synthetic_cells import STUDY, Numbers

Shardwatt = Callable[..., subprocess.CompletedProcess[str]]

#: The cells' axes; as a cross product it has more cells, which have not run.
MATRIX = {
    "model": ["llama-7b", "llama-13b"],
    "gpu": ["v100", "a100"],
    "shards": [1, 2, 4, 8],
    "batch": [4, 8, 16, 32, 64, 128],
    "length": [32, 64, 128, 256],
    "dataset": "alpaca",
}


#: Which of them a plan is looked at.
ONE_CELL = ["--where", "gpu=v100", "--where", "shards=1", "--where", "batch=4", "--where", "length=64"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which seven cells of each of two GPU types have run, of more that there are."""
    root = make_root(tmp_path_factory.mktemp("finished") / "a project")
    (root / "Snakefile").touch()
    datasets = {name: {**dataset, "tokens": TOKENS} for name, dataset in DATASETS.items()}
    write_yaml(root / "config" / "datasets.yaml", {"datasets": datasets})
    write_yaml(root / "profiles" / "local" / "site.yaml", site_content(root, gpus=GPUS))
    study = {"title": "A test", "prompts": CONSTANTS.prompts, "matrix": [MATRIX]}
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study)
    numbers = Numbers(dataset_sha256=DATASETS["alpaca"]["sha256"])
    slow = replace(TRUE, bandwidth=0.5)
    for cell in cells("v100")[:7]:
        write_observed(root, observed(cell, scatter=0.02), numbers)
    for cell in cells("a100")[:7]:
        write_observed(root, observed(cell, slow, scatter=0.02), numbers)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished project, of the same name, for a test to change."""
    return Path(shutil.copytree(finished, tmp_path / finished.name))


@pytest.fixture
def shardwatt(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shardwatt:
    for name in ("SHARDWATT_ROOT", "SHARDWATT_SITE", "SHARDWATT_MODELS", "SHARDWATT_DATA"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["shardwatt", *words])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(words, end.value.code, printed.out, printed.err)

    return run


def calibration(root: Path) -> Path:
    return root / "profiles" / "local" / "site.calibration.yaml"


def test_factors_go_beside_the_site_file_and_the_figure_to_the_study_and_the_next_finds_the_same(
    root: Path, shardwatt: Shardwatt
) -> None:
    """What is stored feeds back into forecasts, and not into the next fit."""
    before = shardwatt("plan", STUDY, "--format", "json", *ONE_CELL)
    assert before.returncode == 0, before.stderr
    assert "calibrated on" not in before.stdout
    assert "not calibrated" in before.stdout

    run = shardwatt("calibrate", STUDY)
    assert run.returncode == 0, run.stderr
    content = yaml.safe_load(calibration(root).read_text())["calibration"]
    assert list(content) == ["v100/reference", "a100/reference"]
    assert content["v100/reference"]["bandwidth"] == pytest.approx(TRUE.bandwidth, rel=0.1)
    assert content["a100/reference"]["bandwidth"] == pytest.approx(0.5, rel=0.1)
    assert content["v100/reference"]["source"] == f"shardwatt calibrate {STUDY}"
    low, high = content["v100/reference"]["spread"]["duration_s"]
    assert 0.8 < low < 1 < high < 1.25
    figure = root / "results" / STUDY / "calibration.svg"
    assert figure.is_file()
    printed = run.stdout.splitlines()
    assert str(calibration(root)) in printed
    assert str(figure) in printed
    assert "the same cells predicted from those of other GPU types" in run.stdout
    assert "llama-7b on alpaca" in run.stdout
    assert "better than both baselines" in run.stdout

    after = shardwatt("plan", STUDY, "--format", "json", *ONE_CELL)
    assert before.stdout != after.stdout
    assert "not calibrated" not in after.stdout

    stored = calibration(root).read_text()
    assert shardwatt("calibrate", STUDY).returncode == 0
    assert calibration(root).read_text() == stored


def test_a_dry_run_says_the_same_and_writes_nothing(root: Path, shardwatt: Shardwatt) -> None:
    run = shardwatt("calibrate", STUDY, "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "v100/reference: 7 cells" in run.stdout
    assert not calibration(root).exists()
    assert not (root / "results" / STUDY / "calibration.svg").exists()


def test_a_damaged_record_is_counted_and_the_command_that_shows_it_is_named(
    root: Path, shardwatt: Shardwatt
) -> None:
    record = next((root / "results" / STUDY).rglob("gpu=v100/**/result.json"))
    record.write_bytes(record.read_bytes()[:500])
    run = shardwatt("calibrate", STUDY, "--dry-run")
    assert run.returncode == 0, run.stderr
    assert "v100/reference: 6 cells" in run.stdout
    assert (
        f"1 cell: invalid, and left out; `shardwatt cells {STUDY} --outcome invalid` says why" in run.stderr
    )


def test_a_study_with_too_few_cells_is_refused_with_what_to_run(root: Path, shardwatt: Shardwatt) -> None:
    study = {"title": "A test", "prompts": CONSTANTS.prompts, "matrix": [{**MATRIX, "batch": 4}]}
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study)
    run = shardwatt("calibrate", STUDY)
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert "v100/reference: 2 of 4 cells; a100/reference: 2 of 4 cells" in run.stderr
    assert "run more batch sizes, lengths or shard counts" in run.stderr
    assert not calibration(root).exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing-here"], "unknown study 'nothing-here'"),
        ([], "Missing argument"),
    ],
)
def test_mistakes_end_in_one_message(shardwatt: Shardwatt, words: list[str], message: str) -> None:
    run = shardwatt("calibrate", *words)
    assert run.returncode != 0
    assert message in run.stderr
    assert "Traceback" not in run.stderr
