"""One rank that loads its slices: python weights_rank.py FOLDER RANK RANKS PRECISION.

It says `ready`, waits for a line, loads, and prints a JSON object. `peak_bytes`: largest resident memory,
files included, above what was resident before; `shard_bytes`: of the slices; `begin_s`, `end_s`: of the load,
in s of time.monotonic(); `cpu_s`: that it took; `read_bytes`: that it asked the system for.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from process_memory import forget_peak, of_process
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights import open_weights
from shardwatt.engine.weights.dtypes import DTYPES
from shardwatt.models import open_checkpoint, read_architecture


def main(folder: Path, rank: int, ranks: int, precision: str) -> None:
    """Load the rank's slices into memory, tensor by tensor, as an engine does."""
    dtype = DTYPES[precision]
    checkpoint = open_checkpoint(folder)
    architecture = read_architecture(checkpoint)
    model = ModelOnRank(
        *(architecture, checkpoint, precision, "cpu", rank, ranks, architecture.vocab_size, frozenset({2}))
    )
    # What torch and Python need once is not the load's: open, and convert some numbers.
    open_weights(model)
    torch.ones(2**20, dtype=torch.bfloat16).to(torch.float32)
    forget_peak()
    before, read_before = of_process("status", "VmRSS"), of_process("io", "rchar")
    print("ready", flush=True)
    sys.stdin.readline()

    begin_s, cpu_begin_s = time.monotonic(), time.process_time()
    weights, loaded = open_weights(model), dict[str, Tensor]()
    for name in weights.names:
        loaded[name] = torch.empty(weights.shape(name), dtype=dtype)
        weights.copy_to(name, loaded[name])
    report = {
        "begin_s": begin_s,
        "end_s": time.monotonic(),
        "cpu_s": time.process_time() - cpu_begin_s,
        "peak_bytes": (of_process("status", "VmHWM") - before) * 1024,
        "shard_bytes": sum(tensor.nbytes for tensor in loaded.values()),
        "read_bytes": of_process("io", "rchar") - read_before,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
