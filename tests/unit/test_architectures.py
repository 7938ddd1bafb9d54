"""Guards the shapes of models: published sizes, allowed shard counts, and what a params.json may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.architectures import CATALOGUE, Architecture, ArchitectureError, RopeScaling, from_params
from small_project import PARAMS_65B

LLAMA_3_8B: dict[str, Any] = {
    "dim": 4096,
    "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024,
    "n_heads": 32,
    "n_kv_heads": 8,
    "n_layers": 32,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
LLAMA_3_70B = {**LLAMA_3_8B, "dim": 8192, "multiple_of": 4096, "n_heads": 64, "n_layers": 80}
LLAMA_32_1B = {
    **LLAMA_3_8B,
    **{"dim": 2048, "ffn_dim_multiplier": 1.5, "multiple_of": 256, "n_layers": 16, "use_scaled_rope": True},
}
MISTRAL_7B: dict[str, Any] = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
    "vocab_size": 32000,
}

#: The params.json that each model ships with.
PUBLISHED_PARAMS: dict[str, dict[str, Any]] = {
    "llama-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06},
    "llama-13b": {"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-06},
    "llama-30b": {"dim": 6656, "multiple_of": 256, "n_heads": 52, "n_layers": 60, "norm_eps": 1e-06},
    "llama-65b": PARAMS_65B,
    "llama-2-7b": {
        **{"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-05},
        "vocab_size": -1,
    },
    "llama-2-70b": {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-05,
    },
    "llama-3-8b": LLAMA_3_8B,
    "llama-3-70b": LLAMA_3_70B,
    "llama-3.1-8b": {**LLAMA_3_8B, "use_scaled_rope": True},
    "llama-3.1-70b": {**LLAMA_3_70B, "use_scaled_rope": True},
    "llama-3.1-405b": {
        **LLAMA_3_70B,
        **{"dim": 16384, "ffn_dim_multiplier": 1.2, "n_heads": 128, "n_layers": 126, "use_scaled_rope": True},
    },
    "llama-3.2-1b": LLAMA_32_1B,
    "llama-3.2-3b": {**LLAMA_32_1B, "dim": 3072, "ffn_dim_multiplier": 1.0, "n_heads": 24, "n_layers": 28},
    "mistral-7b-v0.1": {**MISTRAL_7B, "sliding_window": 4096},
    "mistral-7b-v0.3": {**MISTRAL_7B, "rope_theta": 1000000.0, "vocab_size": 32768},
}

#: Weights of the published checkpoints, counted in them.
PUBLISHED_PARAMETERS = {
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.3-70b": 70_553_706_496,
    "tinyllama-1.1b": 1_100_048_384,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
}


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_the_catalogue_has_the_published_number_of_weights(name: str) -> None:
    assert CATALOGUE[name].parameters == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(PUBLISHED_PARAMS))
def test_a_published_params_json_gives_the_catalogues_shape_context_and_rotation(name: str) -> None:
    params = PUBLISHED_PARAMS[name]
    found = from_params(params, vocab_size=32_000)
    # Meta's files hold the output layer even where it is the embedding.
    assert found == replace(CATALOGUE[name], tied_embeddings=False)


def test_a_fine_tuned_model_with_more_pieces_keeps_context_and_rotation() -> None:
    params = {**LLAMA_32_1B, "vocab_size": 128_264}
    assert from_params(params) == replace(from_params(LLAMA_32_1B), vocab_size=128_264)


@pytest.mark.parametrize(
    ("changes", "factor"),
    [
        ({}, 32.0),
        ({"n_layers": 12}, 8.0),
        ({"rope_scaling_factor": 16}, 16.0),
        ({"n_layers": 12, "rope_scaling_factor": 32.0}, 32.0),
    ],
)
def test_the_file_says_how_much_rotation_is_stretched_or_its_shape_does(
    changes: dict[str, Any], factor: float
) -> None:
    shape = from_params({**LLAMA_32_1B, **changes})
    assert shape.rope_scaling == RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    assert shape.context == 131_072


def test_rotation_stays_where_it_is_not_scaled() -> None:
    params = {**LLAMA_3_8B, "use_scaled_rope": False, "rope_scaling_factor": 8.0}
    assert from_params(params) == CATALOGUE["llama-3-8b"]
    other = {**LLAMA_3_8B, "use_scaled_rope": True, "rope_high_freq_factor": 2.0}
    assert from_params(other).rope_scaling == RopeScaling("llama3", 8.0, 1.0, 2.0, 8192)


@pytest.mark.parametrize(
    ("params", "context"),
    [
        ({**PARAMS_65B, "n_layers": 3}, 2048),
        ({**LLAMA_3_8B, "n_layers": 3}, 8192),
        ({**LLAMA_3_8B, "n_layers": 3, "use_scaled_rope": True}, 131_072),
        ({**LLAMA_3_8B, "max_seq_len": 512}, 512),
        ({**MISTRAL_7B, "max_position_embeddings": 65_536}, 65_536),
        ({**MISTRAL_7B, "max_position_embeddings": 65_536, "sliding_window": 1024}, 1024),
        ({**MISTRAL_7B, "max_seq_len": 512, "sliding_window": 1024}, 512),
        ({**MISTRAL_7B, "n_layers": 3, "sliding_window": None}, 2048),
    ],
)
def test_the_context_is_the_files_or_its_generations_within_the_window(
    params: dict[str, Any], context: int
) -> None:
    assert from_params(params, vocab_size=32_000).context == context


def test_a_head_may_be_wider_than_its_share_of_the_width() -> None:
    shape = from_params({**MISTRAL_7B, "dim": 5120})
    assert (shape.head_dim, shape.q_dim, shape.head_size) == (128, 4096, 128)
    assert from_params({**MISTRAL_7B, "head_dim": None}).head_size is None
    assert shape.parameters == 32 * (2 * 5120 * 5120 + 3 * 5120 * 14336 + 2 * 5120) + 64_001 * 5120


def test_tied_embeddings_are_tied_where_the_file_says_so() -> None:
    assert from_params({**MISTRAL_7B, "tied_embeddings": True}).tied_embeddings
    assert not from_params(MISTRAL_7B).tied_embeddings


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"moe": {"num_experts": 8}}, "moe: found .*, a mixture of experts, which is not run"),
        ({"moe_args": {"num_experts": 16}}, "moe_args: .* a mixture of experts"),
        ({"lora": {"rank": 64}}, "lora: .* an adapter"),
        ({"lora_args": {"rank": 16, "scale": 2.0}}, "lora_args: .* an adapter"),
        ({"quantization_args": {"group_size": 256}}, "quantization_args: .* quantised weights"),
        ({"vision_num_cross_attention_layers": 8}, "vision_num_cross_attention_layers: .* a vision encoder"),
        ({"use_qk_norm": True}, "use_qk_norm: .* norms of queries and keys"),
    ],
)
def test_what_is_not_run_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"params\.json: {words}") as caught:
        from_params({**LLAMA_3_8B, **changes})
    assert "expected a dense decoder of the LLaMA family with plain weights" in str(caught.value)
    assert from_params({**LLAMA_3_8B, **dict.fromkeys(changes)}) == CATALOGUE["llama-3-8b"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qkv_bias": True}, "qkv_bias: found True, and what that means is not known; expected dim, "),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: found .*, and what that means is not known"),
        ({"n_kv_head": 8}, r"n_kv_head: found 8, .* not known; did you mean 'n_kv_heads'\?; expected"),
        ({"model_type": "mamba"}, "model_type: found 'mamba', and what that means is not known"),
    ],
)
def test_a_key_that_may_change_the_model_is_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"^params\.json: {words}"):
        from_params({**LLAMA_3_8B, **changes})


def test_keys_that_change_nothing_are_left_aside() -> None:
    aside = {"max_batch_size": 32, "model_type": "transformer", "qkv_bias": False, "attn_dropout": 0.0}
    assert from_params({**LLAMA_3_8B, **aside, "softcap": None, "notes": ""}) == CATALOGUE["llama-3-8b"]


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("llama-7b", (1, 2, 4, 8, 16, 32)),
        ("llama-13b", (1, 2, 4, 8)),
        ("llama-30b", (1, 2, 4)),
        ("llama-65b", (1, 2, 4, 8, 16, 32, 64)),
        ("llama-2-70b", (1, 2, 4, 8, 16, 32, 64)),
        ("llama-3.2-3b", (1, 2, 4, 8)),
        ("tinyllama-1.1b", (1, 2, 4, 8, 16, 32)),
    ],
)
def test_shards_divide_everything_that_is_split(name: str, shards: tuple[int, ...]) -> None:
    assert CATALOGUE[name].allowed_shards() == shards


@given(
    st.integers(1, 64), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4096), st.integers(300, 33_000)
)
def test_every_allowed_shard_count_splits_evenly(
    pairs: int, n_kv_heads: int, group: int, hidden_dim: int, vocab_size: int
) -> None:
    n_heads = n_kv_heads * group
    shape = Architecture(2 * pairs * n_heads, 1, n_heads, n_kv_heads, hidden_dim, vocab_size)
    assert shape.head_dim == 2 * pairs
    assert 1 in shape.allowed_shards()
    for shards in shape.allowed_shards():
        sizes = (n_heads, hidden_dim, vocab_size, shape.dim)
        assert not any(size % shards for size in sizes)
        # Key and value heads are split evenly, or each is on equally many ranks.
        held = shape.kv_heads_per_shard(shards)
        assert shards * held % n_kv_heads == 0
        assert held == max(1, n_kv_heads // shards)


@given(st.sampled_from(sorted(CATALOGUE)))
def test_ranks_hold_the_whole_model_and_what_each_of_them_needs_of_its_own(name: str) -> None:
    shape = CATALOGUE[name]
    for shards in shape.allowed_shards():
        everywhere = (2 * shape.n_layers + 1) * shape.dim * (shards - 1)
        repeated = shape.kv_heads_per_shard(shards) * shards - shape.n_kv_heads
        everywhere += 2 * shape.n_layers * shape.dim * repeated * shape.head_dim
        if shape.tied_embeddings and shards > 1:
            everywhere += shape.vocab_size * shape.dim
        assert shape.parameters_per_shard(shards) * shards == shape.parameters + everywhere


def test_the_vocabulary_comes_from_the_file_before_the_tokenizer() -> None:
    assert from_params({**PARAMS_65B, "vocab_size": 32_016}, vocab_size=32_000).vocab_size == 32_016
    with pytest.raises(ArchitectureError, match="vocab_size is -1, and neither weights nor tokenizer"):
        from_params(PARAMS_65B)


def test_null_in_a_params_json_means_the_default() -> None:
    params = {**PARAMS_65B, "n_kv_heads": None, "ffn_dim_multiplier": None, "rope_theta": None}
    assert from_params(params, 32_000) == from_params(PARAMS_65B, 32_000)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": None}, "dim: found None; expected a positive whole number"),
        ({"dim": 4096.5}, r"dim: found 4096\.5; expected a positive whole number"),
        ({"dim": "4096"}, "dim: found '4096'"),
        ({"n_layers": 0}, "n_layers: found 0"),
        ({"n_layers": True}, "n_layers: found True"),
        ({"n_heads": -1}, "n_heads: found -1"),
        ({"n_heads": 63}, "dim 8192, n_heads 63, n_kv_heads 63: expected heads that divide dim"),
        ({"n_kv_heads": 7}, "n_kv_heads 7: expected heads that divide dim and KV heads that divide heads"),
        ({"n_heads": 8192}, "8192 / n_heads 8192 = 1: rotary embeddings need an even head size"),
        ({"vocab_size": "many"}, "vocab_size: found 'many'"),
        ({"vocab_size": 0}, "vocab_size: found 0"),
        ({"multiple_of": -256}, "multiple_of: found -256"),
        ({"hidden_dim": -1}, "hidden_dim: found -1"),
        ({"max_seq_len": "long"}, "max_seq_len: found 'long'"),
        ({"norm_eps": "small"}, "norm_eps: found 'small'; expected a positive number"),
        ({"norm_eps": float("nan")}, "norm_eps: found nan"),
        ({"norm_eps": 10**400}, "norm_eps: found 10*…; expected a positive number that a float can hold"),
        ({"n_heads": 10**9}, "n_heads: found 1000000000; expected a whole number of at most 65536"),
        ({"n_layers": 10**9}, "n_layers: found 1000000000; expected a whole number of at most 16384"),
        ({"dim": 10**12}, "dim: found 1000000000000; expected a whole number of at most 16777216"),
        ({"ffn_dim_multiplier": 1e308}, r"ffn_dim_multiplier: found 1e\+308; expected .* at most 1024"),
        ({"rope_theta": float("inf")}, "rope_theta: found inf"),
        ({"ffn_dim_multiplier": "1.3"}, r"ffn_dim_multiplier: found '1\.3'"),
        ({"head_dim": 127}, "head_dim 127: rotary embeddings need an even head size"),
        ({"head_dim": "wide"}, "head_dim: found 'wide'"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope: found 'yes'; expected true or false"),
        ({"use_scaled_rope": True, "rope_scaling_factor": 0}, "rope_scaling_factor: found 0"),
        (
            {"use_scaled_rope": True, "rope_high_freq_factor": 1},
            "rope_high_freq_factor: found 1; expected a number above 1",
        ),
        ({"sliding_window": [None, 4096]}, r"sliding_window: found \[None, 4096\]"),
        ({"tied_embeddings": 1}, "tied_embeddings: found 1; expected true or false"),
    ],
)
def test_a_wrong_params_json_is_refused_by_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"params\.json: .*{words}"):
        from_params({**PARAMS_65B, **changes}, vocab_size=32_000)


@pytest.mark.parametrize("key", ["dim", "n_layers", "n_heads"])
def test_a_params_json_without_a_size_is_refused(key: str) -> None:
    params = {name: value for name, value in PARAMS_65B.items() if name != key}
    with pytest.raises(ArchitectureError, match=f"{key}: is missing"):
        from_params(params, vocab_size=32_000)
