"""The shape of a model from the config.json of a checkpoint of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardwatt.architectures import (
    MOST_HEADS,
    MOST_LAYERS,
    Architecture,
    ArchitectureError,
    RopeScaling,
    size_of_head,
)
from shardwatt.jsonfields import Fields, shown

#: Kinds of model that are run, and what transformers takes where their config.json says nothing.
_DEFAULTS: dict[str, dict[str, int]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096},
}

#: What `architectures` may name: decoders with an output layer, in the spellings that have been used.
_CLASSES = ("llamaforcausallm", "mistralforcausallm")

_PLAIN = "use a checkpoint of the same model"

#: Keys that leave the family where they say anything but this, and what to do.
_REFUSED: tuple[tuple[str, tuple[object, ...], str], ...] = (
    ("hidden_act", (None, "silu"), "expected silu: other activations are not run"),
    ("attention_bias", (None, False), "expected false: biases are not run"),
    ("mlp_bias", (None, False), "expected false: biases are not run"),
    ("quantization_config", (None,), f"quantised weights are not run: {_PLAIN} in bf16, fp16 or fp32"),
    ("partial_rotary_factor", (None, 1), "expected 1: heads that turn in part are not run"),
    (
        "pretraining_tp",
        (None, 0, 1),
        "expected 1: sums in that order are not made; set it to 1, which is the same model",
    ),
)


def from_config(config: Mapping[str, Any]) -> Architecture:
    """Read an architecture from the contents of a `config.json` of transformers 4 or 5.

    Where a key is missing or null, the value is the one that transformers takes. A window of attention
    bounds the context, since attention within the window is attention to all.

    Args:
        config: the parsed file.

    Raises:
        ArchitectureError: a key is missing or of another kind, heads do not divide, or the file describes
            what this software does not run; the key is named.
    """
    fields = Fields("config.json", config, ArchitectureError)
    defaults = _DEFAULTS[_model_type(fields)]
    for key, accepted, words in _REFUSED:
        if config.get(key) not in accepted:
            raise ArchitectureError(f"config.json: {key}: found {shown(config[key])}; {words}")
    dim, n_heads = fields.whole("hidden_size"), fields.whole("num_attention_heads", most=MOST_HEADS)
    unsaid = n_heads if "num_key_value_heads" in config else defaults.get("num_key_value_heads", n_heads)
    # null means as many as heads
    n_kv_heads = fields.whole("num_key_value_heads", unsaid, most=MOST_HEADS)
    ropes = _ropes(fields)
    return Architecture(
        dim=dim,
        n_layers=fields.whole("num_hidden_layers", most=MOST_LAYERS),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        hidden_dim=fields.whole("intermediate_size"),
        vocab_size=fields.whole("vocab_size"),
        context=_context(fields, defaults),
        norm_eps=fields.positive("rms_norm_eps", 1e-6),
        rope_theta=_theta([*ropes, fields]),
        head_size=size_of_head(fields, "head_dim", dim, n_heads, n_kv_heads),
        rope_scaling=_scaling(ropes),
        tied_embeddings=fields.switch("tie_word_embeddings"),
    )


def _model_type(fields: Fields) -> str:
    model_type = str(fields.content.get("model_type"))
    if model_type not in _DEFAULTS:
        raise fields.wrong(
            "model_type", f"{' or '.join(_DEFAULTS)}: decoders of the LLaMA family alone are run"
        )
    classes = fields.content.get("architectures")
    if classes is None:
        return model_type
    if not isinstance(classes, list) or not any(str(name).lower() in _CLASSES for name in classes):
        raise fields.wrong(
            "architectures", "LlamaForCausalLM or MistralForCausalLM: a decoder with its output layer"
        )
    return model_type


def _context(fields: Fields, defaults: Mapping[str, int]) -> int:
    context = fields.whole("max_position_embeddings", defaults["max_position_embeddings"])
    usual = defaults.get("sliding_window", context)
    window = context if "sliding_window" in fields.content else usual  # null there means no window
    return min(context, fields.whole("sliding_window", window))


def _ropes(fields: Fields) -> list[Fields]:
    """What says how positions turn: `rope_parameters` since transformers 5, `rope_scaling` before."""
    ropes = []
    for key in ("rope_parameters", "rope_scaling"):
        found = fields.content.get(key)
        if found is None:
            continue
        if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
            raise fields.wrong(key, "one object for all layers")
        if found.get("partial_rotary_factor") not in (None, 1):
            raise ArchitectureError(
                f"config.json: {key}: partial_rotary_factor: found {found['partial_rotary_factor']!r}; "
                "expected 1: heads that turn in part are not run"
            )
        ropes.append(Fields(f"config.json: {key}", found, ArchitectureError))
    return ropes


def _theta(places: list[Fields]) -> float:
    """The base of the rotary embedding, which may stand in several places, but not as another there."""
    said = {
        place.file: place.positive("rope_theta")
        for place in places
        if place.content.get("rope_theta") is not None
    }
    if len(set(said.values())) > 1:
        raise ArchitectureError(
            f"config.json: rope_theta: found {_differing(said)}; expected the same wherever it stands: "
            "versions of transformers read different ones"
        )
    return next(iter(said.values()), 10_000.0)


def _scaling(ropes: list[Fields]) -> RopeScaling | None:
    """How frequencies are stretched; where two places say it, they say the same."""
    said = [_stretch(rope) for rope in ropes]
    if len(set(said)) > 1:
        words = _differing({rope.file: shown(rope.content) for rope in ropes})
        raise ArchitectureError(
            f"config.json: rope_parameters and rope_scaling differ: found {words}; expected one of them, or "
            "the same in both: versions of transformers read different ones"
        )
    return said[0] if said else None


def _differing(said: Mapping[str, object]) -> str:
    places = ((place.removeprefix("config.json: "), value) for place, value in said.items())
    return " and ".join(
        f"{value} at its top" if place == "config.json" else f"{value} in {place}" for place, value in places
    )


def _stretch(rope: Fields) -> RopeScaling | None:
    key = "rope_type" if "rope_type" in rope.content else "type"  # `type` until transformers 4.43
    kind = rope.content.get(key) or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", rope.positive("factor"))
    if kind != "llama3":
        raise rope.wrong(key, f"default, linear or llama3: other stretches are not run; {_PLAIN} without it")
    scaling = RopeScaling(
        "llama3",
        rope.positive("factor"),
        rope.positive("low_freq_factor"),
        rope.positive("high_freq_factor"),
        rope.whole("original_max_position_embeddings"),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise rope.wrong("high_freq_factor", f"a number above low_freq_factor {scaling.low_freq_factor:g}")
    return scaling
