"""A whole study through Snakemake: from its file to the report, again, and cell by cell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from shardwatt.readings import Status
from shardwatt.recordfiles import read
from shardwatt.records import Outcome, Record
from workflow_project import Project, planned_jobs

pytestmark = pytest.mark.workflow

REPORT = "results/tiny/report.html"
#: Of all cells: the last of what is made from them that draws nothing.
TABLE = "results/tiny/cells.parquet"


def test_a_study_ends_in_figures_tables_and_a_report(finished: Project) -> None:
    results = finished.root / "results" / "tiny"
    frame = pd.read_parquet(results / "cells.parquet")
    assert list(frame["outcome"]) == ["ok", "ok"]
    assert len(pd.read_csv(results / "cells.csv")) == 2
    for name in ("table-2", "table-3", "table-4", "table-5", "outcomes"):
        for kind in ("csv", "md", "tex"):
            assert (results / "tables" / f"{name}.{kind}").stat().st_size > 0
    figures = {path.stem for path in (results / "figures").glob("*.svg")}
    assert {"throughput", "power"} <= figures
    assert len(figures) == 5
    for figure in figures:
        for kind in ("pdf", "png"):
            assert (results / "figures" / f"{figure}.{kind}").stat().st_size > 0
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "Tests: a tiny study" in page
    assert not (results / ".work").exists() or not any((results / ".work").iterdir())


def test_records_add_up(finished: Project) -> None:
    for paths in finished.cells():
        record = read(Record, paths.record)
        assert record.timings is not None
        assert record.counts is not None
        assert record.energy is not None
        phases = record.timings.prefill_s + record.timings.walk_s + record.timings.decode_s
        assert phases + record.timings.between_s == pytest.approx(record.timings.duration_s, abs=1e-6)
        assert record.timings.job_duration_s > record.timings.duration_s
        assert record.energy.window.status is Status.ESTIMATED
        responses = pq.read_table(paths.results / "responses.parquet").to_pandas()
        batches = pq.read_table(paths.results / "batches.parquet").to_pandas()
        assert len(responses) == record.counts.prompts == 6
        assert responses["output_tokens"].sum() == record.counts.output_tokens
        assert batches["generated_tokens"].sum() == record.counts.generated_tokens
        assert responses["output_tokens"].max() <= 8
        assert not responses["prompt_id"].duplicated().any()


def test_shards_give_the_same_text(finished: Project) -> None:
    texts = [
        pq.read_table(paths.results / "responses.parquet").to_pandas()["text"].tolist()
        for paths in finished.cells()
    ]
    assert texts[0] == texts[1]


def test_running_again_runs_nothing(finished: Project) -> None:
    run = finished.snakemake(REPORT)
    assert run.returncode == 0, run.stdout
    assert "Nothing to be done" in run.stdout


def test_touched_models_and_data_rerun_nothing(finished: Project) -> None:
    for folder in ("models", "config/prompts"):
        for path in filter(Path.is_file, (finished.root / folder).rglob("[!.]*")):
            path.touch()
    assert "Nothing to be done" in finished.snakemake(REPORT).stdout


def test_a_deleted_cell_is_all_that_a_plain_rerun_runs(finished: Project) -> None:
    victim = finished.cells()[0]
    shutil.rmtree(victim.results)
    jobs = planned_jobs(finished.snakemake("-n", REPORT).stdout)
    assert jobs == {"cell": 1, "aggregate": 1, "figure": 5, "tables": 1, "report": 1}
    run = finished.snakemake(TABLE, timeout_s=600)
    assert run.returncode == 0, run.stdout
    assert victim.record.is_file()
    jobs = planned_jobs(finished.snakemake("-n", REPORT).stdout)
    assert jobs == {"figure": 5, "tables": 1, "report": 1}, "what was made from the table is older"


def test_a_cells_target_plans_that_one_job(finished: Project) -> None:
    victim = finished.cells()[0]
    victim.record.unlink()
    assert planned_jobs(finished.snakemake("-n", victim.target).stdout) == {"cell": 1}


def test_changed_constants_rerun_every_cell_and_are_named(finished: Project) -> None:
    finished.write_study(temperature=0.5)
    assert set(finished.states().values()) == {("outdated", "other_constants")}
    jobs = planned_jobs(finished.snakemake("-n", REPORT).stdout)
    assert jobs["cell"] == 2
    run = finished.shardwatt("cells", "tiny", "--remove-invalid")
    assert run.returncode == 0, run.stderr
    assert set(finished.states().values()) == {("missing", "not_run")}
    assert not any(paths.results.exists() for paths in finished.cells())


def test_a_torn_record_is_named_left_out_and_removed_on_request(finished: Project) -> None:
    torn, whole = finished.cells()
    content = torn.record.read_bytes()
    torn.record.write_bytes(content[: len(content) // 2])
    assert finished.states()[torn.target][0] == "invalid"
    run = finished.shardwatt("report", "--partial", "tiny", timeout_s=600)
    assert run.returncode == 0, run.stderr
    frame = pd.read_parquet(finished.root / "results/tiny/partial/cells.parquet").set_index("target")
    assert frame.loc[torn.target, "outcome"] == "invalid"
    assert frame["energy_j"].isna()[torn.target]
    assert frame.loc[whole.target, "outcome"] == "ok"
    partial = finished.root / "results" / "tiny" / "partial"
    assert torn.target in (partial / "report.html").read_text(encoding="utf-8")
    assert (partial / "figures" / "throughput.png").is_file(), "drawn from the cells that exist"
    assert finished.shardwatt("cells", "tiny", "--remove-invalid").returncode == 0
    assert planned_jobs(finished.snakemake("-n", REPORT).stdout)["cell"] == 1


def test_snakemakes_own_report_works_offline(finished: Project) -> None:
    run = finished.snakemake(REPORT, "--report", "report.zip")
    assert run.returncode == 0, run.stdout
    assert (finished.root / "report.zip").stat().st_size > 0


def test_cells_are_listed_filtered_and_refused_with_a_suggestion(finished: Project) -> None:
    listed = finished.shardwatt("cells", "tiny", "--where", "shards=2", "--format", "targets")
    assert listed.stdout.splitlines() == [finished.cells()[1].target]
    assert finished.shardwatt("cells", "tiny", "--outcome", "failed", "--format", "json").stdout == "[]\n"
    wrong = finished.shardwatt("cells", "tiny", "--where", "shard=2")
    assert wrong.returncode == 1
    assert "did you mean 'shards'" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_a_moved_project_reruns_nothing(finished: Project) -> None:
    moved = Project(finished.root.with_name("moved elsewhere"), finished.environment)
    finished.root.rename(moved.root)
    assert "Nothing to be done" in moved.snakemake("-n", REPORT).stdout


def test_another_spelling_of_a_folder_reruns_nothing(finished: Project) -> None:
    finished.environment["SHARDWATT_MODELS"] = str(finished.root / "models")
    assert "Nothing to be done" in finished.snakemake("-n", REPORT).stdout


def test_two_runs_at_once_do_not_share_a_folder(finished: Project) -> None:
    shutil.rmtree(finished.root / "results")
    command = finished.snakemake_command(finished.cells()[0].target)
    processes = [
        subprocess.Popen(
            command,
            cwd=finished.root,
            env=finished.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes in ([0, 1], [0, 0]), outputs
    if codes == [0, 1]:
        assert any("cannot be locked" in output for output in outputs)
    assert read(Record, finished.cells()[0].record).outcome is Outcome.OK


def test_snakefile_parses_without_heavy_imports(project: Project) -> None:
    code = (
        "import sys\n"
        "from snakemake.cli import main\n"
        "try:\n"
        f"    main(['--profile', 'profiles/local', '-n', '{REPORT}'])\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        # Snakemake and its plugins may load pandas themselves; tests/unit/test_house.py has ours alone.
        "heavy = {'torch', 'matplotlib', 'sentencepiece', 'submitit', 'fairscale'}\n"
        "print('HEAVY', sorted(heavy & sys.modules.keys()))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project.root,
        env=project.environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "HEAVY []" in run.stdout, run.stdout[-500:]


def test_ids_in_json_are_the_axes(finished: Project) -> None:
    cells = json.loads(finished.shardwatt("cells", "tiny", "--format", "json").stdout)
    assert [cell["cell"]["shards"] for cell in cells] == [1, 2]
    assert all(Path(finished.root / cell["log"]).is_file() for cell in cells)
