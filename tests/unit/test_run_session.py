"""Guards what a rank keeps from one cell to the next: one engine at a time."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shardwatt.engine.parallel import Ranks
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.run import session
from shardwatt.run.exchange import JobSpec
from shardwatt.run.place import Place


class Loaded:
    """In the place of an engine; in a cycle, as modules and closures are."""

    def __init__(self) -> None:
        self.itself = self


def test_the_old_weights_are_gone_before_others_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    there: list[int] = []
    engines: weakref.WeakSet[Loaded] = weakref.WeakSet()

    def load_engine(name: str, model: ModelOnRank) -> Loaded:
        there.append(len(engines))
        engine = Loaded()
        engines.add(engine)
        return engine

    def spec(precision: str) -> JobSpec:
        cell = SimpleNamespace(engine="fast", model="m", precision=precision)
        words: dict[str, Any] = {"architecture": None, "vocab_size": 9, "eos_ids": frozenset()}
        words |= {"constants": SimpleNamespace(cuda_graphs="never"), "collective_timeout_s": 60.0}
        words |= {"batches": [SimpleNamespace(rows=4)]}
        return cast(JobSpec, SimpleNamespace(cell=cell, checkpoint="c", staging=None, **words))

    monkeypatch.setattr(session, "load_engine", load_engine)
    ranks = session.Session(Path(), Place(rank=0, local_rank=0, device=None, in_step=False), "node")
    try:
        for precision in ("fp32", "bf16", "bf16", "fp16"):
            ranks._load(spec(precision), Ranks(0, 1))
            gc.freeze()  # as before each window
    finally:
        gc.unfreeze()
    assert there == [0, 0, 0]
