"""The project's sampler beside what a benchmark does, on the GPUs that its environment shows."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from shardwatt.power.sampling.files import meter_path


def sampler_words(folder: Path, gpus: int) -> list[str]:
    """The words that start it as node 0's, for so many GPUs."""
    gpu_type = json.dumps({"kind": "cuda", "per_node": gpus, "memory_gib": 80})
    return [
        *(sys.executable, "-m", "shardwatt.power.sampling.sampler", "--gpu-type", gpu_type),
        *("--ranks-per-node", str(gpus), "--folder", str(folder), "--node-index", "0"),
    ]


@contextlib.contextmanager
def sampling(folder: Path, gpus: int, environment: Mapping[str, str]) -> Iterator[None]:
    """Run it while this is entered, from its first sample on."""
    sampler = subprocess.Popen(sampler_words(folder, gpus), env=environment, stdin=subprocess.PIPE)
    while not meter_path(folder, 0).exists():
        if sampler.poll() is not None:
            sys.exit("the sampler ended; see above")
        time.sleep(0.02)
    try:
        yield
    finally:
        assert sampler.stdin is not None
        sampler.stdin.close()
        if sampler.wait() != 0:
            sys.exit("the sampler failed; see above")
