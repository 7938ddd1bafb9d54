"""Guards srun's words for each shape of job, and what is read from srun about tasks that are gone."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from shardwatt.errors import CellFailure, Reason
from shardwatt.jobshape import JobShape
from shardwatt.run.launch import RankExit
from shardwatt.run.srun import node_words, rank_words, task_exits, with_environment
from shardwatt.run.step import Step

SHARED = "--overlap --mem=0 --mpi=none --unbuffered --export=ALL"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (JobShape(1, 1), "--nodes=1 --ntasks=1 --ntasks-per-node=1 --cpus-per-task=4"),
        (JobShape(1, 2), "--nodes=1 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=4"),
        (JobShape(4, 2), "--nodes=4 --ntasks=8 --ntasks-per-node=2 --cpus-per-task=4"),
        (JobShape(3, 1), "--nodes=3 --ntasks=3 --ntasks-per-node=1 --cpus-per-task=4"),
    ],
)
def test_ranks_are_laid_out_by_words_alone(shape: JobShape, words: str) -> None:
    """Slurm's variables are gone inside a job: what is not said is guessed, and wrongly."""
    expected = f"srun --job-name=shardwatt-ranks {words} --distribution=block --kill-on-bad-exit=1 {SHARED}"
    assert " ".join(rank_words(shape, 4)) == expected


def test_without_a_number_of_cpus_the_ranks_share_all() -> None:
    """A number would bind each rank to as many."""
    assert not [word for word in rank_words(JobShape(1, 2), None) if word.startswith("--cpus-per-task")]


def test_one_helper_a_node_beside_the_ranks() -> None:
    """Whatever slurm.conf says of steps one of whose tasks has ended: the others have limits to set back."""
    expected = f"srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --wait=0 --kill-on-bad-exit=0 {SHARED}"
    assert " ".join(node_words(JobShape(4, 2))) == expected


def test_tasks_that_are_gone_are_told_with_node_and_code() -> None:
    said = (
        "srun: error: v100-1: task 3: Killed\n"
        "srun: error: v100-0: tasks 0-1: Exited with exit code 1\n"
        "srun: Terminating StepId=12.0\n"
        "srun: error: v100-1: task 2: Segmentation fault (core dumped)\n"
    )
    assert task_exits(said) == {
        0: RankExit("v100-0", 1),
        1: RankExit("v100-0", 1),
        2: RankExit("v100-1", -11),
        3: RankExit("v100-1", -9),
    }


@pytest.mark.parametrize(
    "said",
    [
        "srun: error: v100-1: task 3: Out Of Memory\n",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0. Some of your processes may have been "
        "killed by the cgroup out-of-memory handler.\nsrun: error: v100-1: task 3: Killed\n",
    ],
)
def test_a_task_killed_for_want_of_memory_is_told_so(said: str) -> None:
    assert task_exits(said)[3].out_of_memory


def test_output_of_ranks_is_not_taken_for_news_of_tasks() -> None:
    assert task_exits("task 3: Killed\nerror: tasks 0-1: Exited with exit code 1\n") == {}


def test_environment_lines_choose_the_python_of_the_ranks(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$GREETING:$*"\n')
    python.chmod(0o755)
    lines = [f'export PATH="{python.parent}:$PATH"', "export GREETING='a b'"]
    words = with_environment(lines, tmp_path / "ranks.sh", ["-m", "module", "a path with spaces; false"])
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "a b:-m module a path with spaces; false\n")


def test_an_environment_line_that_fails_starts_no_other_python(tmp_path: Path) -> None:
    lines = ["export GREETING=hello  # a comment", "source /no/such/activate", "true"]
    done = subprocess.run(
        with_environment(lines, tmp_path / "ranks.sh", ["-V"]), capture_output=True, text=True
    )
    assert done.returncode == 78
    assert done.stderr.endswith("environment line 2 failed\n")
    assert done.stdout == ""


def test_a_step_ends_when_its_input_does_and_is_killed_if_it_does_not(tmp_path: Path) -> None:
    assert Step(["cat"], tmp_path / "log").end(600)
    killed = Step(["sleep", "600"], tmp_path / "log")
    assert not killed.end(0.1)
    assert not killed.end(600)


def test_a_step_hears_its_own_program_whatever_another_does_with_the_log(tmp_path: Path) -> None:
    """Two supervisors of one cell name their logs alike, and each clears away what was there before."""
    log = tmp_path / "log"
    first = Step(["sh", "-c", "echo first; read end; echo ended"], log)
    second = Step(["sh", "-c", "echo second; read end"], log)
    until_said(first, "first")
    until_said(second, "second")
    assert log.read_text() == "second\n"
    log.unlink()
    assert first.end(600)
    assert second.said() == "second"
    assert second.end(600)
    assert (first.said(), second.said()) == ("first\nended", "second")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["cannot be read", "is gone"])
def test_a_step_that_loses_its_log_is_heard_as_far_as_it_was_read_and_ends_well(
    tmp_path: Path, how: str
) -> None:
    """As a network file system does to it; by then the cell beside it may be measured."""
    log = tmp_path / "log"
    step = Step(["sh", "-c", "echo well; read end"], log)
    until_said(step, "well")
    own = Path("/proc/self/fd")
    (descriptor,) = (int(path.name) for path in own.iterdir() if os.path.realpath(path) == str(log))
    if how == "is gone":
        os.close(descriptor)
    else:
        folder = os.open(tmp_path, os.O_RDONLY)  # what no program can read
        os.dup2(folder, descriptor)
        os.close(folder)
    assert step.said() == "well"
    assert step.end(600)
    assert step.said() == "well"


def test_a_step_whose_log_was_never_read_has_said_nothing(tmp_path: Path) -> None:
    step = Step(["sh", "-c", "read end"], tmp_path / "log")
    own = Path("/proc/self/fd")
    (descriptor,) = (int(path.name) for path in own.iterdir() if "/log" in os.path.realpath(path))
    os.close(descriptor)
    assert (step.said(), step.end(600)) == ("", True)


def until_said(step: Step, words: str) -> None:
    while step.exit_code is None and step.said() != words:
        time.sleep(0.01)
    assert step.said() == words


def test_a_missing_launcher_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="no-such-srun is not on PATH") as raised:
        Step(["no-such-srun"], tmp_path / "log")
    assert raised.value.reason is Reason.CONFIGURATION
