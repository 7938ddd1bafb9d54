"""What the benchmarks share: a command's time and peak memory, rounds, a Markdown table, the machine."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# The tests' small project and made-up cells serve here too.
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: wall and processor time in s, peak resident memory of one process in MiB."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def cost(command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command in a folder, its output thrown away, and measure it and the processes it waits for.

    Raises:
        RuntimeError: it failed; its last output is in the message.
    """
    with tempfile.TemporaryFile() as output:
        begin_s = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        # rusage of this child alone; ru_maxrss is in KiB on Linux.
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begin_s
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            tail = output.read().decode(errors="replace")[-_TAIL_CHARACTERS:]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
    return Cost(wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def interleave(tasks: Mapping[str, Callable[[], Cost]], rounds: int) -> dict[str, list[Cost]]:
    """Run all tasks once a round, every other round backwards, so that a slow minute hits all alike."""
    costs: dict[str, list[Cost]] = {name: [] for name in tasks}
    for index in range(rounds):
        for name in list(tasks) if index % 2 == 0 else reversed(list(tasks)):
            costs[name].append(tasks[name]())
            print(f"round {index + 1} of {rounds}: {name}: {costs[name][-1]}", file=sys.stderr)
    return costs


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median with the range: `1.23 (1.20 to 1.31)`; the value alone where there is one."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def ratios(values: Sequence[float], beside: Sequence[float]) -> list[float]:
    """Each value over the one of the same round."""
    return [value / other for value, other in zip(values, beside, strict=True)]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are aligned to the right."""
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(*packages: str) -> str:
    """One line of what the numbers were taken on: processor, memory, versions, time and load."""
    names = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        names[0] if names else platform.machine(),
        f"{os.cpu_count()} cores",
        f"{memory_gib:.0f} GiB",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in packages),
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"load {os.getloadavg()[0]:.1f}",
    ]
    return ", ".join(parts)


def positive(text: str) -> int:
    """A whole number above zero, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}; expected at least 1")
    return number


def hundreds(text: str) -> int:
    """A number of cells that `matrix` can give, for argparse."""
    number = positive(text)
    if number % 100:
        raise argparse.ArgumentTypeError(f"{number}; expected a multiple of 100")
    return number


def add_sizes(options: argparse.ArgumentParser, rounds: Mapping[int, int]) -> None:
    """Add --cells and --rounds, for a benchmark that runs as many rounds as its number of cells allows."""
    options.add_argument(
        "--cells",
        type=hundreds,
        nargs="+",
        default=list(rounds),
        help="numbers of cells (default: %(default)s)",
    )
    *most, least = map(str, rounds.values())
    by_size = f"{', '.join(most)} or {least}"
    options.add_argument("--rounds", type=positive, help=f"times each is run (default: {by_size}, by size)")


def matrix(cells: int) -> dict[str, list[int]]:
    """Axes of so many cells: 2 shard counts x 10 batch sizes x 5 lengths x repeats."""
    return {
        "shards": [1, 2],
        "batch": list(range(1, 11)),
        "length": list(range(1, 6)),
        "repeat": list(range(1, cells // 100 + 1)),
    }
