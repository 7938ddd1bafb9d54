"""Guards the shapes read from a config.json of transformers, and what it may not say."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig

from shardwatt.architectures import CATALOGUE, Architecture, ArchitectureError, RopeScaling
from shardwatt.hfconfig import from_config

LLAMA_2_7B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_3_8B = {
    **LLAMA_2_7B,
    "attention_bias": False,
    "eos_token_id": [128001, 128009],
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
ROPE_31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA_31_8B = {**LLAMA_3_8B, "mlp_bias": False, "max_position_embeddings": 131072, "rope_scaling": ROPE_31}
LLAMA_32_1B = {
    **LLAMA_31_8B,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "rope_scaling": {**ROPE_31, "factor": 32.0},
    "tie_word_embeddings": True,
}
MISTRAL_V01 = {
    **LLAMA_2_7B,
    "architectures": ["MistralForCausalLM"],
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_key_value_heads": 8,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}
MISTRAL_V03 = {**MISTRAL_V01, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768}
TINYLLAMA = {
    **LLAMA_2_7B,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
}

#: The config.json that each model ships with, keys of training left out.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-2-7b": LLAMA_2_7B,
    "llama-3-8b": LLAMA_3_8B,
    "llama-3.1-8b": LLAMA_31_8B,
    "llama-3.2-1b": LLAMA_32_1B,
    "tinyllama-1.1b": TINYLLAMA,
    "mistral-7b-v0.1": MISTRAL_V01,
    "mistral-7b-v0.3": MISTRAL_V03,
}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_config_json_gives_the_catalogues_shape(name: str) -> None:
    assert from_config(PUBLISHED[name]) == CATALOGUE[name]


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_same_file_as_transformers_5_writes_it_gives_the_same_shape(name: str) -> None:
    kind = MistralConfig if PUBLISHED[name]["model_type"] == "mistral" else LlamaConfig
    written = json.loads(kind(**PUBLISHED[name]).to_json_string())
    assert "rope_parameters" in written
    assert "rope_scaling" not in written
    assert from_config(written) == CATALOGUE[name]


@pytest.mark.parametrize("config", [LlamaConfig, MistralConfig])
def test_what_a_file_leaves_out_is_what_transformers_takes(config: Any) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 16}
    said = {"model_type": config.model_type, "vocab_size": 100, **sizes}
    taken = config(**said)
    window = getattr(taken, "sliding_window", None) or taken.max_position_embeddings
    assert from_config(said) == Architecture(
        1024,
        2,
        16,
        taken.num_key_value_heads,
        64,
        100,
        min(window, taken.max_position_embeddings),
        taken.rms_norm_eps,
        taken.rope_parameters["rope_theta"],
        tied_embeddings=taken.tie_word_embeddings,
    )
    assert taken.head_dim == from_config(said).head_dim


def test_null_heads_mean_as_many_as_query_heads() -> None:
    for config in (LLAMA_2_7B, MISTRAL_V01):
        assert from_config({**config, "num_key_value_heads": None}).n_kv_heads == 32
    assert from_config(without(LLAMA_3_8B, "num_key_value_heads")).n_kv_heads == 32
    assert from_config({**LLAMA_3_8B, "head_dim": None}) == CATALOGUE["llama-3-8b"]


def test_a_head_may_be_wider_than_its_share_of_the_width() -> None:
    shape = from_config({**MISTRAL_V03, "hidden_size": 5120, "head_dim": 128})
    assert (shape.head_size, shape.q_dim) == (128, 4096)


def test_rotation_is_read_from_either_place_and_spelling() -> None:
    linear = replace(CATALOGUE["llama-2-7b"], rope_scaling=RopeScaling("linear", 4.0))
    old = {**LLAMA_2_7B, "rope_scaling": {"type": "linear", "factor": 4.0}}
    assert from_config(old) == linear
    new = {"rope_type": "linear", "factor": 4, "rope_theta": 10_000.0}
    assert from_config({**without(LLAMA_2_7B, "rope_scaling"), "rope_parameters": new}) == linear
    inside = {**without(LLAMA_31_8B, "rope_theta", "rope_scaling")}
    inside["rope_parameters"] = {**ROPE_31, "rope_theta": 500_000.0}
    assert from_config(inside) == CATALOGUE["llama-3.1-8b"]
    beside = {**LLAMA_31_8B, "rope_scaling": None, "rope_parameters": ROPE_31}
    assert from_config(beside) == CATALOGUE["llama-3.1-8b"]
    plain = {**LLAMA_2_7B, "rope_scaling": {"type": "default"}}
    assert from_config(plain) == CATALOGUE["llama-2-7b"]


def test_rotation_that_two_places_say_otherwise_is_refused() -> None:
    """transformers 4 reads `rope_scaling`, and 5 either of them: their logits differ."""
    plain = {"rope_type": "default", "rope_theta": 500_000.0}
    same = {**LLAMA_31_8B, "rope_parameters": {**ROPE_31, "rope_theta": 500_000.0}}
    assert from_config(same) == CATALOGUE["llama-3.1-8b"]
    for other in (plain, {**ROPE_31, "factor": 4.0}, {**ROPE_31, "low_freq_factor": 2.0}):
        with pytest.raises(
            ArchitectureError,
            match=r"^config\.json: rope_parameters and rope_scaling differ: found \{.*\} in rope_parameters "
            r"and \{.*\} in rope_scaling; expected one of them, or the same in both",
        ):
            from_config({**LLAMA_31_8B, "rope_parameters": other})
    words = r"rope_theta: found 10000\.0 in rope_parameters and 500000\.0 at its top; expected the same"
    with pytest.raises(ArchitectureError, match=words):
        from_config({**LLAMA_31_8B, "rope_parameters": {**ROPE_31, "rope_theta": 1e4}, "rope_scaling": None})


@pytest.mark.parametrize(
    ("window", "context"), [(1024, 1024), (None, 32_768), (65_536, 32_768)], ids=["window", "none", "wide"]
)
def test_a_window_bounds_the_context(window: int | None, context: int) -> None:
    assert from_config({**MISTRAL_V01, "sliding_window": window}).context == context


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, "model_type: found 'qwen2'; expected llama or mistral: decoders"),
        ({"model_type": None}, "model_type: found None; expected llama or mistral"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures: .* a decoder with its output",
        ),
        ({"architectures": "LlamaForCausalLM"}, "architectures: found 'LlamaForCausalLM'; expected"),
        ({"hidden_act": "gelu"}, "hidden_act: found 'gelu'; expected silu"),
        ({"attention_bias": True}, "attention_bias: found True; expected false: biases are not run"),
        ({"mlp_bias": True}, "mlp_bias: found True; expected false"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config: .* in bf16, fp16 or fp32"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor: found 0\.5; expected 1"),
        ({"pretraining_tp": 2}, "pretraining_tp: found 2; expected 1: .* set it to 1, which is the same"),
        (
            {"rope_scaling": {**ROPE_31, "partial_rotary_factor": 0.5}},
            r"rope_scaling: partial_rotary_factor: found 0\.5",
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "rope_scaling: rope_type: found 'yarn'; expected default, linear or llama3",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling: type: found 'dynamic'"),
        (
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling: factor: is missing; expected a positive number",
        ),
        ({"rope_scaling": without(ROPE_31, "low_freq_factor")}, "low_freq_factor: is missing"),
        (
            {"rope_scaling": without(ROPE_31, "original_max_position_embeddings")},
            "original_max_position_embeddings: is missing",
        ),
        (
            {"rope_scaling": {**ROPE_31, "high_freq_factor": 1.0}},
            "high_freq_factor: .* above low_freq_factor 1",
        ),
        ({"rope_scaling": 4.0}, r"rope_scaling: found 4\.0; expected one object for all layers"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one object for all layers"),
        ({"rope_theta": -1}, "rope_theta: found -1; expected a positive number"),
        ({"hidden_size": None}, "hidden_size: found None; expected a positive whole number"),
        ({"num_attention_heads": 33}, "n_heads 33, n_kv_heads 32: expected heads that divide"),
        ({"head_dim": 65}, "head_dim 65: rotary embeddings need an even head size"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: found 'yes'; expected true or false"),
        ({"sliding_window": 0}, "sliding_window: found 0"),
        ({"num_attention_heads": 10**9}, "num_attention_heads: found 1000000000; expected .* at most 65536"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: found 1000000000; expected .* at most 16384"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps: found 10*…; expected a positive number that a float can"),
    ],
)
def test_what_is_not_run_is_refused_by_key(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"^config\.json: .*{words}"):
        from_config({**LLAMA_2_7B, **changes})


@pytest.mark.parametrize(
    "key",
    [
        "model_type",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    ],
)
def test_a_config_json_without_a_size_is_refused(key: str) -> None:
    with pytest.raises(ArchitectureError, match=f"{key}: is missing"):
        from_config(without(LLAMA_2_7B, key))
