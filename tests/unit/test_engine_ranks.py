"""Ranks meet, compute the same as one, notice that they disagree, and notice that one is gone."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import engine_rank
import engine_tiny
from shardwatt.engine.parallel import RENDEZVOUS, join
from shardwatt.errors import CellFailure, Reason


@pytest.mark.parametrize(
    ("saved", "shards", "kv_heads"), [(2, 2, 2), (4, 4, 4)], ids=["two ranks, grouped heads", "four ranks"]
)
def test_shards_compute_what_one_rank_does(tmp_path: Path, saved: int, shards: int, kv_heads: int) -> None:
    single = engine_tiny.make(tmp_path / "one", 1, kv_heads)
    several = engine_tiny.make(tmp_path / "several", saved, kv_heads)
    with engine_tiny.alone(tmp_path / "group") as ranks:
        alone = engine_rank.answer(
            ranks, {"checkpoint": str(single.folder), "saved": 1, "kv_heads": kv_heads}
        )
    reports = engine_tiny.run_ranks(
        tmp_path / "run", "answer", shards, checkpoint=str(several.folder), saved=saved, kv_heads=kv_heads
    )
    exact = torch.tensor(alone["logits"])
    for report in reports:
        assert report["unloaded_on_meta"]
        assert engine_tiny.off(torch.tensor(report["logits"]), exact) <= 1e-5
        assert report["greedy"] == alone["greedy"]
        assert report["sampled"] == reports[0]["sampled"]
        assert report["same"]
        assert not report["different"]


def lost(folder: Path, **options: object) -> dict[str, Any]:
    """What rank 0 says when rank 1 is gone."""
    checkpoint = engine_tiny.make(folder / "model", 2)
    reports = engine_tiny.run_ranks(folder / "run", "lose", 2, checkpoint=str(checkpoint.folder), **options)
    report: dict[str, Any] = reports[0]
    return report


def test_a_killed_rank_is_noticed_long_before_the_time_out(tmp_path: Path) -> None:
    report = lost(tmp_path, how="killed", collective_timeout_s=2 * engine_tiny.PATIENCE_S)
    assert report["reason"] == Reason.RANK_DIED
    assert "see the other ranks' logs" in report["message"]


def test_a_rank_that_does_not_answer_is_a_time_out(tmp_path: Path) -> None:
    # Long enough for what comes before it on a busy machine; rank 1 is silent until rank 0 has given up.
    until = tmp_path / "run" / "report-0.json"
    report = lost(tmp_path, how="silent", until=str(until), collective_timeout_s=8)
    assert report["reason"] == Reason.COLLECTIVE_TIMEOUT
    assert "collective_timeout_s" in report["message"]


def meet(folder: Path, rank: int, start_timeout_s: float = 0.3) -> None:
    join(
        folder,
        rank=rank,
        count=2,
        device="cpu",
        start_timeout_s=start_timeout_s,
        collective_timeout_s=10,
    )


def test_rank_0_names_who_did_not_come(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match=r"rank 1 of 2 did not come within 0\.3 s") as caught:
        meet(tmp_path, 0)
    assert caught.value.reason is Reason.START_TIMEOUT


def test_a_rank_without_rank_0_says_so(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="rank 0 has not started") as caught:
        meet(tmp_path, 1)
    assert caught.value.reason is Reason.START_TIMEOUT


def test_a_rank_whose_rank_0_is_gone_says_so(tmp_path: Path) -> None:
    (tmp_path / RENDEZVOUS).write_text('{"host": "127.0.0.1", "port": 1}')
    with pytest.raises(CellFailure, match=r"cannot reach rank 0 at 127\.0\.0\.1:1") as caught:
        meet(tmp_path, 1)
    assert caught.value.reason is Reason.START_TIMEOUT


def test_a_rank_does_not_join_another_cells_store(tmp_path: Path) -> None:
    """Rank 0 is gone, and the system has given its port to another cell's."""
    other, own = tmp_path / "other", tmp_path / "own"
    other.mkdir()
    own.mkdir()
    thread = threading.Thread(target=_open_and_give_up, args=(other, 3.0))
    thread.start()
    while not (other / RENDEZVOUS).exists():
        time.sleep(0.01)
    address = json.loads((other / RENDEZVOUS).read_text())
    (own / RENDEZVOUS).write_text(json.dumps({**address, "start": "its own"}))
    with pytest.raises(CellFailure, match="cannot reach rank 0") as caught:
        meet(own, 1, start_timeout_s=3)
    thread.join()
    assert caught.value.reason is Reason.START_TIMEOUT


def test_cells_that_start_at_once_take_ports_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abcd"]
    threads = []
    for folder in folders:
        folder.mkdir()
        threads.append(threading.Thread(target=_open_and_give_up, args=(folder,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len({(folder / RENDEZVOUS).read_text() for folder in folders}) == len(folders)


def _open_and_give_up(folder: Path, start_timeout_s: float = 0.5) -> None:
    with pytest.raises(CellFailure):
        meet(folder, 0, start_timeout_s)


def test_a_group_of_one_agrees_and_can_be_left_and_joined_again(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with engine_tiny.alone(tmp_path / name) as ranks:
            ranks.barrier()
            assert ranks.all_agree("anything")
