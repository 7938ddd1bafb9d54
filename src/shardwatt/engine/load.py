"""From an engine's name to a loaded engine: the next inference loop is a file and a line here."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import torch

from shardwatt.engine.protocol import Engine, ModelOnRank
from shardwatt.engines import BF16_CAPABILITY
from shardwatt.errors import CellFailure, Reason, suggestion

#: What a module of an engine offers under the name `load`.
Loader = Callable[[ModelOnRank], Engine]

#: The module of each of `shardwatt.engines.MODEL_ENGINES`, imported when it is asked for.
LOADERS: dict[str, str] = {
    "reference": "shardwatt.engine.reference",
    "reference-v2": "shardwatt.engine.reference_v2",
    "fast": "shardwatt.engine.fast.plain",
    "fast-drop": "shardwatt.engine.fast.drop",
    "fast-refill": "shardwatt.engine.fast.refill",
    "hf": "shardwatt.engine.hf",
}


def load_engine(name: str, model: ModelOnRank) -> Engine:
    """Load this rank's part of a model.

    Raises:
        CellFailure: CONFIGURATION, there is no such engine, the model does not split so, or the device does
            not calculate in this precision, or is told not to; BAD_CHECKPOINT, BAD_TOKENIZER, HOST_OOM.
        DoesNotFit: the weights alone are too large for the device.
    """
    module = LOADERS.get(name)
    if module is None:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"unknown engine '{name}'{suggestion(name, LOADERS)}; known: {', '.join(LOADERS)}",
        )
    allowed = model.architecture.allowed_shards()
    if model.ranks not in allowed:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"the model does not split over {model.ranks} ranks; use one of {', '.join(map(str, allowed))}",
        )
    _check_precision(model)
    loader: Loader = importlib.import_module(module).load
    return loader(model)


def _check_precision(model: ModelOnRank) -> None:
    # An environment may let fp32 be TF32 (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE, set in NVIDIA's containers).
    torch.set_float32_matmul_precision("highest")
    # This one is read by NVIDIA's libraries themselves, whatever torch asks of them.
    override = os.environ.get("NVIDIA_TF32_OVERRIDE", "0")
    if model.precision == "fp32" and model.device.startswith("cuda") and override != "0":
        raise CellFailure(
            Reason.CONFIGURATION,
            f"precision fp32: NVIDIA_TF32_OVERRIDE={override} would make TF32 of it; unset it in the GPU "
            "type's environment",
        )
    if model.precision != "bf16" or not model.device.startswith("cuda"):
        return
    capability = torch.cuda.get_device_capability(model.device)
    if capability < BF16_CAPABILITY:
        raise CellFailure(
            Reason.CONFIGURATION,
            f"precision bf16: {torch.cuda.get_device_name(model.device)} has compute capability "
            f"{capability[0]}.{capability[1]} and no bfloat16 arithmetic, which needs 8.0; use fp16 or fp32",
        )
