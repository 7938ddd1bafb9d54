"""What the ranks of a tensor-parallel model tell each other within a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel.initialize import get_model_parallel_group
from torch import Tensor

#: Gather tensors of one size into one that holds them all, one after another.
Gather = Callable[..., object]


class Peers:
    """The ranks that hold the other slices; with one rank nothing is sent.

    Args:
        ranks: how many there are; above one, FairScale's model-parallel group must be there.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self._group = get_model_parallel_group() if ranks > 1 else None
        nccl = self._group is not None and dist.get_backend(self._group) == "nccl"
        # NCCL would copy each part out of such a tensor into the list.
        self._gather = gather_whole() if nccl else None

    def sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place."""
        if self._group is not None:
            dist.all_reduce(x, group=self._group)
        return x

    def join(self, x: Tensor) -> Tensor:
        """Columns of all ranks side by side: [N, width] to [N, ranks x width]."""
        if self._group is None:
            return x
        if self._gather is not None:
            whole = x.new_empty(self.ranks * len(x), x.shape[1])
            self._gather(whole, x.contiguous(), group=self._group)
            return whole.view(self.ranks, *x.shape).transpose(0, 1).flatten(1)
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.ranks)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return torch.cat(parts, dim=1)


def gather_whole() -> Gather:
    """torch's own; its older name is deprecated since there is the newer one."""
    newer: Gather | None = getattr(dist, "all_gather_single", None)
    return newer or dist.all_gather_into_tensor
