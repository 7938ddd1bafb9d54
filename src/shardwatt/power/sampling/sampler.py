"""The sampler: a process of its own on each node, so that no lock and no load of a rank starves it.

    python -m shardwatt.power.sampling.sampler --gpu-type JSON --ranks-per-node 2 --folder DIR

It samples at absolute deadlines until its standard input ends, which it does when its supervisor wants it
or is gone, and then once more. Beside the devices of the headline it reads the node's processors and
memory: how busy they are, and their joules where RAPL lets it. Signals that end a job do not end it: the
supervisor still needs it then. Its memory does not grow; what it read is on disk at most a second later.
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
from contextlib import ExitStack
from pathlib import Path

from shardwatt.devices import own_devices
from shardwatt.errors import EXIT_CONFIGURATION, CellFailure
from shardwatt.power.meters.choose import metered_devices, open_host_meter, open_meter
from shardwatt.power.meters.replay import Replay, ReplayMeter
from shardwatt.power.nodeoptions import node_options
from shardwatt.power.protocol import Meter, Sample
from shardwatt.power.sampling.files import (
    COLUMNS,
    MeterFile,
    PowerNow,
    SamplerFile,
    host_meter_path,
    host_samples_path,
    meter_path,
    power_now_path,
    sample_line,
    sampler_path,
    samples_path,
)
from shardwatt.power.sampling.lateness import Lateness
from shardwatt.recordfiles import show, write

_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: Time in s between flushes of the samples and updates of power-now-K.json.
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
    meter, host = _open_meter(options, selectors), open_host_meter()
    try:
        _run(meter, host, options.folder, options.node_index, options.period_s)
    except OSError as problem:
        print(f"sampler of node {options.node_index}: {problem}", file=sys.stderr)
        return 1
    finally:
        meter.close()
        host.close()
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = node_options("shardwatt.power.sampling.sampler")
    parser.add_argument("--period-s", type=float, default=0.1)
    parser.add_argument("--replay", type=Replay.model_validate_json, metavar="JSON")
    options = parser.parse_args(arguments)
    if not (math.isfinite(options.period_s) and options.period_s > 0):
        parser.error(f"--period-s: found {options.period_s}; expected a time above 0")
    return options


def _open_meter(options: argparse.Namespace, selectors: Sequence[str]) -> Meter:
    """The meter of the devices; of a simulated cell, what its ranks say that they hold."""
    if options.replay is None:
        return open_meter(options.gpu_type, selectors)
    first = options.node_index * options.ranks_per_node
    return ReplayMeter(
        options.replay,
        options.folder,
        range(first, first + options.ranks_per_node),
        metered_devices(options.gpu_type, options.ranks_per_node),
    )


def _run(meter: Meter, host: Meter, folder: Path, node_index: int, period_s: float) -> None:
    written = (
        (meter, meter_path(folder, node_index), samples_path(folder, node_index)),
        (host, host_meter_path(folder, node_index), host_samples_path(folder, node_index)),
    )
    with ExitStack() as files:
        recorders = [files.enter_context(_Recorder(*each, period_s)) for each in written]
        start_cpu_s = time.process_time()
        start_s = time.monotonic()
        lateness, missed = _sample(recorders, power_now_path(folder, node_index), start_s, period_s)
        cpu_s, wall_s = time.process_time() - start_cpu_s, time.monotonic() - start_s
    # What was read is on disk: whoever does not answer any more costs this file alone.
    ended = SamplerFile(
        node=socket.gethostname(),
        period_s=period_s,
        deadlines=lateness.count + missed,
        samples=lateness.count,
        missed=missed,
        late_median_s=lateness.quantile_s(0.5),
        late_p95_s=lateness.quantile_s(0.95),
        late_max_s=lateness.max_s if lateness.count else None,
        cpu_s=cpu_s,
        wall_s=wall_s,
        failures=[*meter.failures, *host.failures],
        strangers=meter.strangers(),
    )
    write(ended, sampler_path(folder, node_index))


def _sample(
    recorders: Sequence[_Recorder], now_path: Path, start_s: float, period_s: float
) -> tuple[Lateness, int]:
    """Sample at once, at every deadline until the sampler is to end, and then once more.

    Args:
        recorders: in order; power-now-K.json is about the first.
        start_s: `time.monotonic()` from which deadlines are multiples of the period: so there is no
            drift, and a deadline that is missed is not caught up with.

    Returns:
        How late the samples at deadlines were, and how many deadlines were missed.
    """
    for recorder in recorders:
        recorder.sample()
    _show_now(recorders[0].latest, now_path)
    # Whoever waits for the first meter's file finds the others beside it.
    for recorder in reversed(recorders):
        recorder.publish()
    lateness, missed, deadline, shown_s = Lateness(), 0, 1, start_s
    while not _stopped(start_s + deadline * period_s):
        now_s = time.monotonic()
        lateness.add(now_s - (start_s + deadline * period_s))
        for recorder in recorders:
            recorder.sample()
        if now_s - shown_s >= _FLUSH_S:
            shown_s = now_s
            _show_now(recorders[0].latest, now_path)
            for recorder in recorders:
                recorder.flush()
        following = max(deadline + 1, math.ceil((time.monotonic() - start_s) / period_s))
        missed += following - deadline - 1
        deadline = following
    for recorder in recorders:
        recorder.sample()
    return lateness, missed


class _Recorder:
    """Writes what a meter reads into the two files that it has.

    Args:
        meter: what is read.
        about: where its MeterFile goes.
        samples: where its samples go.
        period_s: time in s between samples that was asked for.

    Attributes:
        latest: the last sample of every device.
    """

    def __init__(self, meter: Meter, about: Path, samples: Path, period_s: float) -> None:
        self.latest: list[Sample] = []
        self._meter, self._about, self._samples, self._period_s = meter, about, samples, period_s
        #: Read since the last flush. Writing them together costs a fifth of writing each as it comes.
        self._pending: list[Sample] = []

    def __enter__(self) -> _Recorder:
        self._stream = self._samples.open("w", encoding="ascii")
        self._stream.write(",".join(COLUMNS) + "\n")
        return self

    def sample(self) -> None:
        self.latest = self._meter.sample()
        self._pending += self.latest

    def publish(self) -> None:
        """Say what the meter is, once its first sample is on disk."""
        self.flush()
        write(_meter_file(self._meter, self._period_s), self._about)

    def flush(self) -> None:
        self._stream.writelines(map(sample_line, self._pending))
        self._pending.clear()
        self._stream.flush()

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        with self._stream:
            self.flush()
            os.fsync(self._stream.fileno())


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
        power_sources=meter.power_sources,
        limits=meter.limits,
        period_s=period_s,
        wall_minus_monotonic_s=time.time() - time.monotonic(),
    )


def _show_now(samples: Sequence[Sample], path: Path) -> None:
    """Replace power-now-K.json, which is worthless after the run."""
    powers_w = [sample.power_w for sample in samples]
    temperatures_c = [sample.temperature_c for sample in samples]
    now = PowerNow(
        t_s=time.monotonic(),
        power_w=sum(_all_known(powers_w)) if _all_known(powers_w) else None,
        temperature_c=max(_all_known(temperatures_c), default=None),
    )
    show(now, path)


def _all_known(values: Sequence[float | None]) -> list[float]:
    """The values; none where one is not known."""
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else []


if __name__ == "__main__":
    sys.exit(main())
