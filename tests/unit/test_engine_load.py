"""Engines are found by name, and asked for what they can do."""

from __future__ import annotations

from pathlib import Path

import pytest

import engine_tiny
from shardwatt import matrix
from shardwatt.engine.load import LOADERS, load_engine
from shardwatt.engine.protocol import Engine
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint


def opened(name: str, checkpoint: Checkpoint, ranks: int = 1) -> Engine:
    return load_engine(
        name,
        architecture=engine_tiny.shape(),
        checkpoint=checkpoint,
        precision="fp32",
        device="cpu",
        rank=0,
        ranks=ranks,
        vocab_size=engine_tiny.RECIPE.vocab_size,
        eos_id=engine_tiny.EOS,
    )


def test_studies_may_name_exactly_the_engines_that_can_be_loaded() -> None:
    assert set(LOADERS) == set(matrix.ENGINES)


def test_every_engine_loads(tmp_path: Path) -> None:
    checkpoint = engine_tiny.make(tmp_path / "model")
    with engine_tiny.alone(tmp_path / "group"):
        for name in LOADERS:
            engine = opened(name, checkpoint)
            engine.allocate(1, 8)
            engine.synchronize()
            assert engine.peak_memory_gib() > 0


def test_an_unknown_engine_is_named_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="unknown engine 'referense'; did you mean 'reference'") as caught:
        opened("referense", Checkpoint(tmp_path, tmp_path / "tokenizer.model", 1))
    assert caught.value.reason is Reason.CONFIGURATION


def test_ranks_that_do_not_divide_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="does not split over 3 ranks; use one of 1, 2, 4") as caught:
        opened("reference", Checkpoint(tmp_path, tmp_path / "tokenizer.model", 3), ranks=3)
    assert caught.value.reason is Reason.CONFIGURATION
