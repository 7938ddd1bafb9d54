"""Guards the gates around the window: rank 0 waits until the supervisor has done what must be done there."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from shardwatt.run.gate import Gates, pass_gate


def test_a_gate_opens_after_its_action_and_only_for_who_asks(tmp_path: Path) -> None:
    done: list[str] = []
    gates = Gates(tmp_path, {"open": lambda: done.append("open"), "close": lambda: done.append("close")})
    gates.look()
    assert done == []
    rank = threading.Thread(target=pass_gate, args=(tmp_path, "open"))
    rank.start()
    while rank.is_alive():
        gates.look()
    # Once, however often it is looked at.
    gates.look()
    assert done == ["open"]


def test_a_gate_stays_shut_when_its_action_fails(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("no space left")

    gates = Gates(tmp_path, {"open": fail})
    rank = threading.Thread(target=pass_gate, args=(tmp_path, "open"), daemon=True)
    rank.start()
    while not (tmp_path / "gate-open.asked").exists():
        time.sleep(0.01)
    with pytest.raises(OSError, match="no space"):
        gates.look()
    assert rank.is_alive()
    (tmp_path / "gate-open.open").touch()
    rank.join()


def test_a_gate_tells_how_long_the_ranks_waited(tmp_path: Path) -> None:
    """The energy of a job leaves these waits out: only who measures pays for them."""
    gates = Gates(tmp_path, {"open": lambda: time.sleep(0.2)})
    waits: list[tuple[float, float]] = []
    rank = threading.Thread(target=lambda: waits.append(pass_gate(tmp_path, "open")))
    rank.start()
    while rank.is_alive():
        gates.look()
    ((asked_s, opened_s),) = waits
    assert opened_s - asked_s >= 0.2
