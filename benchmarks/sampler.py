"""What the sampler costs and how well it keeps its time: `python benchmarks/sampler.py`.

Runs the sampler as a cell does, on 2 and on 8 simulated GPUs and on made-up RAPL counters of two sockets,
on an idle machine and beside a process a core that never rests, all in turn. The simulated driver answers
at once; what a real one takes for its answers comes on top.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beside import sampler_words
from measuring import Cost, interleave, machine, positive, spread, table
from powercap import add_domain
from shardwatt.power.sampling.files import SamplerFile, sampler_path, samples_path
from shardwatt.power.sampling.table import read_samples
from shardwatt.recordfiles import read
from simulated_nvml import build
from simulated_nvml import environment as environment_of

GPUS = (2, 8)
PERIOD_S = 0.1


@dataclass(frozen=True, slots=True)
class Kept:
    """How one run of the sampler went.

    Attributes:
        sampler: its own account.
        periods_s: [samples - 1] times between samples of the first GPU.
        peak_mib: its resident memory.
    """

    sampler: SamplerFile
    periods_s: np.ndarray
    peak_mib: float


#: Rows of the table: what is told of a run.
ROWS: dict[str, tuple[Callable[[Kept], float], int]] = {
    "its processor time, % of one core": (lambda kept: 100 * kept.sampler.cpu_s / kept.sampler.wall_s, 2),
    "period, median, ms": (lambda kept: 1e3 * float(np.median(kept.periods_s)), 2),
    "jitter: 95 % of periods are off by less than, ms": (
        lambda kept: 1e3 * float(np.quantile(np.abs(kept.periods_s - PERIOD_S), 0.95)),
        2,
    ),
    "longest time between samples, ms": (lambda kept: 1e3 * float(kept.periods_s.max()), 1),
    "lateness, median, ms": (lambda kept: 1e3 * (kept.sampler.late_median_s or 0), 2),
    "lateness, 95th percentile, ms": (lambda kept: 1e3 * (kept.sampler.late_p95_s or 0), 2),
    "lateness, longest, ms": (lambda kept: 1e3 * (kept.sampler.late_max_s or 0), 1),
    "deadlines missed, %": (lambda kept: 100 * kept.sampler.missed / kept.sampler.deadlines, 2),
    "peak memory, MiB": (lambda kept: kept.peak_mib, 0),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--rounds", type=positive, default=9, help="times each is run (default: 9)")
    options.add_argument("--seconds", type=positive, default=20, help="length of a run in s (default: 20)")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder), given.rounds, given.seconds)


def _measure(folder: Path, rounds: int, seconds: int) -> None:
    library = build(folder / "library")
    for number in (0, 1):
        add_domain(folder / "powercap", f"intel-rapl:{number}", f"package-{number}")
        add_domain(folder / "powercap", f"intel-rapl:{number}:0", "dram")
    found: dict[tuple[int, bool], list[Kept]] = {case: [] for case in itertools.product(GPUS, (False, True))}
    about = machine("nvidia-ml-py")
    interleave(
        {
            _name(gpus, is_loaded): _run(folder, library, gpus, is_loaded, seconds, kept)
            for (gpus, is_loaded), kept in found.items()
        },
        rounds,
    )
    print(f"{rounds} rounds of {seconds} s; period {1e3 * PERIOD_S:.0f} ms; median (least to most).")
    print(about, end="\n\n")
    rows = [
        [what, *(spread([value_of(kept) for kept in runs], digits) for runs in found.values())]
        for what, (value_of, digits) in ROWS.items()
    ]
    print(table(["sampler", *(_name(*case) for case in found)], rows))


def _name(gpus: int, is_loaded: bool) -> str:
    return f"{gpus} GPUs, {'full load' if is_loaded else 'idle'}"


def _run(
    folder: Path, library: Path, gpus: int, is_loaded: bool, seconds: int, kept: list[Kept]
) -> Callable[[], Cost]:
    environment = environment_of(library, POWER=";".join(["saw:80:400:3"] * gpus)) | {
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus))),
        "SHARDWATT_POWERCAP": str(folder / "powercap"),
    }

    def run() -> Cost:
        work = Path(tempfile.mkdtemp(dir=folder))
        with _load(os.cpu_count() or 1 if is_loaded else 0):
            begin_s = time.perf_counter()
            command = [*sampler_words(work, gpus), "--period-s", str(PERIOD_S)]
            process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
            time.sleep(seconds)
            assert process.stdin
            process.stdin.close()
            # rusage of this child alone; ru_maxrss is in KiB on Linux.
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"the sampler ended with {process.returncode}")
        samples = read_samples(samples_path(work, 0))
        times_s = samples["t_s"][samples["device"] == 0]
        peak_mib = used.ru_maxrss / 1024
        kept.append(Kept(read(SamplerFile, sampler_path(work, 0)), np.diff(times_s), peak_mib))
        return Cost(time.perf_counter() - begin_s, used.ru_utime + used.ru_stime, peak_mib)

    return run


@contextmanager
def _load(processes: int) -> Iterator[None]:
    """Keep so many processors busy."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
