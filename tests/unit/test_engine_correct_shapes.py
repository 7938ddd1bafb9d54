"""Engines compute what the papers say for any shape that they accept, against a dense model in float64."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import engine_tiny
from checkpoints_tiny import random_weights
from engine_cases import logits_of
from engine_dense import dense_logits
from shardwatt.architectures import Architecture, RopeScaling
from shardwatt.engine.load import load_engine
from shardwatt.models import Checkpoint

#: Of the largest logit.
BOUND = 1e-5

ROWS, TOKENS = 2, 9

SCALINGS = st.one_of(
    st.none(),
    st.builds(RopeScaling, kind=st.just("linear"), factor=st.floats(1, 8)),
    # Wavelengths of tiny heads lie on both sides of such contexts, and in the passage between.
    st.builds(
        RopeScaling,
        kind=st.just("llama3"),
        factor=st.floats(1, 8),
        low_freq_factor=st.floats(0.5, 1.5),
        high_freq_factor=st.floats(2, 6),
        original_context=st.integers(8, 512),
    ),
)


@st.composite
def shapes(draw: st.DrawFn) -> Architecture:
    kv_heads, shared_by = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = kv_heads * shared_by
    head_size = 2 * draw(st.integers(1, 12))
    # In a narrower stream a norm now and then divides by nearly nothing, and roundings grow with it.
    own_width = heads * head_size < 16 or draw(st.booleans())
    return Architecture(
        dim=draw(st.integers(16, 80)) if own_width else heads * head_size,
        n_layers=draw(st.integers(1, 3)),
        n_heads=heads,
        n_kv_heads=kv_heads,
        hidden_dim=draw(st.integers(1, 130)),
        vocab_size=draw(st.integers(4, 150)),
        context=64,
        norm_eps=draw(st.sampled_from([1e-6, 1e-5])),
        rope_theta=draw(st.sampled_from([100.0, 10_000.0, 500_000.0])),
        head_size=head_size if own_width else None,
        rope_scaling=draw(SCALINGS),
        tied_embeddings=draw(st.booleans()),
    )


@pytest.fixture(scope="module", autouse=True)
def _group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with engine_tiny.alone(tmp_path_factory.mktemp("shapes") / "group"):
        yield


@pytest.mark.parametrize("name", ["reference", "fast"])
@settings(max_examples=30, deadline=None)
@given(shape=shapes(), seed=st.integers(0, 2**32 - 1))
def test_logits_of_any_shape_equal_a_dense_implementation(name: str, shape: Architecture, seed: int) -> None:
    weights = random_weights(shape, seed)
    tokens = torch.randint(shape.vocab_size, (ROWS, TOKENS), generator=torch.Generator().manual_seed(seed))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "consolidated.00.pth"
        torch.save(weights, file)
        checkpoint = Checkpoint(Path(folder), Path(folder) / "tokenizer.model", "meta", (file.name,))
        engine = load_engine(name, engine_tiny.on_rank(checkpoint, shape))
        engine.allocate(ROWS, TOKENS)
        logits = logits_of(engine, tokens)
    exact = torch.stack([dense_logits(weights, shape, row) for row in tokens.tolist()])
    off = (logits - exact).abs().max() / exact.abs().max()
    assert float(off) <= BOUND
