"""Loading a checkpoint against the disk's own speed: `python benchmarks/load.py`.

A checkpoint saved in 8 shards is loaded by 4 ranks, processes of one thread each, into ordinary memory.
Beside it the same files are read by one process from the first byte to the last, and by four processes that
share the files as the ranks do. Before each of these the files are dropped from the page cache; once a round
the ranks load them from there. In turn, every other round backwards.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import ROOT, machine, positive, ratios, spread, table

SHARDS, RANKS = 8, 4
_READ_BYTES = 4 * 2**20

#: Says ready, waits for a line, and reads files from the first byte to the last.
_READ = """
import os, sys, time
buffer = [memoryview(bytearray(int(sys.argv[1])))]
print("ready", flush=True)
sys.stdin.readline()
begin_s = time.monotonic()
for path in sys.argv[2:]:
    descriptor = os.open(path, os.O_RDONLY)
    while os.readv(descriptor, buffer):
        pass
    os.close(descriptor)
print('{"begin_s": %f, "end_s": %f, "cpu_s": %f}' % (begin_s, time.monotonic(), time.process_time()))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument(
        "--rounds", type=positive, default=5, help="times that each is measured (default: 5)"
    )
    options.add_argument("--layers", type=positive, default=23, help="of the model (default: 23, 4 GB)")
    options.add_argument(
        "--folder", type=Path, help="on the disk that is measured (default: a temporary one)"
    )
    given = options.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        files = _save(Path(folder) / "model", given.layers)
        size_gb = sum(path.stat().st_size for path in files) / 1e9
        print(
            f"{size_gb:.2f} GB in {SHARDS} shards, {RANKS} ranks; "
            f"{given.rounds} rounds, median (least to most)."
        )
        print(machine("torch"), end="\n\n")
        _compare(files, size_gb, given.rounds)


def _compare(files: list[Path], size_gb: float, rounds: int) -> None:
    reader = (sys.executable, "-c", _READ, str(_READ_BYTES))
    each = SHARDS // RANKS
    ranks = [
        (
            sys.executable,
            str(ROOT / "tests" / "weights_rank.py"),
            str(files[0].parent),
            str(rank),
            str(RANKS),
            "bf16",
        )
        for rank in range(RANKS)
    ]
    one = [(*reader, *map(str, files))]
    four = [(*reader, *map(str, files[rank * each : (rank + 1) * each])) for rank in range(RANKS)]
    tasks: dict[str, Callable[[], list[dict[str, float]]]] = {
        "one process reads": lambda: _run(one, dropped=files),
        "four processes read": lambda: _run(four, dropped=files),
        "four ranks load": lambda: _run(ranks, dropped=files),
        "four ranks load, in the page cache": lambda: _run(ranks, kept=files),
    }
    found: dict[str, list[list[dict[str, float]]]] = {name: [] for name in tasks}
    for number in range(rounds):
        for name in list(tasks) if number % 2 == 0 else reversed(list(tasks)):
            found[name].append(tasks[name]())
            print(f"round {number + 1}: {name}: {_seconds(found[name][-1]):.2f} s", file=sys.stderr)
    times = {name: [_seconds(reports) for reports in each_round] for name, each_round in found.items()}
    rows = []
    for name, each_round in found.items():
        peaks = [
            report["peak_bytes"] / report["shard_bytes"]
            for reports in each_round
            for report in reports
            if "peak_bytes" in report
        ]
        rows.append(
            [
                name,
                spread(times[name]),
                spread([size_gb / seconds for seconds in times[name]]),
                spread(ratios(times["one process reads"], times[name])),
                spread(ratios(times["four processes read"], times[name])),
                spread([sum(report["cpu_s"] for report in reports) for reports in each_round]),
                f"{max(peaks):.3f}" if peaks else "",
            ]
        )
    headings = ["", "s", "GB/s", "speed over one", "speed over four", "processor s", "peak / shard, most"]
    print(table(headings, rows))
    load = statistics.median(ratios(times["one process reads"], times["four ranks load"]))
    print(f"\nRanks load at {load:.0%} of the speed at which one process reads the same bytes.")


def _run(
    commands: Sequence[Sequence[str]], *, dropped: Sequence[Path] = (), kept: Sequence[Path] = ()
) -> list[dict[str, float]]:
    """Start processes, let them go at once when all are ready, and take their reports."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        for command in commands
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{' '.join(process.args)} did not get ready")  # type: ignore[arg-type]
        for path in kept:
            path.read_bytes()
        for path in dropped:
            _drop(path)
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        return [json.loads(process.communicate()[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _seconds(reports: Sequence[dict[str, float]]) -> float:
    """From the first begin to the last end, in s."""
    return max(report["end_s"] for report in reports) - min(report["begin_s"] for report in reports)


def _drop(path: Path) -> None:
    """Drop a file from the page cache."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _save(folder: Path, layers: int) -> list[Path]:
    """A checkpoint in bfloat16; its numbers are the same block of random ones again and again."""
    import torch

    from shardwatt.architectures import Architecture
    from shardwatt.engine.weights.safetensorsfile import header
    from shardwatt.engine.weights.shapefile import params_of
    from shardwatt.engine.weights.slices import slice_of, whole_shapes

    shape = Architecture(2560, layers, 32, 32, 6912, 32_000)
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params_of(shape)))
    (folder / "tokenizer.model").touch()
    block = torch.randn(2**25, generator=torch.Generator().manual_seed(1)).bfloat16()
    numbers = block.view(torch.uint8).numpy().tobytes()
    files = []
    for rank in range(SHARDS):
        tensors = {}
        for name, whole in whole_shapes(shape).items():
            part = slice_of(shape, name, rank, SHARDS)
            size = (len(part.rows), len(part.columns))
            tensors[name] = (torch.bfloat16, size if len(whole) == 2 else size[1:])
        files.append(folder / f"consolidated.{rank:02d}.safetensors")
        left = sum(2 * torch.Size(size).numel() for _, size in tensors.values())
        with files[-1].open("wb") as stream:
            stream.write(header(tensors))
            while left:
                left -= stream.write(numbers[: min(left, len(numbers))])
    return files


if __name__ == "__main__":
    main()
