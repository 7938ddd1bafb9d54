"""Guards the commands: what they list and remove, and how a user's mistake ends."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shardwatt.analysis.survey import State
from shardwatt.attempts import Attempt
from shardwatt.cell import Cell
from shardwatt.cli import main
from shardwatt.cli.leftovers import left_by
from shardwatt.cli.options import Place
from shardwatt.layout import CELL_FILES, CellPaths
from shardwatt.locks import alone
from shardwatt.models import find_checkpoint, fingerprint
from shardwatt.recordfiles import write
from shardwatt.records import Outcome
from shardwatt.site import load_site
from small_project import (
    BLOCK,
    DATASETS,
    make_checkpoint,
    make_root,
    make_site,
    site_content,
    study_content,
    write_yaml,
)
from synthetic_cells import (
    CONSTANTS,
    STARTED,
    STUDY,
    Numbers,
    make_cell,
    write_does_not_fit,
    write_failed,
    write_ok,
    write_outdated,
    write_torn,
)

Shardwatt = Callable[..., subprocess.CompletedProcess[str]]


def cell(batch: int, length: int = 256) -> Cell:
    return make_cell(model="llama-65b", shards=8, batch=batch, length=length, dataset="gsm8k")


def target(batch: int, length: int = 256) -> str:
    return CellPaths(Path(), STUDY, cell(batch, length)).target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project of twelve cells: five with something to tell at length 256, six at 512, one not run."""
    root = make_root(tmp_path / "a project")
    (root / "Snakefile").touch()
    write_yaml(root / "profiles" / "local" / "site.yaml", site_content(root))
    block = {**BLOCK, "batch": [1, 2, 4, 5, 10, 20], "length": [256, 512]}
    study = {"title": "A test", "prompts": CONSTANTS.prompts, "matrix": [block]}
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study)
    make_checkpoint(root / "models" / "llama-65b", 8)
    made_from = fingerprint(root, find_checkpoint(root, root / "models", "llama-65b", 8), "llama-65b")
    numbers = Numbers(model_fingerprint=made_from, dataset_sha256=DATASETS["gsm8k"]["sha256"])
    write_ok(root, cell(1), numbers)
    write_does_not_fit(root, cell(2), numbers)
    write_failed(root, cell(4), message="rank 3 lost its way [into the bushes]")
    write_torn(root, cell(5))
    write_outdated(root, cell(10))
    for batch in (1, 2, 4, 5, 10, 20):
        write_ok(root, cell(batch, 512), numbers)
    return root


@pytest.fixture
def shardwatt(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shardwatt:
    for name in ("SHARDWATT_ROOT", "SHARDWATT_SITE", "SHARDWATT_MODELS", "SHARDWATT_DATA"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str, cwd: Path = root) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["shardwatt", *words])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(words, end.value.code, printed.out, printed.err)

    return run


def environment() -> dict[str, str]:
    """A user's: nothing of this project set, and output buffered as usual."""
    others = ("SHARDWATT_", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if not name.startswith(others)}


