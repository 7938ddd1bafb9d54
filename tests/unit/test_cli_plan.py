"""Guards `shardwatt plan`: what it prints and writes, and how cells that are left out appear elsewhere."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from shardwatt.cli import main
from small_project import BLOCK, GPUS, make_root, site_content, write_yaml

Run = subprocess.CompletedProcess[str]
Shardwatt = Callable[..., Run]

STUDY = "planned"
#: LLaMA 65B in fp16 fits on eight V100s with 32 GB at batch 64, and not on four.
MATRIX: list[dict[str, Any]] = [
    {**BLOCK, "name": "shards", "shards": [4, 8, 16], "repeat": [1, 2]},
    {**BLOCK, "name": "batches", "shards": 8, "batch": [32, 64], "repeat": [1, 2]},
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project whose site knows V100s by their data sheet, and has prices; its models are not there."""
    root = make_root(tmp_path / "a project")
    (root / "Snakefile").touch()
    v100 = {**GPUS["v100"], "per_node": 16, "data_sheet": "v100-pcie-32gb"}
    site = site_content(
        root,
        gpus={**GPUS, "v100": v100},
        prices={"currency": "EUR", "kwh": 0.25, "source": "a test"},
        pue=1.5,
    )
    write_yaml(root / "profiles" / "local" / "site.yaml", site)
    study = {"title": "A test", "prompts": 256, "cache_tokens": 512, "matrix": MATRIX}
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study)
    return root


