"""Guards the memory model, against numbers worked out by hand; test_matrix has Table II of 2310.03003."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import engine_tiny
from hf_case import GREEDY, tiny_model
from shardwatt.architectures import CATALOGUE, Architecture
from shardwatt.data import tokenizer
from shardwatt.engine.fast.packing import PREFILL_TOKENS
from shardwatt.engine.load import load_engine
from shardwatt.engines import ENGINES, MODEL_ENGINES, loop_of
from shardwatt.plan.memory import (
    ASSUMED_PROMPT_TOKENS,
    CONTEXT_GIB,
    FAST_PREFILL_TOKENS,
    MemoryNeed,
    cache_positions,
    held_positions,
    memory_need,
)
from shardwatt.units import GIB

LLAMA_65B = CATALOGUE["llama-65b"]
models = st.sampled_from(sorted(CATALOGUE)).map(CATALOGUE.__getitem__)
precisions = st.sampled_from(["fp32", "bf16", "fp16"])
engines = st.sampled_from(sorted(ENGINES))


def test_65b_on_8_devices_needs_what_a_hand_calculation_says() -> None:
    need = memory_need(
        LLAMA_65B, precision="fp16", shards=8, batch=64, length=256, cache_tokens=512, engine="reference"
    )
    norms = (2 * 80 + 1) * 8192
    assert need.weights_gib * GIB == pytest.approx(((65_285_660_672 - norms) / 8 + norms) * 2)
    # keys and values x layers x rows x positions x heads of this device x head size x bytes
    assert need.kv_cache_gib * GIB == pytest.approx(2 * 80 * 64 * 512 * 8 * 128 * 2)
    assert need.kv_cache_gib == pytest.approx(10.0)
    # While the softmax of the prefill runs: scores, the same in 32 bits, and its result in 32 bits.
    sampling, scores = 64 * 32_000 * 20, 64 * 8 * 256 * 256 * (2 + 4 + 4)
    assert need.activations_gib * GIB == pytest.approx(sampling + scores)
    assert need.workspace_gib == CONTEXT_GIB == 0.75
    parts = (need.weights_gib, need.kv_cache_gib, need.activations_gib, need.workspace_gib)
    assert need.total_gib == pytest.approx(sum(parts))
    assert need.total_gib == pytest.approx(26.3, abs=0.1)
    assert need.allocated_gib == pytest.approx(need.total_gib - CONTEXT_GIB)


LLAMA_8B = CATALOGUE["llama-3.1-8b"]
#: Bytes of a prompt token in a layer of 8B in bf16 on one device: residual stream and norm, 32-bit norm, and
#: the feed-forward layer's three products.
TOKEN_8B = 4096 * (2 + 2 + 4) + 3 * 14_336 * 2


def test_grouped_key_and_value_heads_take_their_own_share_alone() -> None:
    need = memory_need(
        LLAMA_8B, precision="bf16", shards=1, batch=8, length=256, cache_tokens=1024, engine="reference"
    )
    assert need.weights_gib * GIB == 8_030_261_248 * 2
    assert need.kv_cache_gib * GIB == 2 * 32 * 8 * 1024 * 8 * 128 * 2


def test_above_their_number_key_and_value_heads_are_on_several_devices() -> None:
    def need(shards: int) -> MemoryNeed:
        return memory_need(
            LLAMA_8B,
            precision="bf16",
            shards=shards,
            batch=8,
            length=256,
            cache_tokens=1024,
            engine="reference",
        )

    assert need(8).kv_cache_gib == need(1).kv_cache_gib / 8
    assert need(16).kv_cache_gib == need(32).kv_cache_gib == need(8).kv_cache_gib
    keys_and_values = 32 * 2 * 4096 * 128 * 2
    norms = 65 * 4096 * 2
    split = need(8).weights_gib * GIB - keys_and_values - norms
    assert need(16).weights_gib * GIB == split / 2 + keys_and_values + norms


def test_the_published_loops_products_copy_a_layers_keys_or_values() -> None:
    """At the last step of a long response, where scores are of one token: half of a layer's cache."""
    need = memory_need(
        LLAMA_65B, precision="fp16", shards=8, batch=4, length=1920, longest_prompt=128, engine="reference"
    )
    layer = need.kv_cache_gib * GIB / 80
    assert need.activations_gib * GIB == pytest.approx(4 * 32_000 * 20 + layer / 2)


def test_scores_of_a_prefill_in_32_bits_have_no_copy_but_stand_beside_one_of_the_values() -> None:
    need = memory_need(
        LLAMA_65B, precision="fp32", shards=8, batch=64, length=256, cache_tokens=512, engine="reference"
    )
    scores, copied_values = 64 * 8 * 256 * 256, 64 * 256 * 8 * 128 * 4
    assert need.activations_gib * GIB == pytest.approx(64 * 32_000 * 20 + scores * 8 + copied_values)


