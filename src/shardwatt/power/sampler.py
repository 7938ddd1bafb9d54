"""The sampler: a process of its own on each node, so that no lock and no load of a rank starves it.

    python -m shardwatt.power.sampler --gpu-type JSON --ranks-per-node 2 --folder DIR

It samples at absolute deadlines until its standard input ends, which it does when its supervisor wants it
or is gone, and then once more. Signals that end a job do not end it: the supervisor still needs it then.
Its memory does not grow; what it read is on disk at most a second later.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from shardwatt.devices import own_devices
from shardwatt.errors import EXIT_CONFIGURATION, CellFailure
from shardwatt.power.choose import open_meter
from shardwatt.power.protocol import Meter, Sample
from shardwatt.power.samplefiles import (
    COLUMNS,
    MeterFile,
    PowerNow,
    meter_path,
    power_now_path,
    sample_line,
    samples_path,
)
from shardwatt.records import write
from shardwatt.site import GpuType

_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Time in s between flushes of the samples and updates of the power for the progress display.
_FLUSH_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sampler; the exit code is 1 if its folder cannot be written, 78 if too few GPUs are here."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    options = _options(arguments)
    try:
        selectors = own_devices(options.gpu_type, options.ranks_per_node, os.environ)
    except CellFailure as problem:
        print(f"sampler of node {options.node_index}: {problem}", file=sys.stderr)
        return EXIT_CONFIGURATION
    meter = open_meter(options.gpu_type, selectors)
    try:
        _run(meter, options.folder, options.node_index, options.period_s)
    except OSError as problem:
        print(f"sampler of node {options.node_index}: {problem}", file=sys.stderr)
        return 1
    finally:
        meter.close()
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shardwatt.power.sampler")
    parser.add_argument("--gpu-type", type=GpuType.model_validate_json, required=True, metavar="JSON")
    parser.add_argument("--ranks-per-node", type=int, required=True, help="one GPU each")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--node-index",
        type=int,
        # Slurm numbers the nodes of a step; rank 0 is on node 0.
        default=int(os.environ.get("SLURM_NODEID", "0")),
    )
    parser.add_argument("--period-s", type=float, default=0.1)
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.period_s) and options.period_s > 0):
        parser.error(f"--period-s: found {options.period_s}; expected a time above 0")
    return options


def _run(meter: Meter, folder: Path, node_index: int, period_s: float) -> None:
    with samples_path(folder, node_index).open("w", encoding="ascii") as stream:
        stream.write(",".join(COLUMNS) + "\n")
        start_s = time.monotonic()
        _append(stream, meter.sample())
        stream.flush()
        write(_meter_file(meter, period_s), meter_path(folder, node_index))
        ticks = 1
        flushed_s = start_s
        while not _stopped(start_s + ticks * period_s):
            now_s = time.monotonic()
            samples = meter.sample()
            _append(stream, samples)
            if now_s - flushed_s >= _FLUSH_S:
                flushed_s = now_s
                stream.flush()
                _show_power(samples, power_now_path(folder, node_index))
            # Deadlines are multiples of the period from the start: no drift, and none caught up with.
            ticks = max(ticks + 1, math.ceil((time.monotonic() - start_s) / period_s))
        _append(stream, meter.sample())
        stream.flush()
        os.fsync(stream.fileno())


def _append(stream: TextIO, samples: Sequence[Sample]) -> None:
    stream.writelines(map(sample_line, samples))


def _stopped(deadline_s: float) -> bool:
    """Wait until a deadline; True at once if the sampler is to end."""
    while True:
        remaining_s = max(deadline_s - time.monotonic(), 0.0)
        readable, _, _ = select.select([sys.stdin], [], [], remaining_s)
        if not readable:
            return False
        if not os.read(sys.stdin.fileno(), 4096):
            return True


def _meter_file(meter: Meter, period_s: float) -> MeterFile:
    return MeterFile(
        node=socket.gethostname(),
        method=meter.method,
        status=meter.status,
        detail=meter.detail,
        devices=meter.devices,
        period_s=period_s,
        wall_minus_monotonic_s=time.time() - time.monotonic(),
    )


def _show_power(samples: Sequence[Sample], path: Path) -> None:
    """Replace power-now-K.json; not flushed to disk, since it is worthless after the run."""
    powers_w = [sample.power_w for sample in samples if sample.power_w is not None]
    whole = len(powers_w) == len(samples) > 0
    now = PowerNow(t_s=time.monotonic(), power_w=sum(powers_w) if whole else None)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(now.model_dump_json(), encoding="ascii")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
