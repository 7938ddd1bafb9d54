"""Memory of one rank while it loads a checkpoint of any size: `python benchmarks/load_memory.py`.

The checkpoint has a published model's shape and the files of a saved one, and takes no disk: its tensors
are holes in the files and read as zeros. For each engine and number of ranks, one rank loads alone, in a
process of its own and of one thread, into ordinary memory; the machine has to hold that rank's shard. The
others are only said to be there: loading asks nothing of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import ROOT, machine, positive, table
from shardwatt.architectures import CATALOGUE
from shardwatt.matrix import shard_counts

_ENGINES = ("reference", "fast", "hf")
_PRECISIONS = ("fp32", "bf16", "fp16")
_ROWS = 4


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument(
        "--model",
        choices=CATALOGUE,
        default="llama-65b",
        metavar="NAME",
        help="a published shape's name (default: llama-65b)",
    )
    options.add_argument("--saved", type=positive, default=8, help="files that it is saved in (default: 8)")
    options.add_argument(
        "--files", choices=("pth", "safetensors"), default="pth", help="which kind they are of (default: pth)"
    )
    options.add_argument(
        "--ranks", type=positive, nargs="+", default=[16, 32], help="numbers of ranks (default: 16 32)"
    )
    options.add_argument(
        "--engines", choices=_ENGINES, nargs="+", default=_ENGINES, help="which load (default: all three)"
    )
    options.add_argument(
        "--precision", choices=_PRECISIONS, default="bf16", help="that they load in (default: bf16)"
    )
    options.add_argument("--rows", type=positive, default=_ROWS, help=f"rows of a batch (default: {_ROWS})")
    options.add_argument("--folder", type=Path, help="where the files are made (default: a temporary one)")
    given = options.parse_args()
    shape = CATALOGUE[given.model]
    for count in (given.saved, *given.ranks):
        if count not in shape.allowed_shards():
            allowed = ", ".join(map(str, shape.allowed_shards()))
            options.error(f"{given.model} does not split over {count}; use one of {allowed}")

    from sparse_checkpoint import sparse  # imports torch: --help answers at once

    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        folder = Path(scratch) / given.model
        files = sparse(folder, shape, given.saved, given.files)
        size_gb = sum(path.stat().st_size for path in files) / 1e9
        on_disk_mb = sum(512 * path.stat().st_blocks for path in files) / 1e6
        print(
            f"{given.model}: {size_gb:.1f} GB in {given.saved} .{given.files} files that take "
            f"{on_disk_mb:.0f} MB of disk; loaded in {given.precision} for {given.rows} rows."
        )
        print(machine("torch"), end="\n\n")
        rows = []
        for ranks in given.ranks:
            for engine in given.engines:
                counts = shard_counts(engine, shape)
                if ranks not in counts:
                    takes = ", ".join(map(str, counts))
                    print(f"{engine}, {ranks} ranks: left out; it takes {takes}", file=sys.stderr)
                    continue
                report = _loaded(engine, folder, ranks, given.precision, given.rows)
                rows.append(_row(engine, ranks, report))
    headings = ["", "shard, GB", "peak / shard", "above it, MB", "read, GB", "processor s", "modules, MB"]
    print(table(headings, rows))
    print("\nModules: what the engine alone imports, in neither shard nor peak.")


def _loaded(engine: str, folder: Path, ranks: int, precision: str, rows: int) -> dict[str, float]:
    """What the rank in the middle reports; see tests/engine_load_rank.py."""
    words = [engine, str(folder), str(ranks // 2), str(ranks), precision, str(rows)]
    print(f"{engine}, rank {ranks // 2} of {ranks}", file=sys.stderr)
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "engine_load_rank.py"), *words],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    report: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return report


def _row(engine: str, ranks: int, report: dict[str, float]) -> list[str]:
    shard, peak = report["shard_bytes"], report["peak_bytes"]
    return [
        f"{engine}, {ranks} ranks",
        f"{shard / 1e9:.2f}",
        f"{peak / shard:.3f}",
        f"{(peak - shard) / 1e6:.0f}",
        f"{report['read_bytes'] / 1e9:.1f}",
        f"{report['cpu_s']:.1f}",
        f"{report['modules_bytes'] / 1e6:.0f}",
    ]


if __name__ == "__main__":
    main()
