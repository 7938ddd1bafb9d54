"""RMSNorm (arXiv 1910.07467) in as few operations as each device takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: x / rms(x) x weight: x [N, dim] to [N, dim].
Norm = Callable[[Tensor], Tensor]


def norm(weight: Tensor, epsilon: float) -> Norm:
    """The norm with a weight, [dim]; in float32, rounded to the weight's precision at the end.

    torch's own is one kernel on GPUs, and ten operations on processors. There
    x / sqrt(|x|^2 / dim + epsilon) = x sqrt(dim) / hypot(|x|, sqrt(dim epsilon)) takes half as long.
    """
    if weight.device.type != "cpu":
        return lambda x: torch.rms_norm(x, weight.shape, weight, epsilon)
    root = math.sqrt(len(weight))
    gain, least = weight.float() * root, torch.tensor(root * math.sqrt(epsilon))

    def on_processor(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)  # [N, 1]
        return torch.div(x, length.hypot_(least)).mul_(gain).to(weight.dtype)

    return on_processor
