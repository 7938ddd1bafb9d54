"""Guards records: nothing torn, outdated or self-contradictory is read, and writing is all or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shardwatt.attempts import Attempt, Failure
from shardwatt.cell import Cell
from shardwatt.errors import Reason, RecordError
from shardwatt.layout import CellPaths
from shardwatt.readings import Coverage, Method, Reading, Scope, Status
from shardwatt.recordfiles import read, write
from shardwatt.records import CellRecord, Outcome, Record
from synthetic_cells import STARTED, STUDY, make_cell, write_does_not_fit, write_failed, write_ok

COVERAGE = Coverage(nodes=["n1"], nodes_expected=1, devices=[], devices_expected=1, samples=0)
KNOWN = (Status.MEASURED, Status.DERIVED, Status.ESTIMATED)
SIMULATED = {
    "engine": "reference",
    "window_s": 2.0,
    "time_lapse": 100.0,
    "watts": "the plan's",
    "fits": True,
    "notes": [],
}


def reading(**values: Any) -> Reading:
    usual = {
        "joules": 12.5,
        "method": Method.NVML_COUNTER,
        "status": Status.MEASURED,
        "scope": Scope.ALL_NODES,
        "coverage": COVERAGE,
    }
    return Reading(**(usual | values))


@pytest.fixture
def record_file(tmp_path: Path) -> Path:
    """The record of a cell that ran through."""
    write_ok(tmp_path, make_cell())
    return CellPaths(tmp_path, STUDY, make_cell()).record


def change(path: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    """Change a record on disk as a defect or an editor might."""
    content = json.loads(path.read_text())
    alter(content)
    path.write_text(json.dumps(content))


def refusal(path: Path) -> str:
    """The message without the file's name, which it begins with."""
    with pytest.raises(RecordError) as caught:
        read(Record, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    ok = write_ok(tmp_path, make_cell())
    assert read(Record, CellPaths(tmp_path, STUDY, make_cell()).record) == ok
    large = make_cell(model="llama-65b")
    unfit = write_does_not_fit(tmp_path, large)
    assert read(Record, CellPaths(tmp_path, STUDY, large).record) == unfit
    assert unfit.energy is None
    rehearsed = make_cell(engine="simulated")
    assert read(Record, CellPaths(tmp_path, STUDY, make_cell()).record).simulated is None
    simulated = write_ok(tmp_path, rehearsed)
    assert simulated.simulated is not None
    assert read(Record, CellPaths(tmp_path, STUDY, rehearsed).record) == simulated
    failure = write_failed(tmp_path, make_cell())
    assert read(Failure, CellPaths(tmp_path, STUDY, make_cell()).failure) == failure
    attempt = Attempt(job_id="17", node="n1", pid=1, started_at=STARTED)
    write(attempt, tmp_path / "attempt.json")
    assert read(Attempt, tmp_path / "attempt.json") == attempt


def test_a_missing_record_is_told_from_a_wrong_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(Record, tmp_path / "result.json")


@pytest.mark.parametrize("length", [0, 1, 200, -2])
def test_a_torn_record_is_refused_wherever_it_ends(record_file: Path, length: int) -> None:
    record_file.write_bytes(record_file.read_bytes().rstrip()[:length])
    assert refusal(record_file).startswith("torn or unreadable: ")


@pytest.mark.parametrize("content", [b"\xff\xfe\0", b"\0" * 4096, b"{]"])
def test_bytes_that_are_no_json_are_refused(record_file: Path, content: bytes) -> None:
    record_file.write_bytes(content)
    assert refusal(record_file).startswith("torn or unreadable: ")


def test_a_folder_in_the_records_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result.json").mkdir()
    assert refusal(tmp_path / "result.json").startswith("torn or unreadable: ")


@pytest.mark.parametrize("content", ["[]", "3", "null", '"text"'])
def test_json_that_is_no_object_is_refused(record_file: Path, content: str) -> None:
    record_file.write_text(content)
    assert refusal(record_file).endswith("expected keys and values")


@pytest.mark.parametrize("version", [0, 3, 5, "4", None])
def test_another_schema_version_is_refused_before_its_keys_are_looked_at(
    record_file: Path, version: object
) -> None:
    record_file.write_text(json.dumps({"schema_version": version, "of another time": 1}))
    assert refusal(record_file) == f"schema version {version}; expected 4"


def test_a_record_without_a_schema_version_is_refused(record_file: Path) -> None:
    record_file.write_text("{}")
    assert refusal(record_file) == "schema version None; expected 4"


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda c: c.update(extra=1), "extra: unknown key"),
        (lambda c: c.pop("nodes"), "nodes: is missing"),
        (lambda c: c.update(outcome="failed"), "outcome: found 'failed'; expected"),
        (lambda c: c.update(constants_hash="0" * 16), "constants_hash does not belong to the constants"),
        (lambda c: c["constants"].update(seed=1), "constants_hash does not belong to the constants"),
        (lambda c: c.update(energy=None), "outcome ok without timings, counts, energy, utilisation or eff"),
        (lambda c: c.update(efficiency=None), "outcome ok without timings, counts, energy, utilisation or"),
        (lambda c: c["efficiency"]["decode"].update(tokens=-1), "efficiency.decode.tokens: found -1; expect"),
        (lambda c: c["cell"].update(engine="simulated"), "engine simulated with no `simulated`"),
        (lambda c: c.update(simulated=SIMULATED), "engine reference with a `simulated`"),
        (lambda c: c["provenance"].update(prompt_order="random"), "prompt_order: found 'random'; expected"),
        (lambda c: c["provenance"].pop("engine"), "provenance.engine: is missing"),
        (lambda c: c.update(timings=None), "outcome ok without timings"),
        (lambda c: c["counts"].update(responses=19), "19 responses to 20 prompts; expected as many"),
        (lambda c: c["counts"].update(output_tokens=-1), "counts.output_tokens: found -1; expected at least"),
        (lambda c: c["timings"].update(duration_s=-1), "timings.duration_s: found -1; expected at least 0"),
        (lambda c: c["timings"].update(duration_s=float("nan")), "duration_s: found nan; expected a finite"),
        (lambda c: c["energy"]["window"].update(joules=float("inf")), "joules: found inf; expected a finite"),
        (lambda c: c["energy"]["window"].update(joules=-1), "energy.window.joules: found -1; expected at"),
        (
            lambda c: c["energy"]["window"].update(joules=None),
            "window: status measured with joules None",
        ),
        (
            lambda c: c["energy"]["decode"].update(status="unavailable"),
            "decode: status unavailable with",
        ),
        (lambda c: c["utilisation"]["sm_utilisation"].update(mean=float("nan")), "mean: found nan"),
        (lambda c: c["cell"].update(model="../../etc"), "cell: model: '../../etc' is no value of this axis"),
        (lambda c: c["cell"].update(shards=0), "cell: shards: 0 is no value of this axis"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(
    record_file: Path, alter: Callable[[dict[str, Any]], None], message: str
) -> None:
    change(record_file, alter)
    assert message in refusal(record_file)


@given(
    st.none() | st.floats(0, 1e12) | st.just(0.0),
    st.none() | st.sampled_from(Method),
    st.sampled_from(Status),
)
def test_a_reading_has_joules_exactly_where_they_are_known(
    joules: float | None, method: Method | None, status: Status
) -> None:
    known = status in KNOWN
    is_consistent = (
        known == (joules is not None)
        and not (known and method is None)
        and (method is Method.ESTIMATE) == (status is Status.ESTIMATED)
    )
    if is_consistent:
        assert reading(joules=joules, method=method, status=status).joules == joules
    else:
        with pytest.raises(ValidationError):
            reading(joules=joules, method=method, status=status)


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.UNSUPPORTED, Status.PERMISSION_DENIED])
def test_zero_is_never_written_for_unknown(status: Status) -> None:
    with pytest.raises(ValidationError, match=r"status \w+ with joules 0\.0"):
        reading(joules=0.0, method=None, status=status)
    assert reading(joules=None, method=None, status=status).joules is None


