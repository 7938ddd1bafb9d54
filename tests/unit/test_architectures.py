"""Guards the shapes of models: published sizes, allowed shard counts, and what a params.json may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.architectures import CATALOGUE, Architecture, ArchitectureError, from_params
from small_project import PARAMS_65B

META_PARAMS: dict[str, dict[str, Any]] = {
    "llama-7b": {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06},
    "llama-13b": {"dim": 5120, "multiple_of": 256, "n_heads": 40, "n_layers": 40, "norm_eps": 1e-06},
    "llama-30b": {"dim": 6656, "multiple_of": 256, "n_heads": 52, "n_layers": 60, "norm_eps": 1e-06},
    "llama-65b": PARAMS_65B,
    "llama-2-70b": {
        "dim": 8192,
        "multiple_of": 4096,
        "ffn_dim_multiplier": 1.3,
        "n_heads": 64,
        "n_kv_heads": 8,
        "n_layers": 80,
        "norm_eps": 1e-05,
    },
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
}


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_the_catalogue_has_the_published_number_of_weights(name: str) -> None:
    assert CATALOGUE[name].parameters == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", sorted(META_PARAMS))
def test_a_params_json_of_meta_gives_the_catalogues_shape(name: str) -> None:
    found = from_params({**META_PARAMS[name], "vocab_size": -1}, vocab_size=32_000)
    # No params.json says how many positions a model was trained for.
    assert found == replace(CATALOGUE[name], context=2048)


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("llama-7b", (1, 2, 4, 8, 16, 32)),
        ("llama-13b", (1, 2, 4, 8)),
        ("llama-30b", (1, 2, 4)),
        ("llama-65b", (1, 2, 4, 8, 16, 32, 64)),
        ("llama-2-70b", (1, 2, 4, 8)),
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
        sizes = (n_heads, n_kv_heads, hidden_dim, vocab_size, shape.dim)
        assert not any(size % shards for size in sizes)


def test_the_vocabulary_comes_from_the_file_before_the_tokenizer() -> None:
    assert from_params({**PARAMS_65B, "vocab_size": 32_016}, vocab_size=32_000).vocab_size == 32_016
    with pytest.raises(ArchitectureError, match="vocab_size is -1 and no tokenizer says it"):
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
        ({"rope_theta": float("inf")}, "rope_theta: found inf"),
        ({"ffn_dim_multiplier": "1.3"}, r"ffn_dim_multiplier: found '1\.3'"),
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
