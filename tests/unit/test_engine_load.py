"""Engines are found by name, and asked for what they can do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import engine_tiny
from shardwatt.engine.load import LOADERS, load_engine
from shardwatt.engine.protocol import Engine, Sampling
from shardwatt.engines import MODEL_ENGINES
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Checkpoint


def opened(name: str, checkpoint: Checkpoint, ranks: int = 1) -> Engine:
    return load_engine(name, engine_tiny.on_rank(checkpoint, ranks=ranks))


def test_exactly_the_engines_that_run_models_can_be_loaded() -> None:
    assert list(LOADERS) == list(MODEL_ENGINES)


@pytest.mark.parametrize("name", MODEL_ENGINES)
def test_every_engine_loads_answers_and_says_how_it_ran(tmp_path: Path, name: str) -> None:
    checkpoint = engine_tiny.make(tmp_path / "model")
    prompts = [[1, 5, 6], [1, 7, 8, 9]]
    counted: list[int] = []
    with engine_tiny.alone(tmp_path / "group"):
        engine = opened(name, checkpoint)
        engine.allocate(2, 12)
        result = engine.generate(engine_tiny.ask(prompts, 4, 12), Sampling(0, 1, 0), counted.append)
        engine.synchronize()
        assert engine.peak_memory_gib() > 0
    assert all(token not in (0, 1) for tokens in result.tokens for token in tokens)
    assert [len(tokens) for tokens in result.tokens] == [4, 4] or "eos" in result.finish
    assert sum(counted) == result.generated_tokens >= sum(len(tokens) for tokens in result.tokens)
    notes = engine.notes()
    assert notes
    assert all(notes.values())


def test_an_unknown_engine_is_named_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="unknown engine 'referense'; did you mean 'reference'") as caught:
        opened("referense", engine_tiny.saved(tmp_path))
    assert caught.value.reason is Reason.CONFIGURATION


def test_ranks_that_do_not_divide_the_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match="does not split over 3 ranks; use one of 1, 2, 4") as caught:
        opened("reference", engine_tiny.saved(tmp_path, 3), ranks=3)
    assert caught.value.reason is Reason.CONFIGURATION


def test_bfloat16_is_refused_by_name_on_a_gpu_that_emulates_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Such a GPU is rare by now, and what torch says of one is all that is read.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-32GB")
    model = engine_tiny.on_rank(engine_tiny.saved(tmp_path), precision="bf16")
    with pytest.raises(CellFailure, match=r"Tesla V100-SXM2-32GB has compute capability 7\.0") as caught:
        load_engine("reference", replace(model, device="cuda:0"))
    assert caught.value.reason is Reason.CONFIGURATION


@pytest.mark.parametrize("name", ["fast", "hf"])
def test_no_engine_calculates_fp32_in_tf32_where_the_environment_says_so(tmp_path: Path, name: str) -> None:
    checkpoint = engine_tiny.make(tmp_path / "model")
    # What TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 leaves when torch is imported.
    torch.set_float32_matmul_precision("high")
    try:
        with engine_tiny.alone(tmp_path / "group"):
            opened(name, checkpoint)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_environment_that_makes_tf32_of_fp32_on_gpus_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    model = engine_tiny.on_rank(engine_tiny.make(tmp_path / "model"))
    with pytest.raises(CellFailure, match="NVIDIA_TF32_OVERRIDE=1 would make TF32 of it; unset it") as caught:
        load_engine("reference", replace(model, device="cuda:0"))
    assert caught.value.reason is Reason.CONFIGURATION
    with engine_tiny.alone(tmp_path / "group"):
        load_engine("reference", model)  # no processor's library reads it
