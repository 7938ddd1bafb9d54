"""A model's shape in the words of either layout: the contents of its params.json or config.json."""

from __future__ import annotations

from typing import Any

import torch

from shardwatt.architectures import Architecture


def params_of(architecture: Architecture) -> dict[str, Any]:
    """What `shardwatt.architectures.from_params` reads as this shape, in Meta's words and a few more.

    A linear stretch of rotary frequencies has no words there, and is left out.
    """
    params: dict[str, Any] = {
        "dim": architecture.dim,
        "n_layers": architecture.n_layers,
        "n_heads": architecture.n_heads,
        "n_kv_heads": architecture.n_kv_heads,
        "hidden_dim": architecture.hidden_dim,
        "vocab_size": architecture.vocab_size,
        "max_seq_len": architecture.context,
        "norm_eps": architecture.norm_eps,
        "rope_theta": architecture.rope_theta,
    }
    if architecture.head_size is not None:
        params["head_dim"] = architecture.head_size
    if architecture.tied_embeddings:
        params["tied_embeddings"] = True
    scaling = architecture.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        params["use_scaled_rope"] = True
        params["rope_scaling_factor"] = scaling.factor
        params["rope_high_freq_factor"] = scaling.high_freq_factor
    return params


def config_of(architecture: Architecture, dtype: torch.dtype) -> dict[str, Any]:
    """What `shardwatt.hfconfig.from_config` and transformers read as this shape; of the tokenizer, nothing.

    Args:
        architecture: the shape.
        dtype: that the weights are saved in.
    """
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": architecture.dim,
        "intermediate_size": architecture.hidden_dim,
        "num_hidden_layers": architecture.n_layers,
        "num_attention_heads": architecture.n_heads,
        "num_key_value_heads": architecture.n_kv_heads,
        "head_dim": architecture.head_dim,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.context,
        "rms_norm_eps": architecture.norm_eps,
        "rope_theta": architecture.rope_theta,
        "tie_word_embeddings": architecture.tied_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    scaling = architecture.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": scaling.factor}
    elif scaling is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    return config
