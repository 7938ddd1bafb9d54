"""Types of numbers: those that an engine calculates in, and those that weights may be saved in."""

from __future__ import annotations

import torch

#: The axis `precision`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Under the names of the safetensors format (its documentation, "Format").
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
