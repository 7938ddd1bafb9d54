"""An engine of one device that answers in turns: see turns.py; started by gpu_engines.py, not by hand.

    python benchmarks/gpu_worker.py DEVICE

The engine is loaded and driven as a cell does it: by its name, through the protocol.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from prompt_sets import batch_of
from repeated_layers import on_rank
from shardwatt.engine.fast.capture import Capture
from shardwatt.engine.load import load_engine
from shardwatt.engine.parallel import join
from shardwatt.engine.protocol import BatchRequest, Engine, Sampling
from shardwatt.engine.sampling import next_tokens, row_keys
from shardwatt.errors import DoesNotFit
from shardwatt.units import GIB
from turns import Message, Worker, serve, worker

#: The published sampling.
SAMPLING = Sampling(temperature=0.8, top_p=0.95, seed=1)

#: New tokens of the warm-up, which loads kernels and captures CUDA graphs.
WARM_UP = 4

#: Most bytes that are read or copied to measure the bandwidth: many times the last cache of any GPU.
_BUFFER_BYTES = 4 * 2**30
_PASSES = 10
_WIDTH = 4096

#: Standard deviation of the logits that tokens are drawn from: a nucleus of tens of tokens.
_LOGITS = 4.0


@contextlib.contextmanager
def on_device(device: str) -> Iterator[Worker]:
    """A process that has a device's memory for itself while this is entered."""
    with worker(device, [sys.executable, __file__, device], {}) as alone:
        yield alone


class _OnDevice:
    """What this process has loaded, and what it does with it."""

    engine: Engine

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    def describe(self) -> Message:
        """Name of the device and its memory in GiB."""
        if self.device.type == "cuda":
            memory = torch.cuda.mem_get_info(self.device)[1]
            return {"name": torch.cuda.get_device_name(self.device), "memory_gib": memory / GIB}
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return {"name": "the processor", "memory_gib": memory / GIB}

    def load(self, engine: str, folder: str, precision: str) -> Message:
        """Load an engine, or say why it does not fit."""
        try:
            self.engine = load_engine(engine, on_rank(Path(folder), precision, str(self.device)))
        except DoesNotFit as failure:
            return {"does_not_fit": str(failure)}
        return {}

    def answer(self, rows: int, prompt: int, new: int) -> Message:
        """Answer a batch after a warm-up with fewer new tokens; the peak memory is that of both."""
        try:
            self.engine.allocate(rows, prompt + new)
            self.engine.forget_peak_memory()
            for index, count in ((-1, WARM_UP), (0, new)):
                request = BatchRequest(**batch_of(rows, prompt, count) | {"index": index})
                result = self.engine.generate(request, SAMPLING, lambda tokens: None)
        except DoesNotFit as failure:
            return {"does_not_fit": str(failure)}
        phases = [asdict(phase) for phase in result.phases]
        return {"phases": phases, "peak_gib": self.engine.peak_memory_gib()}

    def notes(self) -> Message:
        """How the engine ran, in its own words."""
        return dict(self.engine.notes())

    def bandwidth(self) -> Message:
        """Bandwidth of each kernel's median and fastest pass, in 1e9 bytes/s; a copy counts both its sides.

        The read bandwidth is the median of the kernel that reads fastest.
        """
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else 4 * 2**30
        size = min(_BUFFER_BYTES, free // 4) // (4 * _WIDTH) * (4 * _WIDTH)
        numbers = torch.ones(size // 4, device=self.device)
        other, matrix = torch.empty_like(numbers), numbers.view(-1, _WIDTH)
        vector = torch.ones(_WIDTH, device=self.device)
        reading: dict[str, Callable[[], object]] = {
            "sum": numbers.sum,
            "largest": numbers.amax,
            "matrix times vector": lambda: matrix.mv(vector),
        }
        rates = {name: self._rates(size, run) for name, run in reading.items()}
        copying = {"copy": self._rates(2 * size, lambda: other.copy_(numbers))}
        return {"read_gb_s": max(rate["median"] for rate in rates.values()), "kernels": rates | copying}

    def drawing(self, rows: int, vocab_size: int) -> Message:
        """Median time in ms in which a step draws tokens of so many rows: on CUDA from a graph."""
        logits = _LOGITS * torch.randn(rows, vocab_size, device=self.device)
        keys = row_keys(SAMPLING.seed, [str(row) for row in range(rows)], self.device)
        positions = torch.arange(rows, device=self.device)

        def draw() -> None:
            next_tokens(logits, SAMPLING, keys, positions)

        run: Callable[[], object] = draw
        if self.device.type == "cuda":
            capture = Capture(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
            capture.rehearse(draw)
            run = capture.record(draw).replay
        return {"ms": 1e3 * statistics.median(self._times_s(run))}

    def _rates(self, moved_bytes: int, run: Callable[[], object]) -> dict[str, float]:
        times_s = self._times_s(run)
        return {
            "median": moved_bytes / 1e9 / statistics.median(times_s),
            "fastest": moved_bytes / 1e9 / min(times_s),
        }

    def _times_s(self, run: Callable[[], object]) -> list[float]:
        times_s = []
        for _ in range(_PASSES):
            begin_s = self._now_s()
            run()
            times_s.append(self._now_s() - begin_s)
        return times_s

    def _now_s(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _main(device: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        group = join(
            Path(folder), rank=0, count=1, device=device, start_timeout_s=120, collective_timeout_s=120
        )
        here = _OnDevice(device)
        tasks = (here.describe, here.load, here.answer, here.notes, here.bandwidth, here.drawing)
        serve({task.__name__: task for task in tasks})
        group.leave()


if __name__ == "__main__":
    _main(sys.argv[1])
