"""Guards how files are replaced: whole or not at all, flushed before they are renamed, nothing beside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from shardwatt.analysis import report
from shardwatt.analysis.canvas import save
from shardwatt.analysis.columns import Column
from shardwatt.analysis.planfiles import write_plan
from shardwatt.analysis.tableformats import write_table
from shardwatt.analysis.tablemodel import Field, Table
from shardwatt.analysis.tidy import frame_of, write_tidy
from shardwatt.plan.table import Plan
from shardwatt.plan.totals import totals
from shardwatt.recordfiles import replacing, write_whole

COLUMNS = [Column("batch", "Int64", "count", "rows", "a test")]
TABLE = Table("table-1", "A table", "A note.", [Field("batch", "batch size")], [{"batch": 4}])
PLAN = Plan("none", "No cells", "here", None, [], 0, totals("none", []), [], {})

#: Everything that writes what people read of a study, into a folder.
WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_whole("text", folder / "text"),
    "plan": lambda folder: write_plan(PLAN, folder),
    "tidy": lambda folder: write_tidy(frame_of([{"batch": 4}], COLUMNS), COLUMNS, folder, "cells"),
    "table": lambda folder: write_table(TABLE, folder),
    "report": lambda folder: report.write("<p>", folder / "report.html"),
    "figure": lambda folder: save(Figure, folder, "responses"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", WRITERS)
def test_what_takes_a_name_was_flushed_to_disk_before(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[int, bool]] = []
    flush = os.fsync

    def watched(descriptor: int) -> None:
        flush(descriptor)
        inode = os.fstat(descriptor).st_ino
        hidden = {path.stat().st_ino for path in tmp_path.iterdir() if path.name.startswith(".")}
        flushed.append((inode, inode in hidden))

    monkeypatch.setattr(os, "fsync", watched)
    WRITERS[name](tmp_path)
    made = [path.stat().st_ino for path in tmp_path.iterdir()]
    assert made
    assert sorted(flushed) == sorted((inode, True) for inode in made)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_takes_no_more_leaves_what_was_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flush is where a full disk may show: after the last byte was handed over, before the rename."""
    WRITERS[name](tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(b"older")
    before = contents(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](tmp_path)
    assert contents(tmp_path) == before


def test_of_two_who_write_one_file_at_once_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    """As processes of one number do, on two nodes or in two containers."""
    path = tmp_path / "failure.json"
    with replacing(path) as first:
        first.write_text("the whole first")
        with replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "the whole first"
    assert contents(tmp_path) == {"failure.json": b"the whole first"}


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(b"older")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half of it")
            raise ValueError("no such type")

    with pytest.raises(ValueError, match="no such type"):
        write()
    assert contents(tmp_path) == {"table.parquet": b"older"}
