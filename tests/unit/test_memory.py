"""Guards the memory model: against numbers worked out by hand, and against Table II of arXiv 2310.03003."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.architectures import CATALOGUE, Architecture
from shardwatt.plan.memory import (
    ASSUMED_PROMPT_TOKENS,
    CONTEXT_GIB,
    cache_positions,
    fewest_shards,
    memory_need,
)
from shardwatt.units import GIB

LLAMA_65B = CATALOGUE["llama-65b"]
models = st.sampled_from(sorted(CATALOGUE)).map(CATALOGUE.__getitem__)
precisions = st.sampled_from(["fp32", "bf16", "fp16"])


def test_65b_on_8_devices_needs_what_a_hand_calculation_says() -> None:
    need = memory_need(LLAMA_65B, precision="fp16", shards=8, batch=64, length=256, cache_tokens=512)
    norms = (2 * 80 + 1) * 8192
    assert need.weights_gib * GIB == pytest.approx(((65_285_660_672 - norms) / 8 + norms) * 2)
    # keys and values x layers x rows x positions x heads of this device x head size x bytes
    assert need.kv_cache_gib * GIB == pytest.approx(2 * 80 * 64 * 512 * 8 * 128 * 2)
    assert need.kv_cache_gib == pytest.approx(10.0)
    sampling, scores = 64 * 32_000 * 20, 64 * 8 * 256 * 256 * 6
    assert (need.workspace_gib - CONTEXT_GIB) * GIB == pytest.approx(sampling + scores)
    assert need.total_gib == pytest.approx(26.2, abs=0.1)


@pytest.mark.parametrize(
    ("model", "memory_gib", "shards"),
    [
        ("llama-7b", 32, 1),
        ("llama-7b", 80, 1),
        ("llama-13b", 32, 2),
        ("llama-13b", 80, 1),
        ("llama-65b", 32, 8),
        ("llama-65b", 80, 4),
    ],
)
def test_the_fewest_shards_are_those_of_table_2(model: str, memory_gib: float, shards: int) -> None:
    """At batch 64 and maximum length 256, prompts of at most 256 tokens."""
    found = fewest_shards(
        CATALOGUE[model], memory_gib=memory_gib, precision="fp16", batch=64, length=256, cache_tokens=512
    )
    assert found == shards


@pytest.mark.parametrize(
    ("model", "memory_gib", "shards", "largest"),
    [("llama-7b", 32, 1, 64), ("llama-13b", 32, 2, 64), ("llama-65b", 32, 8, 64), ("llama-65b", 80, 4, 128)],
)
def test_the_largest_batch_is_that_of_table_2(
    model: str, memory_gib: float, shards: int, largest: int
) -> None:
    def need_gib(batch: int) -> float:
        return memory_need(
            CATALOGUE[model], precision="fp16", shards=shards, batch=batch, length=256, cache_tokens=512
        ).total_gib

    assert need_gib(largest) <= memory_gib < need_gib(2 * largest)


def test_a_model_may_fit_on_no_number_of_devices() -> None:
    assert fewest_shards(LLAMA_65B, memory_gib=1, precision="fp16", batch=64, length=256) is None


def test_only_the_counts_that_are_offered_are_chosen_from() -> None:
    def fewest(counts: list[int] | None) -> int | None:
        return fewest_shards(LLAMA_65B, memory_gib=80, precision="fp16", batch=1, length=16, counts=counts)

    assert fewest(None) == 2
    assert fewest([8, 16]) == 8
    assert fewest([]) is None


def test_cache_positions_end_at_the_models_context() -> None:
    assert cache_positions(LLAMA_65B, 256, None) == ASSUMED_PROMPT_TOKENS + 256
    assert cache_positions(LLAMA_65B, 256, 300) == 300
    assert cache_positions(LLAMA_65B, 4096, None) == cache_positions(LLAMA_65B, 1, 9999) == 2048


@given(models, precisions, st.integers(1, 512), st.integers(1, 2048))
def test_more_work_never_needs_less_and_more_shards_never_more(
    shape: Architecture, precision: str, batch: int, length: int
) -> None:
    def total_gib(shards: int = 1, batch: int = batch, length: int = length) -> float:
        return memory_need(shape, precision=precision, shards=shards, batch=batch, length=length).total_gib

    assert total_gib() < total_gib(batch=2 * batch)
    assert total_gib() <= total_gib(length=2 * length)
    by_shards = [total_gib(shards) for shards in shape.allowed_shards()]
    assert by_shards == sorted(by_shards, reverse=True)


@given(models, precisions, st.integers(1, 512), st.integers(1, 1024), st.floats(1, 200))
def test_the_fewest_shards_fit_and_no_fewer_do(
    shape: Architecture, precision: str, batch: int, length: int, memory_gib: float
) -> None:
    def fits(shards: int) -> bool:
        need = memory_need(shape, precision=precision, shards=shards, batch=batch, length=length)
        return need.total_gib <= memory_gib

    fewest = fewest_shards(shape, memory_gib=memory_gib, precision=precision, batch=batch, length=length)
    fitting = [shards for shards in shape.allowed_shards() if fits(shards)]
    assert fewest == (fitting[0] if fitting else None)
