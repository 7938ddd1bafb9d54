"""Putting a finished cell's files into place: flushed, renamed one by one, the record last."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from shardwatt.cellfiles import SCHEMAS, read_table
from shardwatt.errors import RecordError
from shardwatt.layout import CELL_FILES, CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Inputs, Record


def valid_record(paths: CellPaths, constants_hash: str, inputs: Inputs) -> bool:
    """Whether the cell already has a whole result for these constants and inputs.

    `does_not_fit` is a result like any other: to try again, remove it.
    """
    try:
        record = read(Record, paths.record)
        for name in SCHEMAS:
            read_table(paths.results / name)
    except (FileNotFoundError, RecordError):
        return False
    return (
        record.study == paths.study
        and record.cell.to_cell() == paths.cell
        and record.constants_hash == constants_hash
        and record.inputs == inputs
    )


def put_in_place(work: Path, results: Path) -> None:
    """Move a cell's four files from its work folder to where they belong.

    `result.json` goes first and comes last: where it stands, the others do, and they are its own. It does not
    go before all four are in the folder, under hidden names: another start of the same job, or the command
    that found this one lost, may have removed the work folder.

    Raises:
        OSError: a file cannot be flushed or renamed; without `result.json` nothing is taken for whole.
    """
    *tables, record = CELL_FILES
    results.mkdir(parents=True, exist_ok=True)
    for name in CELL_FILES:
        # Of an attempt that was killed in the midst of this: nobody else is here.
        for left in results.glob(f".{name}.*"):
            left.unlink(missing_ok=True)
        _flush(work / name)
    hidden = {name: results / f".{name}.{work.name}" for name in CELL_FILES}
    try:
        for name in CELL_FILES:
            (work / name).replace(hidden[name])
        (results / record).unlink(missing_ok=True)
        for name in tables:
            hidden[name].replace(results / name)
        _flush_folder(results)
        hidden[record].replace(results / record)
        _flush_folder(results)
    finally:
        for path in hidden.values():
            path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    # Some network file systems cannot flush a folder; the files themselves are flushed.
    with contextlib.suppress(OSError):
        _flush(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
