"""The model computes what LLaMA's papers say, whatever its KV heads and however it is fed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fairscale.nn.model_parallel import layers

import engine_tiny
from engine_dense import dense_logits
from shardwatt.engine.model import Transformer
from shardwatt.engine.reference import Reference
from shardwatt.models import Checkpoint

KV_HEADS = (4, 2, 1)
TOKENS = torch.tensor([[1, 7, 9, 250, 33, 12], [1, 40, 41, 42, 299, 3]])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Checkpoint]]:
    folder = tmp_path_factory.mktemp("model")
    made = {count: engine_tiny.make(folder / f"kv-{count}", kv_heads=count) for count in KV_HEADS}
    with engine_tiny.alone(folder / "group"):
        yield made


def opened(checkpoint: Checkpoint, kv_heads: int, precision: str = "fp32") -> Reference:
    engine = engine_tiny.open_engine(checkpoint, kv_heads, precision=precision)
    engine.allocate(2, 8)
    return engine


@pytest.mark.parametrize("kv_heads", KV_HEADS)
def test_logits_equal_a_dense_implementation(checkpoints: dict[int, Checkpoint], kv_heads: int) -> None:
    engine = opened(checkpoints[kv_heads], kv_heads)
    weights = torch.load(checkpoints[kv_heads].weight_files[0], weights_only=True)
    with torch.inference_mode():
        logits = engine.model(TOKENS, 0)
    for row, tokens in enumerate(TOKENS.tolist()):
        expected = dense_logits(weights, engine_tiny.shape(kv_heads), tokens)[-1]
        assert engine_tiny.off(logits[row], expected) <= 1e-5


@pytest.mark.parametrize("kv_heads", KV_HEADS)
@pytest.mark.parametrize("pieces", [(1, 1, 1, 1, 1, 1), (3, 1, 2)])
def test_step_by_step_equals_prefill(
    checkpoints: dict[int, Checkpoint], kv_heads: int, pieces: tuple[int, ...]
) -> None:
    engine = opened(checkpoints[kv_heads], kv_heads)
    with torch.inference_mode():
        whole = engine.model(TOKENS, 0)
        engine.allocate(2, 8)
        known = 0
        for piece in pieces:
            stepped = engine.model(TOKENS[:, known : known + piece], known)
            known += piece
    assert engine_tiny.off(stepped, whole) <= 3e-6


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.02), ("fp16", 0.003)])
def test_half_precision_is_near_single(
    checkpoints: dict[int, Checkpoint], precision: str, tolerance: float
) -> None:
    half, single = opened(checkpoints[4], 4, precision), opened(checkpoints[4], 4)
    assert {parameter.element_size() for parameter in half.model.parameters()} == {2}
    with torch.inference_mode():
        assert engine_tiny.off(half.model(TOKENS, 0), single.model(TOKENS, 0)) <= tolerance


def test_parameters_are_named_as_in_metas_checkpoints(checkpoints: dict[int, Checkpoint]) -> None:
    model = Transformer(engine_tiny.shape())
    of_a_layer = {
        *(f"attention.{name}.weight" for name in ("wq", "wk", "wv", "wo")),
        *(f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")),
        "attention_norm.weight",
        "ffn_norm.weight",
    }
    expected = {f"layers.{layer}.{name}" for layer in range(2) for name in of_a_layer}
    assert set(model.state_dict()) == expected | {
        "tok_embeddings.weight",
        "norm.weight",
        "output.weight",
    }


def test_building_takes_no_memory_and_leaves_fairscale_as_it_was(
    checkpoints: dict[int, Checkpoint],
) -> None:
    before = layers._initialize_affine_weight
    model = Transformer(engine_tiny.shape())
    assert all(parameter.is_meta for parameter in model.parameters())
    assert layers._initialize_affine_weight is before