def files(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*") if path.is_file()}


def refusal(run: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """The message of a command that refused; it is all there is."""
    assert run.returncode == code, run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    return run.stderr


def test_every_cell_is_listed_with_outcome_reason_and_target(shardwatt: Shardwatt) -> None:
    run = shardwatt("cells", STUDY)
    assert run.returncode == 0, run.stderr
    head = run.stdout.splitlines()[0]
    assert (
        head == f"{STUDY}: 12 of 12 cells: 7 ok, 1 does_not_fit, 1 failed, 1 missing, 1 invalid, 1 outdated"
    )
    assert "rank_died: rank 3 lost its way [into the bushes]" in run.stdout
    for batch in (2, 4, 5, 10, 20):
        assert f"rerun: {target(batch)}" in run.stdout
    assert target(1) not in run.stdout
    assert target(1) in shardwatt("cells", STUDY, "--long").stdout
    assert f"`shardwatt cells {STUDY} --remove-invalid`" in run.stderr


def test_records_of_cells_that_the_study_no_longer_has_are_named(shardwatt: Shardwatt, root: Path) -> None:
    assert "no cell of the study" not in shardwatt("cells", STUDY).stderr
    study = {"title": "A test", "prompts": CONSTANTS.prompts, "matrix": [{**BLOCK, "batch": 4}]}
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study)
    told = shardwatt("cells", STUDY, "--outcome", "ok").stderr
    assert f"Records below results/{STUDY}/cells that belong to no cell of the study" in told
    assert f"count nowhere: 10, {target(1)}, " in told


def test_what_played_another_forecast_is_outdated_in_tables_too(shardwatt: Shardwatt, root: Path) -> None:
    study = {"title": "A test", "prompts": CONSTANTS.prompts, "matrix": [{**BLOCK, "engine": "simulated"}]}
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study)
    before = Numbers(model_fingerprint="simulated-before", dataset_sha256="simulated")
    write_ok(
        root,
        Cell(**{**BLOCK, "engine": "simulated", "precision": "fp16", "cap": "none", "repeat": 1}),
        before,
    )
    assert shardwatt("aggregate", STUDY).returncode == 0
    assert shardwatt("report", "--partial", STUDY).returncode == 0
    for folder in (root / "results" / STUDY, root / "results" / STUDY / "partial"):
        (row,) = csv.DictReader((folder / "cells.csv").read_text().splitlines())
        assert (row["outcome"], row["reason"]) == ("outdated", "other_forecast")


@pytest.mark.parametrize(
    ("files", "snakemake", "words"),
    [
        (["profiles/local/site.yaml"], "--profile profiles/local", ""),
        (["profiles/slurm/site.yaml"], "--profile profiles/slurm", " --site profiles/slurm/site.yaml"),
        (
            ["profiles/slurm/other.yaml"],
            "--configfile profiles/slurm/other.yaml --profile profiles/slurm",
            " --site profiles/slurm/other.yaml",
        ),
        (
            ["profiles/slurm/site.yaml", "my site.yaml"],
            "--configfile profiles/slurm/site.yaml 'my site.yaml' --profile profiles/slurm",
            " --site profiles/slurm/site.yaml --site 'my site.yaml'",
        ),
    ],
)
def test_commands_are_told_for_the_site_that_was_given(
    tmp_path: Path, files: list[str], snakemake: str, words: str
) -> None:
    """A report of a cluster's study names no command that would run it elsewhere."""
    for name in ("local", "slurm"):
        write_yaml(tmp_path / "profiles" / name / "profile.v9+.yaml", {})
    site = make_site(tmp_path, launcher="local" if files == ["profiles/local/site.yaml"] else "slurm")
    place = Place(tmp_path, tmp_path, site, tuple(tmp_path / file for file in files))
    assert (place.snakemake, place.site_words) == (f"snakemake {snakemake}", words)


def test_json_tells_what_the_table_tells(shardwatt: Shardwatt) -> None:
    found = json.loads(shardwatt("cells", STUDY, "--format", "json", "--where", "length=256").stdout)
    assert {entry["cell"]["batch"]: (entry["outcome"], entry["reason"]) for entry in found} == {
        1: ("ok", None),
        2: ("does_not_fit", "device_memory"),
        4: ("failed", "rank_died"),
        5: ("invalid", "unreadable_record"),
        10: ("outdated", "other_constants"),
        20: ("missing", "not_run"),
    }


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--where", "batch=2,20", "--where", "length=256"], [(2, 256), (20, 256)]),
        (["--where", "batch=2,20", "--where", "batch=20"], [(20, 256), (20, 512)]),
        (["--outcome", "failed", "--outcome", "missing"], [(4, 256), (20, 256)]),
        (["--outcome", "ok", "--where", "batch=1"], [(1, 256), (1, 512)]),
        (["--where", "cap=300"], []),
    ],
)
def test_filters_hold_together(
    shardwatt: Shardwatt, words: list[str], expected: list[tuple[int, int]]
) -> None:
    run = shardwatt("cells", STUDY, "--format", "targets", *words)
    assert run.stdout.splitlines() == [target(*axes) for axes in expected]


