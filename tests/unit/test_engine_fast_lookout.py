"""Guards how the host waits for tokens: of several ranks not for ever, also where NCCL's watch is blind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import pytest
import torch

import engine_tiny
from shardwatt.engine.fast.lookout import Lookout
from shardwatt.engine.fast.loop import Fast
from shardwatt.engine.load import load_engine
from shardwatt.engine.protocol import Sampling
from shardwatt.errors import CellFailure, Reason
from still_clock import StillClock


class Event:
    """In the place of CUDA's: has come after so many looks, None for never."""

    def __init__(self, looks: int | None) -> None:
        self.left, self.waited = looks, False

    def query(self) -> bool:
        if self.left is not None:
            self.left -= 1
        return self.left is not None and self.left < 0

    def synchronize(self) -> None:
        self.waited = True


def waiting_for(event: Event, timeout_s: float | None) -> Lookout[str]:
    lookout: Lookout[str] = Lookout(1, torch.device("cpu"), 0, timeout_s)
    lookout.send(["row"], torch.tensor([7]))
    ((owners, tokens, _),) = lookout._sent
    lookout._sent = [(owners, tokens, cast(torch.cuda.Event, event))]
    return lookout


def test_a_step_of_several_ranks_that_does_not_end_fails_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = StillClock()
    monkeypatch.setattr("shardwatt.engine.fast.lookout.time", clock)
    with pytest.raises(CellFailure, match=r"not ended within 0\.2 s.*collective_timeout_s") as caught:
        waiting_for(Event(None), 0.2).seen()
    assert caught.value.reason is Reason.COLLECTIVE_TIMEOUT
    assert clock.pauses_s == sorted(clock.pauses_s)
    assert clock.pauses_s[-1] == 1e-3 > 4 * clock.pauses_s[0]
    assert sum(clock.pauses_s) == pytest.approx(0.2, abs=2e-3)


@pytest.mark.parametrize("looks", [0, 5])
def test_a_step_of_several_ranks_that_ends_is_seen(looks: int) -> None:
    assert waiting_for(Event(looks), 60.0).seen() == [("row", 7)]


def test_one_rank_waits_for_its_device() -> None:
    event = Event(None)
    assert waiting_for(event, None).seen() == [("row", 7)]
    assert event.waited


@pytest.mark.parametrize(("ranks", "expected"), [(1, None), (2, 5.0)])
def test_the_limit_is_that_of_the_sites_collectives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, expected: float | None
) -> None:
    limits: list[float | None] = []

    class Noted(Lookout[object]):
        def __init__(self, rows: int, device: torch.device, late: int, timeout_s: float | None) -> None:
            limits.append(timeout_s)
            super().__init__(rows, device, late, timeout_s)

    monkeypatch.setattr("shardwatt.engine.fast.loop.Lookout", Noted)
    checkpoint = engine_tiny.make(tmp_path / "model")
    with engine_tiny.alone(tmp_path / "group"):
        engine = load_engine("fast", engine_tiny.on_rank(checkpoint))
        assert isinstance(engine, Fast)
        engine.allocate(1, 12)
        on = dataclasses.replace(engine.on, ranks=ranks, collective_timeout_s=5.0)
        monkeypatch.setattr(engine, "on", on)
        engine.generate(engine_tiny.ask([[1, 5]], 2, 12), Sampling(0, 1, 0), lambda rows: None)
    assert limits == [expected]
