"""What every engine can say of the device that it runs on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch

from shardwatt.units import GIB


class OnDevice:
    """An engine's device: part of the protocol `Engine`, the same for all that run in this process."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def synchronize(self) -> None:
        """Wait until the device has finished all that was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def now_s(self) -> float:
        """`time.monotonic()` in s, once the device has finished."""
        self.synchronize()
        return time.monotonic()

    def forget_peak_memory(self) -> None:
        """Let the peak count from now on; for processors where the kernel lets a process do so."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        # proc(5): 5 resets the peak resident set size.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak_memory_gib(self) -> float:
        """Largest memory so far in GiB: allocated by torch on CUDA, resident on CPUs (VmHWM of Linux)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / GIB
        # getrusage's ru_maxrss would also count what this process was before it became Python.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        lines = dict(line.split(":", 1) for line in status.splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / GIB