def test_while_a_softmax_runs_grouped_keys_and_values_are_repeated() -> None:
    need = memory_need(
        LLAMA_8B, precision="bf16", shards=1, batch=8, length=256, cache_tokens=512, engine="reference"
    )
    scores, repeated = 8 * 32 * 256 * 256, 2 * 8 * 256 * 32 * 128 * 2
    assert need.activations_gib * GIB == pytest.approx(8 * 128_256 * 20 + scores * 10 + repeated)


def test_the_published_loop_repeats_grouped_keys_and_values_before_it_copies_them() -> None:
    def activations(shape: Architecture, shards: int) -> tuple[float, float]:
        need = memory_need(
            shape,
            precision="bf16",
            shards=shards,
            batch=8,
            length=3840,
            cache_tokens=4096,
            engine="reference",
        )
        layer = need.kv_cache_gib * GIB / shape.n_layers
        return need.activations_gib * GIB - 8 * shape.vocab_size * 20, layer

    own, layer = activations(LLAMA_8B, 1)
    assert own == pytest.approx(1.5 * 4 * layer), "four query heads to a key head"
    own, layer = activations(CATALOGUE["llama-2-70b"], 8)
    assert own == pytest.approx(1.5 * 8 * layer), "eight query heads to the key head of a device"


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_known_longest_prompt_replaces_the_assumed_one(engine: str) -> None:
    def need(**words: int) -> MemoryNeed:
        return memory_need(
            CATALOGUE["llama-7b"], precision="fp16", shards=1, batch=64, length=256, engine=engine, **words
        )

    assert need(longest_prompt=ASSUMED_PROMPT_TOKENS) == need()
    assert need(longest_prompt=316).kv_cache_gib == pytest.approx(need().kv_cache_gib * 572 / 512)
    assert need(longest_prompt=316).activations_gib >= need().activations_gib
    assert need(longest_prompt=316, cache_tokens=512).kv_cache_gib == need().kv_cache_gib


def test_the_fast_loop_makes_no_scores_and_samples_after_the_prefill() -> None:
    def activations(batch: int) -> float:
        need = memory_need(
            LLAMA_8B, precision="bf16", shards=1, batch=batch, length=256, cache_tokens=512, engine="fast"
        )
        return need.activations_gib * GIB

    assert TOKEN_8B * 256 > 128_256 * 28
    assert activations(1) == pytest.approx(256 * TOKEN_8B)
    assert activations(64) == pytest.approx(2048 * TOKEN_8B)
    assert activations(512) == pytest.approx(512 * 128_256 * 28)


def test_the_fast_loop_takes_in_as_many_tokens_at_once_as_the_plan_says() -> None:
    assert FAST_PREFILL_TOKENS == PREFILL_TOKENS


def test_where_the_vocabulary_is_wide_beside_the_model_sampling_is_the_fullest_moment() -> None:
    wide = Architecture(64, 2, 4, 4, 128, 256_000)
    need = memory_need(wide, precision="fp32", shards=1, batch=8, length=16, cache_tokens=64, engine="fast")
    assert need.activations_gib * GIB == pytest.approx(8 * 256_000 * 28)


def test_transformers_has_a_layers_cache_twice_and_repeats_grouped_heads() -> None:
    def activations(shape: Architecture) -> float:
        need = memory_need(
            shape, precision="bf16", shards=1, batch=4, length=256, cache_tokens=1024, engine="hf"
        )
        return need.activations_gib * GIB

    layer = 4 * (256 + 256 - 1) * 2 * 8 * 128 * 2
    # Four query heads share one head of keys and values.
    assert activations(LLAMA_8B) == pytest.approx(4 * 256 * TOKEN_8B + layer + 4 * layer)
    ungrouped = replace(LLAMA_8B, n_kv_heads=32)
    assert activations(ungrouped) == pytest.approx(4 * 256 * TOKEN_8B + 4 * layer)


