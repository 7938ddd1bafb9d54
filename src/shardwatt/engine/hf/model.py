"""transformers' `LlamaForCausalLM` with the weights of any checkpoint, whole or split over the ranks.

The model is built empty and filled through `shardwatt.engine.weights`, not by `from_pretrained`: so it loads
every layout, strictly, in the memory of a shard and straight onto the device. Mistral-shaped models are
Llamas here: their context is cut to the sliding window, within which both compute the same.
"""

from __future__ import annotations

import torch
from fairscale.nn.model_parallel.initialize import get_model_parallel_group
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.distributed import DistributedConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from shardwatt.architectures import Architecture
from shardwatt.engine.failures import torch_failures
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights import open_weights
from shardwatt.engine.weights.dtypes import DTYPES
from shardwatt.engine.weights.slices import Slice
from shardwatt.errors import CellFailure, Reason

#: Names of transformers' modules, within a layer or outside all, and Meta's for the same.
PUBLISHED = {
    "embed_tokens": "tok_embeddings",
    "norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}


class _OneMesh:
    """What transformers asks for the mesh of each kind of parallelism: tensors' is the only one here.

    Its own would go through the default group of the ranks, which is gloo's also between GPUs.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self.mesh = mesh

    def get_mesh(self, dims: str | tuple[str, ...]) -> DeviceMesh:
        return self.mesh


@torch_failures()
@torch.inference_mode()
def load_causal_lm(model: ModelOnRank) -> LlamaForCausalLM:
    """Build this rank's part of a model and fill it.

    Above one rank it is split by transformers' own plan; its collectives go through FairScale's
    model-parallel group, which is NCCL's between GPUs and gloo's between processors.

    Raises:
        CellFailure: CONFIGURATION, transformers does not split or does not take this shape; BAD_CHECKPOINT,
            BAD_TOKENIZER, HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    _check_heads(model)
    config = llama_config(model.architecture)
    with torch.device("meta"):
        causal_lm = LlamaForCausalLM(config)
    if model.ranks > 1:
        mesh = DeviceMesh.from_group(
            get_model_parallel_group(), torch.device(model.device).type, mesh_dim_names=("tp",)
        )
        causal_lm = causal_lm.maybe_distribute_model(
            causal_lm, DistributedConfig(tp_size=model.ranks), _OneMesh(mesh)
        )
    _fill(causal_lm, model)
    # The frequencies are computed, not loaded; on the meta device there are none.
    causal_lm.model.rotary_emb = LlamaRotaryEmbedding(config).to(model.device)
    return causal_lm.eval()


def llama_config(architecture: Architecture) -> LlamaConfig:
    """The config.json of transformers that describes an architecture.

    Raises:
        CellFailure: CONFIGURATION, transformers does not take this shape.
    """
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": architecture.rope_theta}
    scaling = architecture.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope["low_freq_factor"] = scaling.low_freq_factor
            rope["high_freq_factor"] = scaling.high_freq_factor
            rope["original_max_position_embeddings"] = scaling.original_context
    try:
        return LlamaConfig(
            vocab_size=architecture.vocab_size,
            hidden_size=architecture.dim,
            intermediate_size=architecture.hidden_dim,
            num_hidden_layers=architecture.n_layers,
            num_attention_heads=architecture.n_heads,
            num_key_value_heads=architecture.n_kv_heads,
            head_dim=architecture.head_dim,
            max_position_embeddings=architecture.context,
            rms_norm_eps=architecture.norm_eps,
            rope_parameters=rope,
            # Its splitting wants both weights: `_fill` ties them.
            tie_word_embeddings=False,
        )
    except (ValueError, StrictDataclassError) as problem:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"engine 'hf': transformers takes no Llama of this shape: {_last_line(problem)}; "
            "use engine reference or fast",
        ) from problem


def _check_heads(model: ModelOnRank) -> None:
    heads = model.architecture.n_kv_heads
    if heads % model.ranks == 0:
        return
    counts = [str(n) for n in model.architecture.allowed_shards() if heads % n == 0]
    raise CellFailure(
        Reason.CONFIGURATION,
        f"engine 'hf': transformers' tensor parallelism does not split {heads} key and value heads over "
        f"{model.ranks} ranks, and holds none twice; use shards: {' or '.join(counts)}, "
        "or engine reference or fast",
    )


def _fill(causal_lm: LlamaForCausalLM, model: ModelOnRank) -> None:
    """Give every parameter, or this rank's part of it, memory on the device and its values."""
    weights, dtype = open_weights(model), DTYPES[model.precision]
    # One for all heads: small objects would settle in what each left, and the next would not fit there.
    spare = torch.empty(
        (model.architecture.head_dim, model.architecture.dim), dtype=dtype, device=model.device
    )
    for path, module in causal_lm.named_modules():
        for kind, empty in list(module.named_parameters(recurse=False)):
            name = f"{published_name(path)}.{kind}"
            if name == "output.weight" and model.architecture.tied_embeddings:
                module.register_parameter(kind, causal_lm.model.embed_tokens.weight)
                continue
            local = empty.to_local() if isinstance(empty, DTensor) else empty
            values = torch.empty(local.shape, dtype=dtype, device=model.device)
            weights.copy_to(name, values, _part(empty, model))
            if path.endswith(("q_proj", "k_proj")):
                split_halves(values, spare)
            filled = _as_shard(values, empty) if isinstance(empty, DTensor) else values
            module.register_parameter(kind, nn.Parameter(filled, requires_grad=False))


def _part(empty: Tensor, model: ModelOnRank) -> Slice:
    """What transformers wants of a tensor on this rank: where it splits at all, it splits the embedding by
    vocabulary, and the others as `RankWeights` does."""
    parts = [range(size) for size in empty.shape]
    if isinstance(empty, DTensor):
        (placement,) = empty.placements
        if isinstance(placement, Shard):
            size = len(parts[placement.dim]) // model.ranks
            parts[placement.dim] = range(model.rank * size, (model.rank + 1) * size)
    return Slice(parts[0] if len(parts) == 2 else range(1), parts[-1])


def _as_shard(values: Tensor, empty: DTensor) -> DTensor:
    return DTensor.from_local(
        values, empty.device_mesh, empty.placements, run_check=False, shape=empty.shape, stride=empty.stride()
    )


def split_halves(weight: Tensor, spare: Tensor) -> None:
    """Put rows of wq or wk, [heads x D, dim], from Meta's rotary order into transformers': of the pairs
    (2j, 2j + 1) of each head all first ones, then all second ones. In place, head by head.

    Args:
        weight: whose rows are moved.
        spare: room for a head's rows, [D, dim].
    """
    halves = spare.view(2, -1, weight.shape[1])  # [2, D / 2, dim]
    for head in weight.view(-1, *spare.shape):
        halves.copy_(head.view(-1, 2, weight.shape[1]).transpose(0, 1))
        head.copy_(spare)


def published_name(path: str) -> str:
    """Meta's name of a module: layers.0.attention.wq for model.layers.0.self_attn.q_proj."""
    inner = path.removeprefix("model.")
    if inner.startswith("layers."):
        _, number, rest = inner.split(".", 2)
        return f"layers.{number}.{PUBLISHED[rest]}"
    return PUBLISHED[inner]


def _last_line(problem: Exception) -> str:
    return str(problem).strip().rpartition("\n")[2].strip()
