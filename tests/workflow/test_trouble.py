"""What goes wrong while cells run: the right outcome and reason, nothing lost, nothing half-written."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from shardwatt.attempts import Attempt, Failure
from shardwatt.errors import Reason
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Outcome, Record
from workflow_project import Project

pytestmark = pytest.mark.workflow

REPORT = "results/tiny/report.html"
#: Of all cells; of what comes after, tests/workflow/test_study.py tells.
TABLE = "results/tiny/cells.parquet"
#: Longest time in s that a test waits for anything.
PATIENCE_S = 600.0
#: Longest time in s until a cell that was struck has ended: far less than a collective waits for a rank.
PROMPTLY_S = 300.0
#: A cell that would take far longer than any test waits.
ENDLESS: dict[str, Any] = {"prompts": 64, "warmup_tokens": 1}


def run_cell(
    project: Project, paths: CellPaths, preexec_fn: Callable[[], None] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shardwatt", "run-cell", paths.study, paths.cell.path],
        cwd=project.root, env=project.environment, capture_output=True, text=True, timeout=PATIENCE_S,
        preexec_fn=preexec_fn,
    )  # fmt: skip


def start_endless(project: Project, shards: int) -> tuple[subprocess.Popen[str], CellPaths]:
    """Start a cell that is in its run, and would stay there."""
    project.write_study(**ENDLESS, matrix=project.block(shards=shards, batch=1, length=400))
    paths = project.cells()[0]
    process = subprocess.Popen(
        [sys.executable, "-m", "shardwatt", "run-cell", "tiny", paths.cell.path],
        cwd=project.root, env=project.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    await_true(lambda: '"run"' in _progress(project), "the cell to run")
    return process, paths


def _progress(project: Project) -> str:
    return "".join(path.read_text() for path in project.root.glob("results/tiny/.work/*/progress.json"))


def await_true(condition: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def rank_pid(project: Project, rank: int) -> int:
    (path,) = project.root.glob(f"results/tiny/.work/*/rank-{rank}.start.json")
    return int(json.loads(path.read_text())["pid"])


def assert_nothing_left(project: Project, paths: CellPaths, started: list[psutil.Process]) -> None:
    assert not paths.record.exists()
    assert not list(project.root.glob("results/tiny/.work/*"))
    _, alive = psutil.wait_procs(started, timeout=PROMPTLY_S)
    assert not alive, alive


def test_a_killed_rank_ends_the_cell_within_seconds(project: Project) -> None:
    process, paths = start_endless(project, shards=2)
    started = psutil.Process(process.pid).children(recursive=True)
    killed_s = time.monotonic()
    os.kill(rank_pid(project, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - killed_s < PROMPTLY_S
    assert process.returncode == 1
    assert "rank_died" in errors
    assert "Traceback" not in errors
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.RANK_DIED
    assert failure.rank == 1
    (attempt,) = paths.logs.glob("attempt-*.json")
    assert read(Attempt, attempt).outcome is Outcome.FAILED
    assert_nothing_left(project, paths, started)


def test_a_stopped_rank_is_no_longer_waited_for(project: Project) -> None:
    site = project.root / "profiles" / "local" / "site.yaml"
    site.write_text(site.read_text() + "collective_timeout_s: 20\n")
    process, paths = start_endless(project, shards=2)
    os.kill(rank_pid(project, 1), signal.SIGSTOP)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.COLLECTIVE_TIMEOUT
    assert "rank 1 had not ended" in failure.message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_cell_cleanly(project: Project, number: signal.Signals) -> None:
    process, paths = start_endless(project, shards=1)
    started = psutil.Process(process.pid).children(recursive=True)
    # An impatient user, or a scheduler beside one: the clean-up is not cut short.
    for _ in range(3):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        time.sleep(0.02)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert read(Failure, paths.failure).reason is Reason.CANCELLED
    assert_nothing_left(project, paths, started)


def test_an_interrupt_that_the_ranks_launcher_sees_first_is_no_traceback(project: Project) -> None:
    process, paths = start_endless(project, shards=1)
    started = psutil.Process(process.pid).children(recursive=True)
    # The terminal interrupts the whole group, and on a busy machine the supervisor runs last.
    process.send_signal(signal.SIGSTOP)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.2)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert_nothing_left(project, paths, started)


def test_a_signal_before_the_ranks_start_is_written_down(project: Project) -> None:
    # Endless, however long the signal takes on a busy machine.
    project.write_study(**ENDLESS, matrix=project.block(shards=1, batch=1, length=400))
    paths = project.cells()[0]
    process = subprocess.Popen(
        [sys.executable, "-m", "shardwatt", "run-cell", paths.study, paths.cell.path],
        cwd=project.root, env=project.environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    await_true(lambda: any(paths.logs.glob("attempt-*.json")), "the attempt to begin")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert "ended by SIGTERM" in read(Failure, paths.failure).message
    (attempt,) = paths.logs.glob("attempt-*.json")
    assert read(Attempt, attempt).outcome is Outcome.FAILED
    assert_nothing_left(project, paths, [])


def test_ranks_do_not_outlive_a_killed_supervisor_and_its_folder_is_removed(project: Project) -> None:
    # A requeued job has the number of the one that was killed.
    project.environment["SLURM_JOB_ID"] = "4711"
    process, paths = start_endless(project, shards=2)
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(started, timeout=PROMPTLY_S)
    assert not alive, alive
    assert not paths.record.exists()
    assert project.states()[paths.target] == ("missing", "no_end")
    work = project.root / "results" / "tiny" / ".work"
    # Its own, and that of its ranks.
    assert len(list(work.iterdir())) == 2
    project.write_study(prompts=2, warmup_tokens=1, matrix=project.block(shards=2, batch=1, length=2))
    paths = project.cells()[0]
    run = run_cell(project, paths)
    assert run.returncode == 0, run.stderr
    assert not any(work.iterdir())


def test_ctrl_c_in_mid_run_leaves_nothing_that_is_taken_for_whole(project: Project) -> None:
    project.write_study(**ENDLESS, matrix=project.block(shards=1, batch=1, length=400))
    process = subprocess.Popen(
        project.snakemake_command(REPORT), cwd=project.root, env=project.environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    await_true(lambda: '"run"' in _progress(project), "the cell to run")
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    (paths,) = project.cells()
    assert not paths.record.exists()
    project.write_study(prompts=2, warmup_tokens=1, matrix=project.block(shards=1, length=2))
    run = project.snakemake(TABLE, timeout_s=PATIENCE_S)
    assert run.returncode == 0, run.stdout


def test_one_bad_cell_never_hides_the_other(project: Project) -> None:
    bad, good = project.cells()[1], project.cells()[0]
    broken = project.root / "models" / "tiny" / "shards-2" / "consolidated.01.pth"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    run = project.snakemake(REPORT, timeout_s=PATIENCE_S)
    assert run.returncode != 0
    assert "bad_checkpoint" in run.stdout
    assert project.states() == {good.target: ("ok", None), bad.target: ("failed", "bad_checkpoint")}
    partial = project.root / "results" / "tiny" / "partial"
    page = (partial / "report.html").read_text(encoding="utf-8")
    assert "bad_checkpoint" in page
    assert bad.target in page
    assert not (project.root / REPORT).exists()
    assert "consolidated.01.pth" in read(Failure, bad.failure).message
    broken.write_bytes(whole)
    run = project.snakemake(TABLE, timeout_s=PATIENCE_S)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("rule cell:") == 1
    assert project.states()[bad.target] == ("ok", None)


def _lose_tensor(state: dict[str, torch.Tensor]) -> None:
    del state["layers.0.attention.wq.weight"]


def _add_tensor(state: dict[str, torch.Tensor]) -> None:
    state["layers.9.attention.wq.weight"] = torch.zeros(1)


def _cut_tensor(state: dict[str, torch.Tensor]) -> None:
    state["norm.weight"] = state["norm.weight"][:-1].clone()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_lose_tensor, "layers.0.attention.wq.weight"),
        (_add_tensor, "layers.9.attention.wq.weight"),
        (_cut_tensor, "norm.weight"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_tensor(
    project: Project, change: Callable[[dict[str, torch.Tensor]], None], word: str
) -> None:
    path = project.root / "models" / "tiny" / "shards-1" / "consolidated.00.pth"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    paths = project.cells()[0]
    run = run_cell(project, paths)
    assert run.returncode == 1
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.BAD_CHECKPOINT
    assert word in failure.message
    assert word in run.stderr
    assert "Traceback" not in run.stderr


def test_a_tokenizer_of_another_vocabulary_is_refused(project: Project) -> None:
    recipe = project.root / "config" / "models" / "other.yaml"
    text = (project.root / "config" / "models" / "tiny.yaml").read_text()
    recipe.write_text(text.replace("vocab_size: 512", "vocab_size: 480"))
    assert project.shardwatt("make-tokenizer", "other").returncode == 0
    shutil.copy(project.root / "models/other/tokenizer.model", project.root / "models/tiny/tokenizer.model")
    paths = project.cells()[0]
    assert run_cell(project, paths).returncode == 1
    failure = read(Failure, paths.failure)
    assert failure.reason in (Reason.BAD_TOKENIZER, Reason.BAD_CHECKPOINT)
    assert "480" in failure.message
    assert "512" in failure.message


def _spoil_line(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:10]
    path.write_text("\n".join(lines))


def _empty(path: Path) -> None:
    path.write_text("")


@pytest.mark.parametrize(("spoil", "word"), [(_spoil_line, "line 3"), (_empty, "is empty")])
def test_a_bad_data_file_is_named(project: Project, spoil: Callable[[Path], None], word: str) -> None:
    spoil(project.root / "config" / "prompts" / "demo-gsm8k.jsonl")
    paths = project.cells()[0]
    run = run_cell(project, paths)
    assert run.returncode == 1
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.BAD_DATA
    assert "demo-gsm8k.jsonl" in failure.message
    assert word in failure.message


def test_a_wrong_hash_is_refused(project: Project) -> None:
    (project.root / "data").mkdir()
    (project.root / "data" / "gsm8k_train.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    project.write_study(prompts=1, matrix=project.block(dataset="gsm8k", shards=1))
    (paths,) = project.cells()
    run = run_cell(project, paths)
    assert run.returncode == 1
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.BAD_DATA
    assert "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465" in failure.message


def test_more_prompts_than_there_are(project: Project) -> None:
    project.write_study(prompts=10_000, matrix=project.block(shards=1))
    (paths,) = project.cells()
    assert run_cell(project, paths).returncode == 1
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.BAD_DATA
    assert "10000" in failure.message.replace(",", "")


def test_prompts_that_are_too_long_are_refused_with_a_count(project: Project) -> None:
    project.write_study(cache_tokens=20, matrix=project.block(shards=1))
    (paths,) = project.cells()
    assert run_cell(project, paths).returncode == 1
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.PROMPT_TOO_LONG
    assert "of 6 prompts" in failure.message


def test_no_space_on_the_disk(project: Project) -> None:
    paths = project.cells()[0]

    def limit() -> None:
        # Any file past this size: the write fails as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    run = run_cell(project, paths, preexec_fn=limit)
    assert run.returncode == 1, run.stderr
    assert "storage" in run.stderr
    assert "Traceback" not in run.stderr
    assert not paths.record.exists()
    assert read(Failure, paths.failure).reason is Reason.STORAGE


def test_results_that_cannot_be_written(project: Project) -> None:
    (project.root / "results").write_text("a file where a folder should be")
    paths = project.cells()[0]
    run = run_cell(project, paths)
    assert run.returncode == 1
    assert "storage" in run.stderr
    assert "Traceback" not in run.stderr


def test_two_supervisors_of_one_cell_measure_it_once(project: Project) -> None:
    paths = project.cells()[0]
    command = [sys.executable, "-m", "shardwatt", "run-cell", "tiny", paths.cell.path]
    both = [
        subprocess.Popen(
            command, cwd=project.root, env=project.environment, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=PATIENCE_S)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    assert sum("a valid result is there already" in said for said in errors) == 1
    assert project.states()[paths.target] == ("ok", None)
    assert project.shardwatt("cells", "tiny", "--deep", "--outcome", "invalid").stdout.count("invalid") == 0
    assert not any((project.root / "results" / "tiny" / ".work").iterdir())


def test_a_cell_waits_for_another_projects_and_its_record_holds_nothing_of_that(
    project: Project, new_project: Callable[[Path], Project], made_models: Path, tmp_path: Path
) -> None:
    first, paths = start_endless(project, shards=1)
    other = new_project(tmp_path / "another project")
    shutil.copytree(made_models, other.root / "models")
    # One machine, as for any two projects of a user.
    other.environment["TMPDIR"] = project.environment["TMPDIR"]
    waiting = other.cells()[0]
    second = subprocess.Popen(
        [sys.executable, "-m", "shardwatt", "run-cell", "tiny", waiting.cell.path],
        cwd=other.root, env=other.environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    taken = f"taken by process {first.pid}, which runs {paths.cell.path} of study tiny in {project.root}"
    log = waiting.supervisor_log
    await_true(lambda: log.exists() and taken in log.read_text(), "the second cell to wait")
    time.sleep(1)
    assert not list(other.root.glob("results/tiny/.work/*/*.json"))
    freed = datetime.now(UTC)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=PATIENCE_S)
    _, errors = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, errors
    assert errors.count("waiting: ") == 1
    record = read(Record, waiting.record)
    assert record.timings is not None
    assert record.timings.started_at >= freed
    (attempt,) = waiting.logs.glob("attempt-*.json")
    assert read(Attempt, attempt).started_at < freed


def test_a_result_with_a_torn_file_is_made_again(finished: Project) -> None:
    paths = finished.cells()[0]
    torn = paths.results / "responses.parquet"
    torn.write_bytes(torn.read_bytes()[:100])
    run = run_cell(finished, paths)
    assert run.returncode == 0, run.stderr
    assert finished.states()[paths.target] == ("ok", None)


def test_a_valid_result_is_left_as_it_is(finished: Project) -> None:
    paths = finished.cells()[0]
    before = paths.record.read_bytes()
    run = run_cell(finished, paths)
    assert run.returncode == 0
    assert "a valid result is there already" in run.stderr
    assert paths.record.read_bytes() == before
    assert read(Record, paths.record).outcome is Outcome.OK
