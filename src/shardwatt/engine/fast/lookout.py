"""How the host sees the tokens of a step without making the device wait: on CUDA, one step late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Lookout(Generic[T]):
    """Tokens on their way to the host, each with whom it belongs to.

    Args:
        rows: most tokens of a step.
        device: where they are drawn. On CUDA they are copied into pinned memory behind the step that drew
            them.
        late: steps after which they are handed out: 0 or 1.
    """

    def __init__(self, rows: int, device: torch.device, late: int) -> None:
        self._late = late
        self._sent: list[tuple[list[T], Tensor, torch.cuda.Event | None]] = []
        self._on_cuda = device.type == "cuda"
        self._buffers = [
            torch.empty(rows, dtype=torch.long, pin_memory=self._on_cuda) for _ in range(1 + late)
        ]

    def send(self, owners: Sequence[T], tokens: Tensor) -> None:
        """Start the way of tokens [R], one for each owner; no more than `late` may be on their way."""
        self._buffers.append(self._buffers.pop(0))
        buffer = self._buffers[-1][: len(tokens)]
        buffer.copy_(tokens, non_blocking=True)
        event = None
        if self._on_cuda:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._sent.append((list(owners), buffer, event))

    def seen(self, *, all_of_them: bool = False) -> list[tuple[T, int]]:
        """Owners and their tokens that have come; all of them: wait also for those of the last step."""
        come: list[tuple[T, int]] = []
        while len(self._sent) > (0 if all_of_them else self._late):
            owners, tokens, event = self._sent.pop(0)
            if event is not None:
                event.synchronize()
            come.extend(zip(owners, tokens.tolist(), strict=True))
        return come
