"""How the host sees the tokens of a step without making the device wait: on CUDA, one step late."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from shardwatt.errors import CellFailure, Reason

#: Time in s between two looks at a step that has not ended: at first, and later at most; far below a step's.
_FIRST_LOOK_S, _LAST_LOOK_S = 5e-5, 1e-3

T = TypeVar("T")


class Lookout(Generic[T]):
    """Tokens on their way to the host, each with whom it belongs to.

    Args:
        rows: most tokens of a step.
        device: where they are drawn. On CUDA they are copied into pinned memory behind the step that drew
            them.
        late: steps after which they are handed out: 0 or 1.
        timeout_s: longest time in s that a step may take, as far as it waits for other ranks; None: it is
            waited for without an end.
    """

    def __init__(self, rows: int, device: torch.device, late: int, timeout_s: float | None = None) -> None:
        self._late, self._timeout_s = late, timeout_s
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
        """Owners and their tokens that have come; all of them: wait also for those of the last step.

        Raises:
            CellFailure: COLLECTIVE_TIMEOUT.
        """
        come: list[tuple[T, int]] = []
        while len(self._sent) > (0 if all_of_them else self._late):
            owners, tokens, event = self._sent.pop(0)
            if event is not None:
                self._await(event)
            come.extend(zip(owners, tokens.tolist(), strict=True))
        return come

    def _await(self, event: torch.cuda.Event) -> None:
        if self._timeout_s is None:
            event.synchronize()
            return
        # Of collectives within CUDA graphs NCCL's own watch knows nothing.
        deadline_s, pause_s = time.monotonic() + self._timeout_s, _FIRST_LOOK_S
        while not event.query():  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline_s:
                raise CellFailure(
                    Reason.COLLECTIVE_TIMEOUT,
                    f"another rank did not answer in time (a step has not ended within {self._timeout_s:g} "
                    "s); see the other ranks' logs, or raise the site's collective_timeout_s",
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_LOOK_S)