def test_only_the_four_files_of_refused_cells_are_removed(shardwatt: Shardwatt, root: Path) -> None:
    torn, outdated = (CellPaths(root, STUDY, cell(batch)) for batch in (5, 10))
    (torn.results / "notes.txt").write_text("mine")
    before = files(root)
    run = shardwatt("cells", STUDY, "--remove-invalid")
    assert run.returncode == 0, run.stderr
    gone = {paths.results.relative_to(root) / name for paths in (torn, outdated) for name in CELL_FILES}
    assert before - files(root) == gone
    assert not outdated.results.exists()
    assert (torn.results / "notes.txt").read_text() == "mine"
    assert f"removed invalid: {torn.target}" in run.stderr
    assert shardwatt("cells", STUDY, "--outcome", "invalid", "--format", "targets").stdout == ""


def test_a_result_that_comes_while_others_are_removed_stays(root: Path) -> None:
    """As another job commits it: under the lock, which the command waits for."""
    torn, outdated = (CellPaths(root, STUDY, cell(batch)) for batch in (5, 10))
    with alone(outdated.commit_lock):
        process = subprocess.Popen(
            [sys.executable, "-m", "shardwatt", "cells", STUDY, "--remove-invalid"],
            cwd=root,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        said = iter(process.stderr.readline, "")
        assert f"removed invalid: {torn.target}\n" in said
        shutil.rmtree(outdated.results)
        write_ok(root, cell(10))
    assert f"has a new result meanwhile, left alone: {outdated.target}\n" in said
    process.communicate()
    assert process.returncode == 0
    assert {path.name for path in outdated.results.iterdir()} == set(CELL_FILES)


def test_a_result_that_its_job_tells_of_is_awaited_until_it_is_seen(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS: what is told as failed, Snakemake removes."""
    monkeypatch.chdir(root)
    file = root / "profiles" / "local" / "site.yaml"
    place = Place(root, root, load_site([file]), (file,))
    paths = CellPaths(root, STUDY, cell(4))
    ended = Attempt(job_id="7", node="n0", pid=1, started_at=STARTED, ended_at=STARTED, outcome=Outcome.OK)
    write(ended, paths.attempt("7"))
    assert left_by(place, STUDY, paths.cell, ["8"]).state is State.FAILED
    with ThreadPoolExecutor() as pool:
        found = pool.submit(left_by, place, STUDY, paths.cell, ["7"])
        with pytest.raises(TimeoutError):
            found.result(timeout=0.5)
        write_ok(root, paths.cell)
        assert found.result().state is not State.FAILED
        assert found.result().reason != "rank_died"


def test_removing_keeps_to_the_filters(shardwatt: Shardwatt, root: Path) -> None:
    shardwatt("cells", STUDY, "--remove-invalid", "--outcome", "outdated")
    assert CellPaths(root, STUDY, cell(5)).record.exists()
    assert not CellPaths(root, STUDY, cell(10)).record.exists()


def test_a_folder_below_the_project_finds_it(shardwatt: Shardwatt, root: Path) -> None:
    run = shardwatt("cells", STUDY, "--format", "targets", cwd=root / "config")
    assert len(run.stdout.splitlines()) == 12


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["cells", "synthetik"], 1, "unknown study 'synthetik'; did you mean 'synthetic'?"),
        (["cells", STUDY, "--where", "bach=2"], 1, "did you mean 'batch'?"),
        (["cells", STUDY, "--where", "batch"], 1, "expected AXIS=VALUE"),
        (["cells", STUDY, "--outcome", "fine"], 2, "'fine' is not one of"),
        (["cells", STUDY, "--site", "nowhere.yaml"], 1, "nowhere.yaml"),
        (["cells"], 2, "Missing argument 'STUDY'"),
        (["sells", STUDY], 2, "No such command 'sells'"),
        (["run-cell", STUDY, "model=llama"], 1, "'model=llama' is no cell"),
    ],
)
def test_mistakes_end_in_one_message(shardwatt: Shardwatt, words: list[str], code: int, told: str) -> None:
    assert told in refusal(shardwatt(*words), code)


def test_an_axis_without_a_value_is_not_called_misspelt(shardwatt: Shardwatt) -> None:
    assert refusal(shardwatt("cells", STUDY, "--where", "batch")).startswith(
        "shardwatt: --where batch: expected AXIS=VALUE; axes: engine, model, "
    )


@pytest.mark.parametrize(("encoding", "style"), [("latin-1", "table"), ("ascii", "markdown")])
def test_a_letter_that_an_encoding_lacks_is_told_by_its_number(root: Path, encoding: str, style: str) -> None:
    matrix = [{**BLOCK, "name": "九" * 80, "batch": batch} for batch in (1, 2)]
    write_yaml(root / "config" / "studies" / "odd.yaml", study_content(matrix=matrix))
    run = subprocess.run(
        [sys.executable, "-m", "shardwatt", "plan", "odd", "--format", style],
        cwd=root,
        env=environment() | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "COLUMNS": "140"},
        capture_output=True,
    )
    assert run.returncode == 0, run.stderr.decode(errors="replace")
    assert r"\u4e5d" in run.stdout.decode(encoding)


def test_outside_a_project_it_says_where_to_go(shardwatt: Shardwatt, tmp_path: Path) -> None:
    assert "go to the project's folder or pass --root" in refusal(shardwatt("cells", STUDY, cwd=tmp_path))


def test_a_cell_that_the_study_lacks_fails_with_its_reason(shardwatt: Shardwatt) -> None:
    message = refusal(shardwatt("run-cell", STUDY, cell(3).path))
    assert f"shardwatt: configuration: study '{STUDY}' has no cell engine=reference" in message


def test_results_that_cannot_be_written_are_the_disks_fault(shardwatt: Shardwatt, root: Path) -> None:
    (root / "results" / STUDY / "cells.parquet").mkdir()
    message = refusal(shardwatt("aggregate", STUDY))
    assert "expected a folder that can be written" in message


@pytest.mark.parametrize("style", ["json", "targets"], ids=["seen while printing", "seen at the end"])
def test_a_reader_that_has_seen_enough_is_no_error(root: Path, style: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "shardwatt", "cells", STUDY, "--format", style],
        cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=600) == 1
    assert errors == ""


def test_ctrl_c_ends_in_one_word(root: Path) -> None:
    """The site is a pipe that nobody fills: the command waits in mid-work."""
    site = root / "site.yaml"
    os.mkfifo(site)
    process = subprocess.Popen(
        [sys.executable, "-m", "shardwatt", "cells", STUDY, "--site", str(site)],
        cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with site.open("w"):  # returns once the command has opened it
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 130
    assert errors.strip() == "shardwatt: interrupted"


def test_the_power_of_a_cell_is_drawn_and_another_is_refused(root: Path, shardwatt: Shardwatt) -> None:
    drawn = shardwatt("power-trace", STUDY, cell(1, 512).path)
    assert drawn.returncode == 0, drawn.stderr
    files = [Path(line) for line in drawn.stdout.splitlines()]
    assert {path.parent for path in files} == {root / "results" / STUDY / "traces"}
    assert [path.suffix for path in files] == [".svg", ".pdf", ".png"]
    assert all(path.is_file() for path in files)
    unknown = shardwatt("power-trace", STUDY, "../elsewhere")
    assert unknown.returncode == 1
    assert f"study '{STUDY}' has no cell ../elsewhere; `shardwatt cells {STUDY}` lists" in unknown.stderr
    unfinished = shardwatt("power-trace", STUDY, cell(20).path)
    assert unfinished.returncode == 1
    assert "has no result" in unfinished.stderr
