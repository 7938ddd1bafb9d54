"""Guards where things lie: a work folder that no finished cell shares, a target that Snakemake takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shardwatt.cell import Cell
from shardwatt.layout import CELL_FILES, CellPaths, study_results

CELL = Cell("reference", "llama-65b", "fp16", "v100", 8, 64, 512, "gsm8k", "none", 1)
PATHS = CellPaths(Path("/base"), "paper", CELL)


def test_the_target_is_the_record_below_the_folder_in_which_snakemake_runs() -> None:
    assert PATHS.base / PATHS.target == PATHS.record
    assert PATHS.target == f"results/paper/cells/{CELL.path}/result.json"


def test_the_record_is_put_in_place_last() -> None:
    assert CELL_FILES[-1] == PATHS.record.name
    assert len(set(CELL_FILES)) == 4


def test_logs_lie_outside_the_outputs_that_snakemake_deletes() -> None:
    for path in (PATHS.logs, PATHS.supervisor_log, PATHS.failure, PATHS.rank_log(3), PATHS.attempt("17")):
        assert path.is_relative_to(f"/base/logs/paper/cells/{CELL.path}")
    assert PATHS.rank_log(3).name == "rank-3.log"
    assert PATHS.attempt("17").name == "attempt-17.json"


def test_each_attempt_of_each_cell_works_in_a_folder_of_its_own_outside_the_cells() -> None:
    other = CellPaths(Path("/base"), "paper", replace(CELL, repeat=2))
    folders = {paths.work(job) for paths in (PATHS, other) for job in ("17", "18")}
    assert len(folders) == 4
    for folder in folders:
        assert folder.is_relative_to(study_results(Path("/base"), "paper"))
        assert "cells" not in folder.parts


def test_a_work_folders_name_is_short_enough_for_any_file_system() -> None:
    assert len(PATHS.work("local-20261121T110416-4194304-0123abcd").name) < 100
