"""What the simulated host engine remembers between calls of `dcgmi`: groups, jobs, watches and samples."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Memory:
    """All but the samples; GPUs by DCGM's ids, times by CLOCK_MONOTONIC in s.

    Attributes:
        groups: name and GPU ids by group id.
        jobs: GPU ids, start and stop by job id, with the wall clock's time less the monotonic one.
        watches: time in ms between samples, and time in s for which they are kept, by GPU id.
        next_group: 0 and 1 are groups of all GPUs and switches.
    """

    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    watches: dict[str, dict[str, float]] = field(default_factory=dict)
    next_group: int = 2


@dataclass(frozen=True)
class Sample:
    """One look at a GPU."""

    t_s: float
    counter_mj: int
    power_w: float
    sm_percent: int
    memory_percent: int
    memory_bytes: int


def folder() -> Path:
    """The memory of this host's engine."""
    path = Path(os.environ["SIMULATED_DCGM_STATE"]) / socket.gethostname()
    path.mkdir(parents=True, exist_ok=True)
    return path


def load() -> Memory:
    path = folder() / "memory.json"
    return Memory(**json.loads(path.read_text())) if path.exists() else Memory()


@contextmanager
def changed() -> Iterator[Memory]:
    """The memory, written back when done; one process at a time."""
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        memory = load()
        yield memory
        written = folder() / "memory.json.written"
        written.write_text(json.dumps(vars(memory)))
        written.rename(folder() / "memory.json")


def samples_path(gpu: int) -> Path:
    return folder() / f"samples-{gpu}.txt"


def kept(gpu: int) -> list[Sample]:
    """The samples of a GPU that are not older than its watch keeps them."""
    path = samples_path(gpu)
    watch = load().watches.get(str(gpu))
    if watch is None or not path.exists():
        return []
    oldest_s = time.monotonic() - watch["keep_s"]
    samples = []
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the last one may be half written
            t_s, counter, power, *others = line.split()
            samples.append(Sample(float(t_s), int(counter), float(power), *map(int, others)))
    return [sample for sample in samples if sample.t_s >= oldest_s]
