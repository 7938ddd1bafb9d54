"""Guards putting results into place: whole or not at all, whatever kills it, and never two mixed."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shardwatt.analysis.survey import State, survey
from shardwatt.layout import CELL_FILES, CellPaths
from shardwatt.records import Inputs, Record
from shardwatt.run import commit
from shardwatt.run.commit import put_in_place, valid_record
from synthetic_cells import CONSTANTS, STUDY, Numbers, inputs, make_cell, write_does_not_fit, write_ok

CELL = make_cell()
INPUTS = inputs(Numbers())

#: For each line of JSON, work, results and step: a process puts into place, and is killed by SIGKILL just
#: before the one of the steps that a crash could part; tells its exit code. All are forked from this one,
#: which has imported what they need.
KILLED = """
import json, os, signal, sys
from pathlib import Path
from shardwatt.run import commit

def dying(function):
    def call(*words, **options):
        global steps
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        return function(*words, **options)
    return call

Path.unlink, Path.replace, os.fsync = map(dying, (Path.unlink, Path.replace, os.fsync))
for line in sys.stdin:
    work, results, step = json.loads(line)
    steps = 0
    if not (child := os.fork()):
        commit.put_in_place(Path(work), Path(results))
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def put_killed() -> Iterator[Callable[[Path, Path, int], int]]:
    """Puts a work folder into place in a process that is killed before a step; returns its exit code."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        stdin, stdout = parent.stdin, parent.stdout
        assert stdin is not None
        assert stdout is not None

        def put(work: Path, results: Path, step: int) -> int:
            stdin.write(json.dumps([str(work), str(results), step]) + "\n")
            stdin.flush()
            return int(stdout.readline())

        yield put
        stdin.close()


def paths_in(base: Path, study: str = STUDY) -> CellPaths:
    return CellPaths(base, study, CELL)


def make_work(base: Path, numbers: Numbers) -> Path:
    """A work folder that holds a finished cell."""
    write_ok(base / "elsewhere", CELL, numbers)
    return Path(shutil.move(paths_in(base / "elsewhere").results, base / "work"))


def is_valid(paths: CellPaths, constants_hash: str = CONSTANTS.hash, known: Inputs = INPUTS) -> bool:
    return valid_record(paths, constants_hash, known)


@pytest.mark.parametrize("older", [False, True], ids=["new", "over an older result"])
def test_a_kill_at_any_step_leaves_the_old_the_new_or_nothing(
    tmp_path: Path, put_killed: Callable[[Path, Path, int], int], older: bool
) -> None:
    seen = []
    for step in range(20):
        base = tmp_path / str(step)
        paths = paths_in(base)
        if older:
            write_ok(base, CELL, Numbers(batch_s=1.0))
        work = make_work(base, Numbers(batch_s=2.0))
        code = put_killed(work, paths.results, step)
        (state,) = survey(base, STUDY, [CELL], CONSTANTS, deep=True)
        assert is_valid(paths) == (state.state is State.OK)
        if state.record is None:
            assert not paths.record.exists()
            seen.append("nothing")
        else:
            seen.append(_made_of(state.record, paths))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    else:
        pytest.fail("the steps never ended")
    assert seen[-1] == "new"
    order = ["old", "nothing", "new"] if older else ["nothing", "new"]
    assert list(dict.fromkeys(seen)) == order
    assert seen.count("nothing") >= 4


def _made_of(record: Record, paths: CellPaths) -> str:
    """Which of the two results stands there, of one piece."""
    import pyarrow.parquet as pq

    assert record.timings is not None
    (stop_s, *_) = pq.read_table(paths.results / "batches.parquet")["stop_s"].to_pylist()
    assert record.timings.decode_s == pytest.approx(0.7 * 5 * stop_s)
    return {1.0: "old", 2.0: "new"}[stop_s]


def test_the_four_files_are_moved_and_a_strangers_file_is_left(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    paths.results.mkdir(parents=True)
    (paths.results / "notes.txt").write_text("mine")
    work = make_work(tmp_path, Numbers())
    put_in_place(work, paths.results)
    assert {path.name for path in paths.results.iterdir()} == {*CELL_FILES, "notes.txt"}
    assert not any(work.iterdir())
    assert is_valid(paths)


def test_a_missing_file_leaves_the_old_result_whole(tmp_path: Path) -> None:
    write_ok(tmp_path, CELL)
    work = make_work(tmp_path, Numbers(batch_s=2.0))
    (work / "power.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        put_in_place(work, paths_in(tmp_path).results)
    assert is_valid(paths_in(tmp_path))


def test_a_work_folder_that_is_removed_meanwhile_leaves_the_old_result_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the second start of a job whose first one was cut off from Slurm, and is back."""
    write_ok(tmp_path, CELL)
    work = make_work(tmp_path, Numbers(batch_s=2.0))
    flush = commit._flush

    def flush_and_lose(path: Path) -> None:
        flush(path)
        if path == work / "result.json":
            shutil.rmtree(work)

    monkeypatch.setattr(commit, "_flush", flush_and_lose)
    with pytest.raises(FileNotFoundError):
        put_in_place(work, paths_in(tmp_path).results)
    assert is_valid(paths_in(tmp_path))


def test_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    results = paths_in(tmp_path).results
    results.mkdir(parents=True)
    (results / ".power.parquet.0123456789abcdef-7-x").write_bytes(b"much")
    put_in_place(make_work(tmp_path, Numbers()), results)
    assert {path.name for path in results.iterdir()} == set(CELL_FILES)


def test_only_a_whole_result_of_the_same_constants_and_inputs_is_valid(tmp_path: Path) -> None:
    paths = paths_in(tmp_path)
    assert not is_valid(paths)
    write_ok(tmp_path, CELL)
    assert is_valid(paths)
    assert not is_valid(paths, constants_hash="0" * 16)
    assert not is_valid(paths, known=inputs(Numbers(model_fingerprint="f" * 16)))
    assert not is_valid(paths, known=inputs(Numbers(dataset_sha256="f" * 64)))


def test_the_record_of_another_cell_or_study_is_not_valid(tmp_path: Path) -> None:
    write_ok(tmp_path, CELL)
    other = CellPaths(tmp_path, STUDY, make_cell(batch=5))
    shutil.copytree(paths_in(tmp_path).results, other.results)
    assert not is_valid(other)
    shutil.copytree(tmp_path / "results" / STUDY, tmp_path / "results" / "other")
    assert not is_valid(paths_in(tmp_path, "other"))


@pytest.mark.parametrize("name", CELL_FILES)
def test_a_missing_or_torn_file_makes_the_rest_worthless(tmp_path: Path, name: str) -> None:
    write_ok(tmp_path, CELL)
    path = paths_in(tmp_path).results / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert not is_valid(paths_in(tmp_path))
    path.unlink()
    assert not is_valid(paths_in(tmp_path))


def test_does_not_fit_is_a_result_like_any_other(tmp_path: Path) -> None:
    write_does_not_fit(tmp_path, CELL)
    assert is_valid(paths_in(tmp_path))
