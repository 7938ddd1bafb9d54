"""Whether a GPU's energy counter and its power sensor agree: `python benchmarks/gpu_loads.py`.

Idle, steady and pulsed loads on the first GPU, read by the project's own sampler; the counter beside the
integral of sampled power, over the same stretch of time. It needs an NVIDIA GPU with torch for CUDA, and the
GPU for itself. Nothing but readings: no limit and no setting is touched.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from beside import sampling
from measuring import machine, positive, table
from shardwatt.power.nodetrace import DeviceTrace
from shardwatt.power.trace import load_trace

#: Time in s that a GPU gets to settle before each load.
_SETTLE_S = 5.0

#: Load by name: time in s at work, and at rest, again and again.
_LOADS = {
    "idle": (0.0, 1.0),
    "steady": (1.0, 0.0),
    "25 ms of every 100 ms": (0.025, 0.075),
    "50 ms of every 100 ms": (0.05, 0.05),
    "0.5 s of every 1 s": (0.5, 0.5),
    "5 s of every 10 s": (5.0, 5.0),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--seconds", type=positive, default=30, help="of each load (default: 30)")
    options.add_argument(
        "--device", default="cuda", help="what torch works on; `cpu` to try the script itself"
    )
    given = options.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        options.error("torch sees no GPU here; expected an NVIDIA GPU, and torch built for CUDA")
    work = _worker(given.device)
    rows = [_row(name, *times, given.seconds, work) for name, times in _LOADS.items()]
    print(f"{given.seconds} s each, after {_SETTLE_S:g} s of rest.")
    print(machine("torch", "nvidia-ml-py"), end="\n\n")
    print(
        table(
            ["load", "counter, J", "integral, J", "counter / integral", "mean W", "tick, ms", "samples"], rows
        )
    )


def _worker(device: str) -> Callable[[float], None]:
    """What keeps a device busy for so many s, and comes back when it has finished."""
    size = 8192 if device == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.float32) for _ in range(2))

    def work(seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            left @ right
            if device == "cuda":
                torch.cuda.synchronize()

    work(1.0)
    return work


def _row(name: str, busy_s: float, rest_s: float, seconds: int, work: Callable[[float], None]) -> list[str]:
    time.sleep(_SETTLE_S)
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with tempfile.TemporaryDirectory() as folder:
        with sampling(Path(folder), 1, os.environ | {"CUDA_VISIBLE_DEVICES": first}):
            time.sleep(1.0)
            start_s = time.monotonic()
            while time.monotonic() < start_s + seconds:
                if busy_s:
                    work(busy_s)
                time.sleep(rest_s)
            stop_s = time.monotonic()
            time.sleep(1.0)
        return [name, *_told(load_trace(Path(folder), 1, 1).devices[0], start_s, stop_s)]


def _told(device: DeviceTrace, start_s: float, stop_s: float) -> list[str]:
    span = [(start_s, stop_s)]
    _, counter_j, uncertainty_j = device.joules(span)
    integral = device.integral_j(span)
    tick_s = device.curve.tick_s if device.curve else None
    return [
        f"{counter_j:.1f} ± {uncertainty_j:.1f}",
        "unknown" if integral is None else f"{integral[0]:.1f}",
        "unknown" if integral is None else f"{counter_j / integral[0]:.3f}",
        f"{counter_j / (stop_s - start_s):.1f}",
        "unknown" if tick_s is None else f"{1000 * tick_s:.0f}",
        str(len(device.columns["t_s"][device.between(start_s, stop_s)])),
    ]


if __name__ == "__main__":
    main()
