"""Guards what several ranks share: columns put side by side, and captures that fail together."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from shardwatt.engine.fast import collectives
from shardwatt.engine.fast.capture import Capture
from shardwatt.engine.fast.graphs import Eager, Graphs
from shardwatt.engine.fast.slots import Slots
from shardwatt.engine.parallel import join
from shardwatt.engine.protocol import Sampling

RANKS = 2
SAMPLING = Sampling(temperature=0, top_p=1, seed=0)


class Recorder:
    """In the place of `Capture`; the third graph cannot be captured on rank 1."""

    def __init__(self, rank: int) -> None:
        self.rank, self.rehearsed, self.recorded = rank, 0, 0

    def rehearse(self, step: Callable[[], None]) -> None:
        self.rehearsed += 1

    def record(self, step: Callable[[], None]) -> SimpleNamespace:
        if (self.rank, self.recorded) == (1, 2):
            raise RuntimeError("not permitted")
        self.recorded += 1
        return SimpleNamespace(replay=step)


def side_by_side() -> list[list[list[float]]]:
    """Columns joined as over gloo, and as over NCCL."""
    peers = collectives.Peers(RANKS)
    own = torch.arange(6.0).view(2, 3) + 100 * torch.distributed.get_rank()
    assert peers._gather is None  # this is gloo
    ways = [peers.join(own)]
    peers._gather = collectives.gather_whole()
    ways.append(peers.join(own.T.contiguous().T))  # columns that do not lie one after another
    return [way.tolist() for way in ways]


def captured(rank: int) -> dict[str, Any]:
    """Capturing four graphs, as far as it comes."""
    recorder = Recorder(rank)
    slots = SimpleNamespace(tokens=torch.zeros(2), positions=torch.zeros(2), last=1023)
    graphs = Graphs(cast(Slots, slots), cast(Eager, None), cast(Capture, recorder), RANKS, shrinks=False)
    graphs.prepare(2, SAMPLING)
    return {"rehearsed": recorder.rehearsed, "note": graphs.note()}


def be_rank(folder: str, rank: int) -> None:
    group = join(
        Path(folder), rank=rank, count=RANKS, device="cpu", start_timeout_s=600, collective_timeout_s=600
    )
    report = {"joined": side_by_side(), "captured": captured(rank)}
    Path(folder, f"report-{rank}.json").write_text(json.dumps(report))
    group.barrier()
    group.leave()


def test_ranks_join_columns_and_give_up_capturing_together(tmp_path: Path) -> None:
    words = [sys.executable, __file__, str(tmp_path)]
    processes = [subprocess.Popen([*words, str(rank)]) for rank in range(RANKS)]
    try:
        for process in processes:
            assert process.wait(timeout=600) == 0
    finally:
        for process in processes:
            process.kill()
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in range(RANKS)]
    whole = [[0, 1, 2, 100, 101, 102], [3, 4, 5, 103, 104, 105]]
    for report in reports:
        assert report["joined"] == [whole, whole]
    assert [report["captured"]["rehearsed"] for report in reports] == [3, 3]
    assert [report["captured"]["note"].partition(")")[0] for report in reports] == [
        "none: capture failed (on another rank",
        "none: capture failed (not permitted",
    ]


if __name__ == "__main__":
    be_rank(sys.argv[1], int(sys.argv[2]))
