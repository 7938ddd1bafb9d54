"""What each rank of a simulated cell holds: power over time, said to whoever meters its device.

On simulated GPUs (tests/nvml) it is added to a file that their NVML reads, and metered like any other power.
Everywhere else it lies in the cell's work folder, and is replayed as an estimate: what real devices draw
meanwhile is not the cell's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from shardwatt.devices import has_gpus
from shardwatt.recordfiles import SCHEMA_VERSION, RecordModel, SchemaVersion
from shardwatt.site import GpuType

#: Environment variable that names the file in which the simulated NVML is told what its GPUs draw.
DRAW_VARIABLE = "SIMULATED_NVML_DRAW"

#: For the simulated NVML: a GPU goes back to what it draws by itself.
_BY_ITSELF_W = -1.0


class Draw(RecordModel):
    """What one rank's device draws for a while: draw-R.json. Before and after it is idle."""

    schema_version: SchemaVersion = SCHEMA_VERSION
    steps: list[tuple[float, float]]
    """From when, in s of the node's `time.monotonic()`, and the power from then on in W; in order of time."""
    stop_s: float
    """Until when the last of them holds."""

    @classmethod
    def of_window(
        cls, steps: Sequence[tuple[float, float]], start_s: float, window_s: float, margin_s: float
    ) -> Draw:
        """What is drawn in a window, and around it: before it as at its end, after it as at its begin.

        So a meter that is a little early or late at both borders, as one with ticks is, misses at the one
        what it has too much at the other.

        Args:
            steps: from when, in s after the window has opened, and the power in W; the first from 0 on.
            start_s: when the window opens, in s of the node's `time.monotonic()`.
            window_s: how long it lasts.
            margin_s: how long power is held before and after it; no longer than the window itself.
        """
        margin_s = min(margin_s, window_s)
        ends_s = [*(after_s for after_s, _ in steps[1:]), window_s]
        before = [
            (max(after_s, window_s - margin_s) - window_s, power_w)
            for (after_s, power_w), end_s in zip(steps, ends_s, strict=True)
            if end_s > window_s - margin_s
        ]
        after = [(window_s + after_s, power_w) for after_s, power_w in steps if after_s < margin_s]
        held = [(start_s + after_s, power_w) for after_s, power_w in (*before, *steps, *after)]
        return cls(steps=held, stop_s=start_s + window_s + margin_s)

    def joules(self, from_s: float, to_s: float) -> tuple[float, float]:
        """What is drawn between two times: energy in J, and over how many s of that it is said."""
        ends_s = [*(start_s for start_s, _ in self.steps[1:]), self.stop_s]
        energy_j = said_s = 0.0
        for (start_s, power_w), end_s in zip(self.steps, ends_s, strict=True):
            length_s = max(min(end_s, to_s) - max(start_s, from_s), 0.0)
            energy_j += power_w * length_s
            said_s += length_s
        return energy_j, said_s


def draw_path(folder: Path, rank: int) -> Path:
    return folder / f"draw-{rank}.json"


def simulated_gpus(gpu_type: GpuType) -> Path | None:
    """The file in which simulated GPUs are told what they draw; None where devices are not simulated.

    Args:
        gpu_type: the site's; only GPUs that NVML meters can be simulated.
    """
    path = os.environ.get(DRAW_VARIABLE)
    return Path(path) if path and has_gpus(gpu_type) else None


def tell_simulated_gpu(file: Path, host: str, gpu: str, draw: Draw) -> None:
    """Add what one GPU draws to the file of the simulated NVML, in one piece, whoever else does.

    Args:
        file: which.
        host: name of the GPU's node.
        gpu: its index or UUID there.
        draw: what it draws; its times may lie ahead.

    Raises:
        OSError: the file cannot be written.
    """
    steps = [*draw.steps, (draw.stop_s, _BY_ITSELF_W)]
    lines = [f"{host} {gpu} {start_s:.6f} {power_w:.6g}\n" for start_s, power_w in steps]
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, "".join(lines).encode())
    finally:
        os.close(descriptor)