@pytest.fixture
def shardwatt(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shardwatt:
    for name in ("SHARDWATT_ROOT", "SHARDWATT_SITE", "SHARDWATT_MODELS", "SHARDWATT_DATA", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> Run:
        monkeypatch.chdir(root)
        monkeypatch.setattr(sys, "argv", ["shardwatt", *words])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Run(words, end.value.code, printed.out, printed.err)

    return run


def printed(run: Run) -> str:
    assert run.returncode == 0, run.stderr
    return run.stdout


def rows(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(printed(run))))


def test_the_table_says_what_fits_and_what_it_takes(shardwatt: Shardwatt) -> None:
    text = printed(shardwatt("plan", STUDY))
    assert text.startswith(f"{STUDY} on testbed: 8 cells: 6 fit, 2 do not fit and are left out\n")
    assert max(map(len, text.splitlines())) <= 100
    (unfit,) = [line for line in text.splitlines() if line.endswith("does not fit")]
    assert unfit.split()[:3] == ["4", "64", "2"], "four shards at batch 64, in two repeats"
    assert "not calibrated" in text
    assert "model=llama-65b" in text


def test_csv_and_json_tell_the_same_of_every_cell(shardwatt: Shardwatt) -> None:
    table = rows(shardwatt("plan", STUDY, "--format", "csv"))
    content = json.loads(printed(shardwatt("plan", STUDY, "--format", "json")))
    assert len(table) == len(content["cells"]) == 8
    for text, value in zip(table, content["cells"], strict=True):
        assert text["energy_j"] == ("" if value["energy_j"] is None else str(value["energy_j"]))
    by_shards = {(int(row["shards"]), int(row["batch"])): row for row in table}
    small, usual, large = (by_shards[count, 64] for count in (4, 8, 16))
    assert (small["fits"], small["runs"], small["duration_s"], small["cost"]) == ("False", "False", "", "")
    assert float(small["needed_gib"]) > float(small["had_gib"]) == 32
    assert (usual["fits"], usual["blocks"], usual["gpus"], usual["currency"]) == ("True", "1 2", "8", "EUR")
    assert float(large["weights_gib"]) == pytest.approx(float(usual["weights_gib"]) / 2, rel=0.01)
    kwh = float(usual["allocation_energy_j"]) / 3.6e6
    assert float(usual["cost"]) == pytest.approx(kwh * 1.5 * 0.25)
    assert float(usual["allocation_duration_s"]) > float(usual["duration_s"]) > 0
    assert float(usual["allocation_energy_j"]) > float(usual["energy_j"]) > 0


def test_totals_are_of_the_blocks_and_once_of_the_whole(shardwatt: Shardwatt) -> None:
    content = json.loads(printed(shardwatt("plan", STUDY, "--format", "json")))
    energy = {name: [c["energy_j"] for c in content["cells"] if name in c["blocks"]] for name in "12"}
    sums = [sum(value for value in energy[name] if value is not None) for name in "12"]
    assert [block["sums"]["energy_j"]["value"] for block in content["blocks"]] == pytest.approx(sums)
    whole = sum(c["energy_j"] for c in content["cells"] if c["energy_j"] is not None)
    assert content["total"]["sums"]["energy_j"]["value"] == pytest.approx(whole)
    assert whole < sum(sums), "two cells are in both blocks"


def test_filters_narrow_the_plan_and_its_sums(shardwatt: Shardwatt) -> None:
    found = rows(shardwatt("plan", STUDY, "--format", "csv", "--where", "batch=64", "--where", "shards=8,16"))
    assert [(row["shards"], row["repeat"]) for row in found] == [
        ("8", "1"),
        ("8", "2"),
        ("16", "1"),
        ("16", "2"),
    ]
    assert "4 of 8 cells" in printed(shardwatt("plan", STUDY, "--where", "shards=8")).splitlines()[0]
    none = printed(shardwatt("plan", STUDY, "--where", "shards=4", "--where", "batch=32"))
    assert none.startswith(f"{STUDY} on testbed: 0 of 8")


def test_writing_makes_the_four_files(shardwatt: Shardwatt, root: Path) -> None:
    names = printed(shardwatt("plan", STUDY, "--write")).splitlines()
    folder = root / "results" / STUDY
    files = ("plan.csv", "plan-totals.csv", "plan.parquet", "plan.md")
    assert [Path(name) for name in names] == [folder / name for name in files]
    assert (folder / "plan.csv").read_text() == printed(shardwatt("plan", STUDY, "--format", "csv"))
    assert (folder / "plan.md").read_text() == printed(shardwatt("plan", STUDY, "--format", "markdown"))
    assert pq.read_table(folder / "plan.parquet").num_rows == 8
    content = json.loads(printed(shardwatt("plan", STUDY, "--format", "json")))
    with (folder / "plan-totals.csv").open(encoding="utf-8", newline="") as stream:
        totals = list(csv.DictReader(stream))
    told = [one["sums"]["energy_j"]["value"] for one in (*content["blocks"], content["total"])]
    assert [float(row["energy_j"]) for row in totals] == told
    assert [row["block"] for row in totals] == ["1", "2", ""]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["plan", "planed"], 1, "unknown study 'planed'; did you mean 'planned'?"),
        (["plan", STUDY, "--where", "bach=2"], 1, "did you mean 'batch'?"),
        (["plan", STUDY, "--where", "gpu=v10"], 1, "gpu=v10: no cell has it; did you mean 'v100'?"),
        (["plan", STUDY, "--where", "shards=3"], 1, "shards=3: no cell has it; the study has 4, 8, 16"),
        (["plan", STUDY, "--write", "--where", "batch=64"], 1, "expected the whole study"),
        (["plan", STUDY, "--format", "xml"], 2, "'xml' is not one of"),
    ],
)
def test_mistakes_end_in_one_message(shardwatt: Shardwatt, words: list[str], code: int, told: str) -> None:
    run = shardwatt(*words)
    assert (run.returncode, run.stdout) == (code, "")
    assert told in run.stderr
    assert "Traceback" not in run.stderr


