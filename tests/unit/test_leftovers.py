"""Which job runs which cell: by the executor's comment, Snakemake's notes, and the cell's attempts."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.persistence.file import FilePersistence
from snakemake_executor_plugin_slurm.utils import get_job_wildcards

from shardwatt.attempts import Attempt, Claim
from shardwatt.cell import PATH_PATTERN, Cell
from shardwatt.dag import Planner
from shardwatt.errors import SlurmError
from shardwatt.layout import CellPaths, cell_target, claim_file
from shardwatt.leftovers import (
    Leftovers,
    attempts_of,
    check_claims,
    check_none_since,
    comment_of,
    comment_together,
    jobs_of_cells,
    known_claims,
    new_token,
)
from shardwatt.recordfiles import read, write
from shardwatt.slurmjob import SlurmJob
from small_project import make_root, study_content, write_yaml
from synthetic_cells import STARTED, STUDY, make_cell

CELL, OTHER = make_cell(batch=4), make_cell(batch=8)


def matched(base: Path, *jobs: SlurmJob) -> dict[tuple[str, str], list[str]]:
    found = jobs_of_cells(base, {STUDY: [CELL, OTHER], "demo": [CELL]}, jobs)
    return {name: [job.job_id for job in own] for name, own in found.items()}


def begin(base: Path, cell: Cell, job_id: str) -> Attempt:
    paths = CellPaths(base, STUDY, cell)
    paths.logs.mkdir(parents=True, exist_ok=True)
    attempt = Attempt(job_id=job_id, node="n0", pid=1, started_at=STARTED)
    write(attempt, paths.attempt(job_id))
    return attempt


def test_the_comment_is_the_one_that_the_executor_writes() -> None:
    job: Any = SimpleNamespace(wildcards=[STUDY, CELL.path])
    assert comment_of(STUDY, CELL.path) == f"rule_cell_wildcards_{get_job_wildcards(job)}"


def test_a_comment_names_one_cell_of_one_study(tmp_path: Path) -> None:
    jobs = [
        SlurmJob("1", "RUNNING", nodes="n0", comment=comment_of(STUDY, CELL.path)),
        SlurmJob("2", "PENDING", comment=comment_of(STUDY, OTHER.path)),
        SlurmJob("3", "PENDING", comment=comment_of("demo", CELL.path)),
        SlurmJob("4", "PENDING", comment=comment_of("gone", CELL.path)),
        SlurmJob("5", "PENDING"),
    ]
    assert matched(tmp_path, *jobs) == {
        (STUDY, CELL.path): ["1"],
        (STUDY, OTHER.path): ["2"],
        ("demo", CELL.path): ["3"],
    }


def test_without_comments_snakemakes_own_notes_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    long_study = "s" * 200
    persistence = FilePersistence(path=tmp_path / ".snakemake")
    for study, number in ((STUDY, "17"), (long_study, "18")):
        persistence._mark_incomplete(cell_target(study, CELL.path), number)
    persistence._mark_incomplete(cell_target(STUDY, OTHER.path), None)  # one that ran here
    cells = {STUDY: [CELL, OTHER], long_study: [CELL]}
    found = jobs_of_cells(tmp_path, cells, [SlurmJob("17", "PENDING"), SlurmJob("18", "PENDING")])
    assert {name: own[0].job_id for name, own in found.items()} == {
        (STUDY, CELL.path): "17",
        (long_study, CELL.path): "18",
    }
    # A note of a job that is over names nothing, whoever has the next number.
    assert jobs_of_cells(tmp_path, cells, [SlurmJob("19", "PENDING")]) == {}


def test_without_comments_and_notes_the_attempt_tells_until_it_ends(tmp_path: Path) -> None:
    attempt = begin(tmp_path, CELL, "17")
    job = SlurmJob("17", "RUNNING", nodes="n0")
    assert matched(tmp_path, job) == {(STUDY, CELL.path): ["17"]}
    ended = attempt.model_copy(update={"ended_at": STARTED})
    write(ended, CellPaths(tmp_path, STUDY, CELL).attempt("17"))
    assert matched(tmp_path, job) == {}


def test_a_job_of_several_cells_has_those_that_it_has_not_ended(tmp_path: Path) -> None:
    path = claim_file(tmp_path, STUDY, "17")
    path.parent.mkdir(parents=True)
    write(Claim(job_id="17", cells=[CELL.path, OTHER.path]), path)
    job = SlurmJob("17", "RUNNING", nodes="n0", comment="shardwatt")
    assert matched(tmp_path, job) == {(STUDY, CELL.path): ["17"], (STUDY, OTHER.path): ["17"]}
    ended = begin(tmp_path, CELL, "17").model_copy(update={"ended_at": STARTED})
    write(ended, CellPaths(tmp_path, STUDY, CELL).attempt("17"))
    begin(tmp_path, OTHER, "17")
    assert matched(tmp_path, job) == {(STUDY, OTHER.path): ["17"]}


def claim(base: Path, name: str) -> Path:
    path = claim_file(base, STUDY, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    write(Claim(job_id=name, cells=[CELL.path]), path)
    return path


def test_a_job_whose_number_was_never_written_down_is_known_by_its_token(tmp_path: Path) -> None:
    """As of a run-together that was ended while sbatch waited for its answer."""
    token = new_token()
    path = claim(tmp_path, token)
    job = SlurmJob("17", "PENDING", comment=f"{comment_together(STUDY, token)} cap=175")
    assert matched(tmp_path, job) == {(STUDY, CELL.path): ["17"]}
    check_claims(tmp_path, [STUDY], [job])
    assert not path.exists()
    assert read(Claim, claim_file(tmp_path, STUDY, "17")) == Claim(job_id="17", cells=[CELL.path])
    assert matched(tmp_path, job) == {(STUDY, CELL.path): ["17"]}


def test_a_claim_without_a_job_and_a_job_without_a_claim_let_nothing_be_submitted(tmp_path: Path) -> None:
    check_claims(tmp_path, [STUDY], [])
    token = new_token()
    job = SlurmJob("17", "PENDING", comment=comment_together(STUDY, token))
    with pytest.raises(SlurmError, match=r"job 17 \(PENDING\) runs several cells .* scancel 17"):
        check_claims(tmp_path, [STUDY], [job])
    check_claims(tmp_path, ["demo"], [job])
    path = claim(tmp_path, token)
    for jobs in ([], [SlurmJob("18", "PENDING", comment="")]):
        with pytest.raises(SlurmError, match=f"{path}: .* remove this file, and try again"):
            check_claims(tmp_path, [STUDY], jobs)
    # Of earlier versions, whose jobs have no token: the number tells.
    path.unlink()
    claim(tmp_path, "17")
    check_claims(tmp_path, [STUDY], [SlurmJob("17", "RUNNING", comment=comment_together(STUDY, None))])


def test_cells_that_were_submitted_together_since_slurm_was_asked_stop_a_run(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    write_yaml(root / "config" / "studies" / f"{STUDY}.yaml", study_content())
    claim(root, "16")
    planner = Planner(root, root, [])
    before = Leftovers({}, known_claims(root, [STUDY]))
    check_none_since(planner, before)
    path = claim(root, new_token())
    with pytest.raises(SlurmError, match="is submitting a job"):
        check_none_since(planner, before)
    path.unlink()
    claim(root, "17")
    with pytest.raises(SlurmError, match="start Snakemake again"):
        check_none_since(planner, before)
    # Where there is no Slurm to ask, nothing was looked for before.
    check_none_since(planner, Leftovers({}))


def test_attempts_are_in_order_and_a_torn_one_hides_none(tmp_path: Path) -> None:
    for number in ("9", "10"):
        begin(tmp_path, CELL, number)
    paths = CellPaths(tmp_path, STUDY, CELL)
    paths.attempt("11").write_text('{"schema')
    assert {attempt.job_id for attempt in attempts_of(paths)} == {"9", "10"}
    assert attempts_of(CellPaths(tmp_path, STUDY, OTHER)) == []


def test_the_pattern_matches_each_study_with_its_own_cells_alone() -> None:
    job = SlurmJob("1", "RUNNING", nodes="n0")
    leftovers = Leftovers({(STUDY, CELL.path): [job], ("demo", OTHER.path): [job]})
    pattern = rf"results/(?P<study>{leftovers.study_pattern})/cells/(?P<cell>{PATH_PATTERN})/result\.json"
    matching = {
        (study, cell)
        for study in (STUDY, "demo", "demo2")
        for cell in (CELL, OTHER)
        if re.fullmatch(pattern, cell_target(study, cell.path))
    }
    assert matching == {(STUDY, CELL), ("demo", OTHER)}


def test_jobs_of_several_cells_are_counted_once() -> None:
    job = SlurmJob("1", "RUNNING", nodes="n0")
    leftovers = Leftovers({(STUDY, CELL.path): [job], (STUDY, OTHER.path): [job]})
    assert leftovers.of([(STUDY, CELL.path), (STUDY, OTHER.path), ("demo", CELL.path)]) == [job]
    assert str(leftovers) == "1 jobs of another run go on for 2 cells: 1 (RUNNING)"
    assert leftovers.numbers(STUDY, CELL.path) == "1"
