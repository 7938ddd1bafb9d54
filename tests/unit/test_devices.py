"""Guards the choice of GPUs: the job's own, by index or UUID, and never fewer than ranks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shardwatt.devices import own_devices
from shardwatt.errors import CellFailure, Reason
from small_project import make_site


def devices(gpu: str, ranks: int, folder: Path) -> list[str]:
    return own_devices(make_site(folder).gpus[gpu], ranks, os.environ)


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1"]),
        ("3,1,0", ["3", "1"]),
        (" 3 , 1 ,", ["3", "1"]),
        ("GPU-8f2b,GPU-11aa", ["GPU-8f2b", "GPU-11aa"]),
    ],
)
def test_ranks_take_the_first_visible_gpus(
    visible: str | None, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices("v100", 2, tmp_path) == expected


@pytest.mark.parametrize("visible", ["", "5"])
def test_fewer_gpus_than_ranks_are_refused(
    visible: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(CellFailure, match=r"CUDA_VISIBLE_DEVICES names . GPUs .* 2 ranks here") as raised:
        devices("v100", 2, tmp_path)
    assert raised.value.reason is Reason.CONFIGURATION


def test_processors_need_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert devices("cpu", 2, tmp_path) == []
