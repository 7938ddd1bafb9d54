"""How a step becomes a CUDA graph: recorded on one stream, into one pool of memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Protocol

import torch


class Graph(Protocol):
    """A step that was recorded."""

    def replay(self) -> None:
        """Launch it."""


class Capture:
    """Records steps; their graphs share a pool of memory, which keeps one step's buffers.

    Args:
        stream: of the current device. Libraries keep a workspace for each for ever: one is for all.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._device, self._stream = stream.device, stream
        self._pool = torch.cuda.graph_pool_handle()
        self._has_room = False

    def rehearse(self, step: Callable[[], None]) -> None:
        """Take the step as it is: libraries take their workspaces now, which must not be recorded.

        Raises:
            RuntimeError: the step does not run, e.g. there is no memory for it.
        """
        here = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            step()
        here.wait_stream(self._stream)

    def record(self, step: Callable[[], None]) -> Graph:
        """The graph of a step that was rehearsed; the step is not taken.

        Raises:
            RuntimeError: it cannot be recorded, or there is no memory for that; the device can be used on.
        """
        torch.cuda.synchronize(self._device)
        if not self._has_room:
            # What torch keeps for other streams is of no use to the pool.
            torch.cuda.empty_cache()
            self._has_room = True
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            try:
                # Threads of NCCL and of the meters may call CUDA meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                step()
                graph.capture_end()
            except BaseException:
                self._give_up(graph)
                raise
        return graph

    def _give_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a recording that failed; whatever goes wrong here, the first error is the one to tell.

        torch keeps what the pool holds by then, at most one step's buffers.
        """
        with contextlib.suppress(RuntimeError):
            graph.capture_end()
        # Where that fails, some versions have not told the allocator, which would refuse to empty its cache.
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):
                end(torch.cuda.current_device(), self._pool)
