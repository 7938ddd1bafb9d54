"""One rank that loads an engine: python engine_load_rank.py ENGINE FOLDER RANK RANKS PRECISION ROWS.

The other ranks are only said to be there: loading asks nothing of them. It prints a JSON object.
`peak_bytes`: largest resident memory, files included, while the engine loads and makes room for ROWS rows
of a few positions, above what was resident before; `shard_bytes`: of the rank's weights; `modules_bytes`:
resident memory of the modules that the engine alone imports, which is in neither; `read_bytes`: what loading
asked the system for; `wall_s`, `cpu_s`: time that it took.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from fairscale.nn.model_parallel.initialize import initialize_model_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from process_memory import forget_peak, of_process
from shardwatt.engine.load import LOADERS, load_engine
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.engine.weights import open_weights
from shardwatt.engine.weights.dtypes import DTYPES
from shardwatt.models import open_checkpoint, read_architecture

_POSITIONS = 16


def main(engine: str, folder: Path, rank: int, ranks: int, precision: str, rows: int) -> None:
    """Load the engine as a cell does, by its name, and let it make room."""
    checkpoint = open_checkpoint(folder)
    architecture = read_architecture(checkpoint)
    model = ModelOnRank(
        *(architecture, checkpoint, precision, "cpu", rank, ranks, architecture.vocab_size, frozenset({2})),
        rows=rows,
    )
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    initialize_model_parallel(
        ranks, model_parallel_backend="fake", pipeline_backend="fake", ddp_backend="fake"
    )
    # What torch and Python need once is not the load's: open, and convert some numbers.
    weights = open_weights(model)
    numbers = sum(torch.Size(weights.shape(name)).numel() for name in weights.names)
    torch.ones(2**20, dtype=torch.bfloat16).to(torch.float32)
    without_modules = of_process("status", "VmRSS")
    importlib.import_module(LOADERS[engine])
    if engine == "hf":
        importlib.import_module("shardwatt.engine.hf.generate")  # transformers
    forget_peak()
    before, read_before = of_process("status", "VmRSS"), of_process("io", "rchar")

    begin_s, cpu_begin_s = time.monotonic(), time.process_time()
    loaded = load_engine(engine, model)
    report = {
        "wall_s": time.monotonic() - begin_s,
        "cpu_s": time.process_time() - cpu_begin_s,
        "read_bytes": of_process("io", "rchar") - read_before,
    }
    loaded.allocate(rows, _POSITIONS)
    report |= {
        "peak_bytes": (of_process("status", "VmHWM") - before) * 1024,
        "shard_bytes": numbers * DTYPES[precision].itemsize,
        "modules_bytes": (before - without_modules) * 1024,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