@pytest.mark.parametrize("joules", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_joules_are_finite_and_not_negative(joules: float) -> None:
    with pytest.raises(ValidationError):
        reading(joules=joules)


def test_an_estimate_cannot_pass_for_a_measurement() -> None:
    with pytest.raises(ValidationError, match="method estimate with status measured"):
        reading(method=Method.ESTIMATE)
    with pytest.raises(ValidationError, match="method nvml_counter with status estimated"):
        reading(status=Status.ESTIMATED)


def test_a_records_axes_are_the_cells() -> None:
    cell = make_cell(cap="175", repeat=3)
    assert CellRecord.of(cell).to_cell() == cell
    with pytest.raises(ValidationError, match="is no value of this axis"):
        CellRecord.of(Cell("reference", "a b", "fp16", "v100", 1, 1, 1, "gsm8k", "none", 1))


def test_a_failure_has_a_documented_reason(tmp_path: Path) -> None:
    write_failed(tmp_path, make_cell())
    path = CellPaths(tmp_path, STUDY, make_cell()).failure
    change(path, lambda content: content.update(reason="bad luck"))
    with pytest.raises(RecordError, match=f"reason: found 'bad luck'; expected '{Reason.CONFIGURATION}'"):
        read(Failure, path)


def test_writing_replaces_a_record_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "attempt.json"
    attempt = Attempt(job_id="17", node="n1", pid=1, started_at=STARTED)
    write(attempt, path)
    before = path.read_text()
    ended = attempt.model_copy(update={"ended_at": STARTED, "outcome": Outcome.OK})
    with path.open() as earlier:
        write(ended, path)
        assert earlier.read() == before, "who reads meanwhile sees the old record or the new one, whole"
    assert read(Attempt, path) == ended
    assert [entry.name for entry in tmp_path.iterdir()] == ["attempt.json"]


REWRITE = """
import resource, sys
from pathlib import Path
from shardwatt.attempts import Attempt
from shardwatt.recordfiles import read, write

path = Path(sys.argv[1])
attempt = read(Attempt, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))
try:
    write(attempt.model_copy(update={"node": "n" * 4096}), path)
except OSError as problem:
    sys.exit(f"refused: {problem.strerror}")
"""


def test_a_full_disk_leaves_the_old_record_as_it_was(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the write ends in the middle."""
    path = tmp_path / "attempt.json"
    write(Attempt(job_id="17", node="n1", pid=1, started_at=STARTED), path)
    before = path.read_bytes()
    run = subprocess.run(
        [sys.executable, "-B", "-c", REWRITE, str(path)], capture_output=True, text=True, timeout=600
    )
    assert (run.returncode, run.stderr) == (1, "refused: File too large\n")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["attempt.json"]


def test_a_folder_that_is_gone_is_an_error_and_no_loss(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(Attempt(job_id="17", node="n1", pid=1, started_at=STARTED), tmp_path / "gone" / "a.json")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_written_keeps_its_record(tmp_path: Path) -> None:
    path = tmp_path / "attempt.json"
    write(Attempt(job_id="17", node="n1", pid=1, started_at=STARTED), path)
    before = path.read_bytes()
    was = os.geteuid()
    tmp_path.chmod(0o555)
    try:
        if was == 0:
            os.seteuid(65534)
        with pytest.raises(PermissionError):
            write(Attempt(job_id="18", node="n1", pid=1, started_at=STARTED), path)
    finally:
        os.seteuid(was)
        tmp_path.chmod(0o755)
    assert path.read_bytes() == before
