"""Rotary embedding (arXiv 2104.09864): the angle by which each pair of a head turns at each position.

Letters in shapes: T positions, D size of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shardwatt.architectures import Architecture, RopeScaling


def rotations(architecture: Architecture, positions: int) -> Tensor:
    """exp(i p f_j) for position p and pair j of a head, on the processor.

    The frequencies, the angles and their cosines are float32, as in the published code and in transformers:
    at far positions a wider type would turn by visibly other angles than those the weights were trained with.

    Args:
        architecture: its head size, `rope_theta` and `rope_scaling` say the frequencies.
        positions: T.

    Returns:
        [T, D / 2], complex64, for Meta's order: pair j is the neighbours 2j and 2j + 1.
    """
    angles = torch.outer(torch.arange(positions).float(), frequencies(architecture))  # [T, D / 2]
    # Not torch.polar, whose cosines differ in the last bit from these, which are those of transformers.
    return torch.complex(angles.cos(), angles.sin())


def frequencies(architecture: Architecture) -> Tensor:
    """f_j = theta^(-2j/D) in radians a position, stretched by `rope_scaling`; [D / 2], float32."""
    exponents = torch.arange(0, architecture.head_dim, 2).float() / architecture.head_dim
    plain = 1.0 / architecture.rope_theta**exponents  # [D / 2]
    scaling = architecture.rope_scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = _kept_share(plain, scaling)
    return (1 - kept) * plain / scaling.factor + kept * plain


def _kept_share(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """How much of each frequency Llama 3.1 leaves as it is, [D / 2].

    All of it above `high_freq_factor` turns over the original context, nothing below `low_freq_factor` turns,
    and linear in the turns between (`rope_scaling` of the config.json that Llama 3.1 ships with).
    """
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_context / wavelengths
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return share.clamp(0.0, 1.0)
