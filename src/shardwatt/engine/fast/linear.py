"""Matrix products with weights, laid out once for the kernels that read them again and again."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Linear(Protocol):
    """y = x W^T."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [N, inputs] to [N, outputs]."""

    def suit(self, rows: int) -> None:
        """Make ready for steps of so many rows."""


#: Rows of x for which oneDNN chooses the layout. The one for many rows is as good for eight, and in 16 bits
#: for one; in fp32 the layout for one reads up to 1.6 times faster (two cores with avx512, torch 2.13).
_MANY = 64


def prepacks(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether weights get oneDNN's own layout: on processors, in the precisions that it has kernels for."""
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def linear(weight: Tensor) -> Linear:
    """The product with a weight [outputs, inputs]; let go of the weight afterwards, a copy may be kept."""
    return Packed(weight) if prepacks(weight.dtype, weight.device) else Plain(weight)


class Plain:
    """The product as torch has it, with a weight [outputs, inputs]."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight)

    def suit(self, rows: int) -> None:
        pass


class Packed:
    """The product with a weight [outputs, inputs] in oneDNN's own layout; the weight itself is not kept."""

    def __init__(self, weight: Tensor) -> None:
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._rows = _MANY
        self._packed = self._laid_out(weight)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self._multiply(x, self._packed, None, "none", [], "")
        return product

    def suit(self, rows: int) -> None:
        wanted = 1 if rows == 1 and self._packed.dtype == torch.float32 else _MANY
        if wanted != self._rows:
            self._rows = wanted
            self._packed = self._laid_out(self._packed.to_dense())

    def _laid_out(self, weight: Tensor) -> Tensor:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, self._rows)
        return packed
