"""Guards the rotary embedding against transformers' own, and what Llama 3.1's scaling promises."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from shardwatt.architectures import Architecture, RopeScaling
from shardwatt.engine.rope import frequencies, rotations

LLAMA_31 = RopeScaling("llama3", 8.0)
LLAMA_32 = RopeScaling("llama3", 32.0)


def shape(
    *,
    theta: float = 10_000.0,
    scaling: RopeScaling | None = None,
    head_size: int | None = None,
    context: int = 2048,
) -> Architecture:
    return Architecture(
        dim=256,
        n_layers=1,
        n_heads=2,
        n_kv_heads=2,
        hidden_dim=64,
        vocab_size=64,
        context=context,
        rope_theta=theta,
        rope_scaling=scaling,
        head_size=head_size,
    )


def of_transformers(architecture: Architecture, positions: int) -> torch.Tensor:
    """[T, D / 2], from the cosines and sines of transformers' half-split layout."""
    scaling = architecture.rope_scaling
    parameters: dict[str, object] = {"rope_type": "default", "rope_theta": architecture.rope_theta}
    if scaling is not None:
        parameters |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        parameters |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    config = LlamaConfig(
        hidden_size=architecture.dim,
        num_attention_heads=architecture.n_heads,
        head_dim=architecture.head_dim,
        max_position_embeddings=architecture.context,
        rope_parameters=parameters,
    )
    rotary = LlamaRotaryEmbedding(config)
    cosines, sines = rotary(torch.zeros(1), torch.arange(positions)[None])
    half = architecture.head_dim // 2
    return torch.complex(cosines[0, :, :half], sines[0, :, :half])


@pytest.mark.parametrize(
    "architecture",
    [
        shape(),
        shape(theta=500_000.0),
        shape(theta=1_000_000.0, head_size=96),
        shape(scaling=RopeScaling("linear", 4.0)),
        shape(theta=500_000.0, scaling=LLAMA_31, context=131_072),
        shape(theta=500_000.0, scaling=LLAMA_32, head_size=64, context=131_072),
        shape(scaling=RopeScaling("llama3", 3.0, 2.0, 5.0, 512)),
    ],
    ids=["plain", "llama-3", "head-size", "linear", "llama-3.1", "llama-3.2", "other-factors"],
)
def test_rotations_are_those_of_transformers_to_the_last_bit(architecture: Architecture) -> None:
    found = rotations(architecture, 3000)
    assert found.dtype is torch.complex64
    assert found.shape == (3000, architecture.head_dim // 2)
    assert torch.equal(found, of_transformers(architecture, 3000))


def test_far_positions_agree_with_transformers_too() -> None:
    architecture = shape(theta=500_000.0, scaling=LLAMA_31, context=131_072)
    assert torch.equal(rotations(architecture, 131_072), of_transformers(architecture, 131_072))


def test_position_0_turns_nothing_and_the_first_pair_turns_by_a_radian() -> None:
    found = rotations(shape(), 2)
    assert torch.equal(found[0], torch.ones(64, dtype=torch.complex64))
    assert found[1, 0].item() == pytest.approx(complex(math.cos(1.0), math.sin(1.0)), abs=1e-6)


def test_linear_scaling_is_the_position_divided() -> None:
    torch.testing.assert_close(
        rotations(shape(scaling=RopeScaling("linear", 4.0)), 400)[::4], rotations(shape(), 100)
    )


def test_llama_31_keeps_fast_pairs_divides_slow_ones_and_passes_smoothly() -> None:
    plain = frequencies(shape(theta=500_000.0))
    scaled = frequencies(shape(theta=500_000.0, scaling=LLAMA_31))
    wavelengths = 2 * math.pi / plain
    fast, slow = wavelengths < 8192 / 4, wavelengths > 8192
    between = ~fast & ~slow
    assert fast.any()
    assert slow.any()
    assert between.any()
    assert torch.equal(scaled[fast], plain[fast])
    assert torch.equal(scaled[slow], plain[slow] / 8)
    divided = plain[between] / scaled[between]
    assert ((divided > 1) & (divided < 8)).all()
    assert (scaled.diff() < 0).all()
