"""The simulated host engine's own process: samples the GPUs that are watched until its owner is gone.

python -m dcgm.engine
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pynvml

from dcgm.memory import Memory, folder, load, samples_path

#: Time in s between looks at what is to be watched.
_LOOK_S = 0.02
#: Longest time in s between a sample's time and its counter.
_BESIDE_S = 0.01


def nvml_index(gpu: int) -> int:
    """NVML's index of a GPU of the host engine."""
    count: int = pynvml.nvmlDeviceGetCount()
    return count - 1 - gpu if os.environ.get("SIMULATED_DCGM_ORDER") == "reversed" else gpu


def is_running() -> bool:
    try:
        pid = int((folder() / "engine.pid").read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return False
    return state not in "ZX"


def start() -> None:
    """Start it in the background unless it runs."""
    with (folder() / "engine.lock").open("w") as lock, (folder() / "engine.log").open("a") as log:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_running():
            engine = subprocess.Popen(
                [sys.executable, "-m", "dcgm.engine"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
            (folder() / "engine.pid").write_text(str(engine.pid))


def _is_owned() -> bool:
    try:
        os.kill(int(os.environ["SIMULATED_DCGM_OWNER"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return folder().exists()


def _sample(gpu: int) -> str:
    handle = pynvml.nvmlDeviceGetHandleByIndex(nvml_index(gpu))
    while True:
        t_s = time.monotonic()
        counter_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        # Else a busy machine kept it waiting in between, and the time is not the counter's.
        if time.monotonic() - t_s < _BESIDE_S:
            break
    power_w = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
    used = pynvml.nvmlDeviceGetMemoryInfo(handle).used
    return f"{t_s:.6f} {counter_mj} {power_w} {rates.gpu} {rates.memory} {used}\n"


def main() -> None:
    pynvml.nvmlInit()
    due_s: dict[str, tuple[float, float]] = {}
    memory, changed_ns = Memory(), 0
    path = folder() / "memory.json"
    while _is_owned():
        if path.exists() and path.stat().st_mtime_ns != changed_ns:
            changed_ns = path.stat().st_mtime_ns
            memory = load()
        for gpu, watch in memory.watches.items():
            interval_s = watch["interval_ms"] / 1000
            asked_s = watch["asked_s"]
            # A watch that was asked for anew begins anew.
            known_s, at_s = due_s.get(gpu, (0.0, 0.0))
            if known_s != asked_s:
                at_s = time.monotonic()
            if time.monotonic() >= at_s:
                with suppress(pynvml.NVMLError), samples_path(int(gpu)).open("a") as stream:
                    stream.write(_sample(int(gpu)))
                at_s += interval_s * max(1, int((time.monotonic() - at_s) / interval_s))
            due_s[gpu] = asked_s, at_s
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
