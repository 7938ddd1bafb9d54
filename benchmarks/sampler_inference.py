"""What the sampler takes from an inference beside it: `python benchmarks/sampler_inference.py`.

Two ranks, one to a core, answer the same prompts again and again with a tiny model, so that nothing is left
for the sampler but what it takes from them. Beside them the sampler reads simulated GPUs, or does not run:
in pairs, in random order. A real driver's calls cost more, and a real node has more cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from beside import sampling
from measuring import machine, positive, spread, table
from simulated_nvml import build, environment

#: Pairs are drawn anew so often for the interval of their ratio.
_DRAWS = 10_000
_SEED = 2023


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--pairs", type=positive, default=30, help="with and without (default: 30)")
    options.add_argument(
        "--answers", type=positive, default=20, help="batches of a rank each time (default: 20)"
    )
    options.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.rank is not None:
        _rank(given.rank, given.answers)
        return
    print(f"{given.pairs} pairs; seconds for the same work, median (least to most).")
    print(machine("torch"), end="\n\n")
    rows = []
    with tempfile.TemporaryDirectory() as folder, _ranks(given.answers) as ranks:
        library = build(Path(folder) / "library")
        for gpus in (2, 8):
            rows.append(_row(ranks, library, Path(folder), gpus, given.pairs))
    print(table(["GPUs", "without", "with the sampler", "ratio, median", "95 % interval of it"], rows))


def _row(ranks: list[subprocess.Popen[str]], library: Path, folder: Path, gpus: int, pairs: int) -> list[str]:
    chance = random.Random(_SEED)
    times: dict[bool, list[float]] = {False: [], True: []}
    for number in range(pairs):
        for sampled in chance.sample([False, True], 2):
            with (
                _sampler(library, folder / f"{gpus}-{number}", gpus) if sampled else contextlib.nullcontext()
            ):
                times[sampled].append(_answer(ranks))
    ratios = [one / other for one, other in zip(times[True], times[False], strict=True)]
    medians = sorted(statistics.median(chance.choices(ratios, k=pairs)) for _ in range(_DRAWS))
    low, high = medians[int(0.025 * _DRAWS)], medians[int(0.975 * _DRAWS)]
    return [
        str(gpus),
        spread(times[False]),
        spread(times[True]),
        f"{statistics.median(ratios):.4f}",
        f"{low:.4f} to {high:.4f}",
    ]


def _answer(ranks: list[subprocess.Popen[str]]) -> float:
    """Time in s until every rank has answered."""
    begin_s = time.perf_counter()
    for rank in ranks:
        assert rank.stdin is not None
        print(file=rank.stdin, flush=True)
    for rank in ranks:
        assert rank.stdout is not None
        assert rank.stdout.readline(), "a rank has died"
    return time.perf_counter() - begin_s


@contextlib.contextmanager
def _ranks(answers: int) -> Iterator[list[subprocess.Popen[str]]]:
    words = [sys.executable, __file__, "--answers", str(answers), "--rank"]
    started = [
        subprocess.Popen(
            [*words, str(core)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        for _ in range(2):
            _answer(started)  # the first ones warm up
        yield started
    finally:
        for rank in started:
            assert rank.stdin is not None
            rank.stdin.close()
            rank.wait()


def _rank(core: int, answers: int) -> None:
    """A rank: answers each time it is sent a line."""
    from engine_tiny import alone, make, open_engine
    from shardwatt.engine.protocol import BatchRequest, Sampling

    os.sched_setaffinity(0, {core})
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        checkpoint = make(folder / "model")
        stack.enter_context(alone(folder / "group"))
        engine = open_engine(checkpoint)
        engine.allocate(4, 96)
        request = BatchRequest(0, ["a", "b", "c", "d"], [[1] + [5] * 15] * 4, 64, 96, 4)
        for _ in sys.stdin:
            for _ in range(answers):
                engine.generate(request, Sampling(0.8, 0.95, 1), lambda tokens: None)
            print("done", flush=True)


@contextlib.contextmanager
def _sampler(library: Path, folder: Path, gpus: int) -> Iterator[None]:
    folder.mkdir()
    own = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
    with sampling(folder, gpus, environment(library, POWER=";".join(["250"] * gpus)) | own):
        yield


if __name__ == "__main__":
    main()
