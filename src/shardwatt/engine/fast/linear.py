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


def linear(weight: Tensor, rows: int) -> Linear:
    """The product with a weight [outputs, inputs], made ready for steps of so many rows.

    Let go of the weight afterwards: a copy may be kept.
    """
    return Packed(weight, rows) if prepacks(weight.dtype, weight.device) else Plain(weight)


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

    _packed: Tensor

    def __init__(self, weight: Tensor, rows: int) -> None:
        self._multiply = torch.ops.mkldnn._linear_pointwise.default
        self._rows = _suited(rows, weight.dtype)
        self._lay_out(weight)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self._multiply(x, self._packed, None, "none", [], "")
        return product

    def suit(self, rows: int) -> None:
        wanted = _suited(rows, self._packed.dtype)
        if wanted != self._rows:
            self._rows = wanted
            weight = self._packed.to_dense()
            del self._packed  # the old layout goes before the new one comes
            self._lay_out(weight)

    def _lay_out(self, weight: Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, self._rows)


def _suited(rows: int, dtype: torch.dtype) -> int:
    """The rows of x that oneDNN is told, for steps of so many."""
    return 1 if rows == 1 and dtype == torch.float32 else _MANY
