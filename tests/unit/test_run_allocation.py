"""Guards the link to Slurm's own log: a convenience, which ends no cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardwatt.run.allocation import Allocation

SHOWN = "JobId=9 JobState=RUNNING\n   StdOut={folder}/slurm/9.log\n"


@pytest.fixture
def allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Allocation:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho '{SHOWN.format(folder=tmp_path)}'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent))
    return Allocation("9", margin_s=60)


def test_slurms_log_of_a_job_is_found_beside_the_cells(allocation: Allocation, tmp_path: Path) -> None:
    for _ in range(2):
        allocation.link_log(tmp_path)
    assert (tmp_path / "slurm-9.log").readlink() == Path("slurm/9.log")


def test_a_link_that_cannot_be_made_ends_no_cell(allocation: Allocation, tmp_path: Path) -> None:
    (tmp_path / "slurm-9.log").mkdir()
    allocation.link_log(tmp_path)
    allocation.link_log(tmp_path / "no folder")