def test_a_plan_of_unknown_models_alone_is_refused_with_what_to_do(shardwatt: Shardwatt, root: Path) -> None:
    path = root / "config" / "studies" / "odd.yaml"
    content = {"title": "A test", "prompts": 256, "matrix": [{**BLOCK, "model": ["lama-65b", "llama-65b"]}]}
    write_yaml(path, content)
    beside_a_known_one = printed(shardwatt("plan", "odd"))
    assert "of 1 it is not known whether they fit" in beside_a_known_one
    told = " ".join(beside_a_known_one.split())
    assert "warning: the shape of model 'lama-65b' is not known here; did you mean 'llama-65b'?" in told
    assert "nothing is predicted (1 cell)" in told
    filtered = shardwatt("plan", "odd", "--where", "model=lama-65b")
    write_yaml(path, {**content, "matrix": [{**BLOCK, "model": "lama-65b"}]})
    for run in (filtered, shardwatt("plan", "odd", "--format", "csv"), shardwatt("plan", "odd", "--write")):
        assert (run.returncode, run.stdout) == (1, "")
        assert "nothing can be planned: " in run.stderr
        assert "llama-65b" in run.stderr, "a shape that is known is suggested"
    assert not (root / "results").exists()


def test_links_that_nobody_says_are_warned_of(shardwatt: Shardwatt, root: Path) -> None:
    path = root / "profiles" / "local" / "site.yaml"
    site = yaml.safe_load(path.read_text())
    assert "warning" not in printed(shardwatt("plan", STUDY)), "sixteen shards are one node"
    site["gpus"]["v100"]["per_node"] = 4
    write_yaml(path, {**site, "launcher": "slurm"})
    (told,) = [
        line for line in printed(shardwatt("plan", STUDY)).splitlines() if line.startswith("warning: ")
    ]
    assert "25 Gb/s Ethernet between nodes" in told


def test_a_plan_that_cannot_be_written_is_the_disks_fault(shardwatt: Shardwatt, root: Path) -> None:
    (root / "results" / STUDY / "plan.csv").mkdir(parents=True)
    run = shardwatt("plan", STUDY, "--write")
    assert run.returncode == 1
    assert "expected a folder that can be written" in run.stderr


def test_a_look_at_the_plan_imports_nothing_heavy(root: Path) -> None:
    program = (
        "import sys\nsys.argv = ['shardwatt', 'plan', 'planned', '--format', 'csv']\n"
        "from shardwatt.cli import main\ntry: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'pyarrow', 'matplotlib'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SHARDWATT_")}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True
    )
    assert run.stdout.count("\n") == 9, run.stderr
    assert run.stderr.strip() == "[]"


def test_cells_that_are_left_out_are_listed_as_predicted(shardwatt: Shardwatt) -> None:
    text = printed(shardwatt("cells", STUDY))
    assert text.startswith(f"{STUDY}: 8 of 8 cells: 2 does_not_fit (2 predicted), 6 missing\n")
    assert "predicted: the plan needs" in text
    assert "GiB of each v100, which has 32 GiB: weights" in text
    assert not any("shards=4" in line for line in text.splitlines() if "rerun" in line)
    content = json.loads(printed(shardwatt("cells", STUDY, "--format", "json", "--outcome", "does_not_fit")))
    assert {entry["reason"] for entry in content} == {"predicted"}
    assert {entry["cell"]["shards"] for entry in content} == {4}


def test_cells_that_run_all_the_same_are_missing(shardwatt: Shardwatt, root: Path) -> None:
    study = {"title": "A test", "prompts": 256, "cache_tokens": 512, "matrix": MATRIX, "unfit": "run"}
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study)
    assert printed(shardwatt("cells", STUDY)).startswith(f"{STUDY}: 8 of 8 cells: 8 missing\n")
    assert "2 do not fit and are run all the same" in printed(shardwatt("plan", STUDY))


def test_aggregation_takes_them_from_the_plan(shardwatt: Shardwatt, root: Path) -> None:
    printed(shardwatt("aggregate", STUDY))
    table = csv.DictReader((root / "results" / STUDY / "cells.csv").read_text().splitlines())
    found = {(row["shards"], row["batch"], row["repeat"]): row for row in table}
    unfit, other = found["4", "64", "1"], found["8", "64", "1"]
    assert (unfit["outcome"], unfit["reason"]) == ("does_not_fit", "predicted")
    assert float(unfit["planned_memory_gib"]) > 32
    assert (other["outcome"], other["planned_memory_gib"]) == ("missing", "")
