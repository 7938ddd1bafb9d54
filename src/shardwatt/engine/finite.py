"""Whether the logits of a batch were numbers: seen on the device, told to the host once a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shardwatt.engine.weights.dtypes import DTYPES
from shardwatt.errors import CellFailure, Reason

_PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


class Finite:
    """The sum of a batch's logits: one that is infinite or none (NaN) stays in it.

    It is added to in place, as CUDA graphs want it, and the host does not wait for that. Finite logits are of
    the order of 10, and float32 holds 3e38: no number of them leaves it.

    Args:
        device: of the logits.
        dtype: in which the model is calculated.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._precision = _PRECISIONS[dtype]
        self._sum = torch.zeros((), device=device)

    def begin(self) -> None:
        """Another batch."""
        self._sum.zero_()

    def add(self, logits: Tensor) -> None:
        """Take in a step's logits, float32 of any shape."""
        self._sum += logits.sum()

    def check(self) -> None:
        """Wait for the device, and see whether all were finite.

        Raises:
            CellFailure: NOT_FINITE.
        """
        if not math.isfinite(self._sum.item()):
            raise CellFailure(
                Reason.NOT_FINITE,
                f"precision {self._precision}: the model's logits are infinite or no numbers, so no token "
                "can be drawn; fp16 holds nothing above 65504: use bf16 or fp32; where those fail too, see "
                "whether the weights are finite: `shardwatt model inspect --deep`",
            )
