"""How fast this machine reads its memory: `python benchmarks/read_bandwidth.py`.

A decode step at small batches reads every weight once: this is the limit that it runs into. A buffer much
larger than the last cache is read by several kernels with the threads that an engine has; the fastest pass
of the fastest kernel counts. Other benchmarks ask for it between their runs (`bandwidth`).
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import torch

from measuring import machine, positive, spread, table
from turns import Message, Worker, serve, worker

#: Bytes that are read in a pass: many times the last cache of any processor of today.
BUFFER_BYTES = 2**30
_PASSES = 3
_WIDTH = 4096


@contextlib.contextmanager
def bandwidth(threads: int) -> Iterator[Worker]:
    """A process that measures with so many threads when it is asked to `read`: `gb_s`, in 1e9 bytes/s."""
    words = [sys.executable, __file__, "--turns"]
    with worker("read_bandwidth", words, {"OMP_NUM_THREADS": str(threads)}) as reader:
        yield reader


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=positive, default=9, help="times it is measured (default: 9)")
    options.add_argument("--threads", type=positive, default=2, help="threads that read (default: 2)")
    options.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.turns:
        serve({"read": measure})
        return
    with bandwidth(given.threads) as reader:
        rounds = [reader.ask("read") for _ in range(given.rounds)]
    print(f"{given.threads} threads, {given.rounds} rounds; GB/s (1e9 bytes), median (least to most).")
    print(machine("torch"), end="\n\n")
    rows = [[name, spread([one["kernels"][name] for one in rounds], 1)] for name in rounds[0]["kernels"]]
    rows.append(["the best of a round", spread([one["gb_s"] for one in rounds], 1)])
    print(table(["kernel", "GB/s"], rows))


def measure() -> Message:
    """Read a buffer some times by each kernel: `gb_s` of the best, and of each under `kernels`."""
    numbers = torch.ones(BUFFER_BYTES // 4)
    rows = numbers.view(-1, _WIDTH)
    vector = torch.ones(_WIDTH)
    kernels: dict[str, Callable[[], object]] = {
        "sum": numbers.sum,
        "matrix times vector": lambda: rows.mv(vector),
        "largest": numbers.amax,
        "product with itself": lambda: numbers.dot(numbers),
    }
    found = {name: BUFFER_BYTES / 1e9 / min(map(_seconds, [run] * _PASSES)) for name, run in kernels.items()}
    return {"gb_s": max(found.values()), "kernels": found}


def _seconds(run: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    run()
    return time.perf_counter() - begin_s


if __name__ == "__main__":
    main()