@pytest.mark.skipif(find_spec("transformers") is None, reason="the extra hf is not installed")
@pytest.mark.parametrize(
    ("length", "cache_tokens"),
    [
        pytest.param(20, None, id="T is prompt and length"),
        pytest.param(20, 100, id="a T that nothing fills"),
        pytest.param(20, 12, id="T ends rows"),
        pytest.param(4, 9, id="T ends the longest prompt's row alone"),
        pytest.param(40, None, id="the context ends rows"),
    ],
)
def test_transformers_cache_is_counted_as_large_as_it_grows(
    tmp_path: Path, length: int, cache_tokens: int | None
) -> None:
    """A prompt of one token beside the longest: as much padding as there can be."""
    prompts = [[1], [1, 40, 41], [1, 5, 80, 81, 82, 83, 84, 11]]
    model = tiny_model(tmp_path / "model", "llama2-70b")
    shape = replace(model.architecture, context=32)
    engine: Any = load_engine("hf", replace(model, architecture=shape))
    held_bytes = []

    def look(module: object, words: object, output: Any) -> None:
        layers = output.past_key_values.layers
        held_bytes.append(sum(layer.keys.nbytes + layer.values.nbytes for layer in layers))

    engine.causal_lm.model.register_forward_hook(look)
    positions = tokenizer.cache_positions(prompts, length, shape.context, cache_tokens)
    engine.generate(engine_tiny.ask(prompts, length, positions), GREEDY, lambda rows: None)
    need = memory_need(
        shape,
        precision="fp32",
        shards=1,
        batch=len(prompts),
        length=length,
        engine="hf",
        cache_tokens=cache_tokens,
        longest_prompt=len(prompts[-1]),
    )
    assert need.kv_cache_gib * GIB == pytest.approx(max(held_bytes))


def test_transformers_cache_takes_padding_beyond_the_positions_of_a_study() -> None:
    """As Alpaca has it: 512 positions, 512 new tokens, 316 tokens of the longest prompt."""

    def held(engine: str, cache_tokens: int | None) -> int:
        positions = cache_positions(LLAMA_8B, 512, cache_tokens, 316)
        return held_positions(engine, positions, 512, 316)

    assert held("hf", None) == 316 + 512 - 1
    assert held("hf", 512) == 316 + 511 - 1
    assert held("hf", 2048) == held("hf", None), "it takes no more than there are tokens"
    assert held("simulated-hf", 512) == held("hf", 512)
    assert (held("reference", 512), held("fast", 2048)) == (512, 2048)


def test_a_tied_embedding_counts_once_on_one_device_and_in_two_parts_on_several() -> None:
    shape = CATALOGUE["llama-3.2-1b"]

    def weights(shards: int) -> float:
        need = memory_need(shape, precision="bf16", shards=shards, batch=1, length=1, engine="reference")
        return need.weights_gib * GIB / 2

    table, norms = 128_256 * 2048, 33 * 2048
    assert weights(1) == 1_235_814_400
    assert weights(2) == (1_235_814_400 - table - norms) / 2 + table + norms


def test_logits_of_all_positions_are_counted_where_an_engine_makes_them() -> None:
    def activations_gib(engine: str) -> float:
        need = memory_need(
            LLAMA_65B, precision="fp16", shards=8, batch=64, length=256, cache_tokens=512, engine=engine
        )
        return need.activations_gib

    # 64 rows x 256 prompt tokens x 32,000 logits in 2 and in 4 bytes
    more_bytes = 3_145_728_000
    assert activations_gib("reference-v2") - activations_gib("reference") == pytest.approx(more_bytes / GIB)


@pytest.mark.parametrize("name", sorted(set(ENGINES) - set(MODEL_ENGINES)))
def test_a_simulated_engine_stands_for_what_its_model_would_need(name: str) -> None:
    def need(engine: str) -> MemoryNeed:
        return memory_need(LLAMA_65B, precision="fp16", shards=8, batch=64, length=256, engine=engine)

    assert need(name) == need(loop_of(name))


def test_cache_positions_end_at_the_models_context() -> None:
    assert cache_positions(LLAMA_65B, 256, None) == ASSUMED_PROMPT_TOKENS + 256
    assert cache_positions(LLAMA_65B, 256, 300) == 300
    assert cache_positions(LLAMA_65B, 256, None, 316) == 572
    assert cache_positions(LLAMA_65B, 256, 300, 316) == 300
    assert cache_positions(LLAMA_65B, 4096, None) == cache_positions(LLAMA_65B, 1, 9999) == 2048


@given(models, precisions, engines, st.integers(1, 512), st.integers(1, 2048))
def test_more_work_never_needs_less_and_more_shards_never_more(
    shape: Architecture, precision: str, engine: str, batch: int, length: int
) -> None:
    def total_gib(shards: int = 1, batch: int = batch, length: int = length) -> float:
        return memory_need(
            shape, precision=precision, shards=shards, batch=batch, length=length, engine=engine
        ).total_gib

    assert total_gib() < total_gib(batch=2 * batch)
    assert total_gib() <= total_gib(length=2 * length)
    by_shards = [total_gib(shards) for shards in shape.allowed_shards()]
    assert by_shards == sorted(by_shards, reverse=True)
