"""An engine of shardwatt that answers in turns: see turns.py; started by the benchmarks, not by hand.

    python benchmarks/engine_worker.py GROUP RANK RANKS

GROUP is a new folder that the ranks share. The engine is loaded and driven as a cell does it: by its name,
through the protocol.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from made_models import on_rank
from shardwatt.engine.load import load_engine
from shardwatt.engine.parallel import join
from shardwatt.engine.protocol import BatchRequest, Engine, Sampling
from turns import Message, Worker, serve, worker

_PATIENCE_S = 600.0


@contextlib.contextmanager
def engine(
    name: str,
    folder: Path,
    precision: str,
    threads: int,
    *,
    ends: frozenset[int] = frozenset(),
) -> Iterator[Worker]:
    """An engine of one rank in a process of its own, loaded; its name is the worker's."""
    with ranks_of(name, folder, precision, threads, 1, ends=ends) as (alone,):
        yield alone


@contextlib.contextmanager
def ranks_of(
    name: str,
    folder: Path,
    precision: str,
    threads: int,
    count: int,
    *,
    ends: frozenset[int] = frozenset(),
) -> Iterator[list[Worker]]:
    """The ranks of an engine, loaded, of so many threads each; what one is asked, all have to be asked."""
    environment = {"OMP_NUM_THREADS": str(threads)}
    with contextlib.ExitStack() as stack:
        group = stack.enter_context(tempfile.TemporaryDirectory())
        ranks = [
            stack.enter_context(
                worker(name, [sys.executable, __file__, group, str(rank), str(count)], environment)
            )
            for rank in range(count)
        ]
        loaded = ask_all(
            ranks, "load", engine=name, folder=str(folder), precision=precision, ends=sorted(ends)
        )
        if loaded["threads"] != threads:
            raise RuntimeError(f"{name} has taken {loaded['threads']} threads; expected {threads}")
        yield ranks


def ask_all(ranks: list[Worker], task: str, **what: object) -> Message:
    """Ask every rank the same; what the first answers."""
    for rank in ranks:
        rank.tell(task, **what)
    answers = [rank.hear() for rank in ranks]
    return answers[0]


class _Rank:
    """What this process has loaded."""

    engine: Engine

    def __init__(self, group: Path, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self.ranks = join(
            group,
            rank=rank,
            count=count,
            device="cpu",
            start_timeout_s=_PATIENCE_S,
            collective_timeout_s=_PATIENCE_S,
        )

    def load(self, engine: str, folder: str, precision: str, ends: list[int]) -> Message:
        model = on_rank(Path(folder), precision, rank=self.rank, ranks=self.count, ends=frozenset(ends))
        self.engine = load_engine(engine, model)
        return {"threads": torch.get_num_threads()}

    def allocate(self, rows: int, positions: int) -> Message:
        self.engine.allocate(rows, positions)
        return {}

    def answer(
        self, requests: list[Mapping[str, object]], temperature: float, top_p: float, seed: int
    ) -> Message:
        """Answer batches one after the other; times in s."""
        sampling = Sampling(temperature, top_p, seed)
        asked = [BatchRequest(**request) for request in requests]  # type: ignore[arg-type]
        self.ranks.barrier()
        begin_s = time.monotonic()
        results = [self.engine.generate(request, sampling, lambda tokens: None) for request in asked]
        self.engine.synchronize()
        wall_s = time.monotonic() - begin_s
        return {
            "wall_s": wall_s,
            "phases": [asdict(phase) for result in results for phase in result.phases],
            "generated_tokens": sum(result.generated_tokens for result in results),
            "output_tokens": sum(len(row) for result in results for row in result.tokens),
        }

    def notes(self) -> Message:
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {**self.engine.notes(), "peak_gib": f"{peak_gib:.2f}"}


def _main() -> None:
    group, rank, count = sys.argv[1:]
    here = _Rank(Path(group), int(rank), int(count))
    serve({"load": here.load, "allocate": here.allocate, "answer": here.answer, "notes": here.notes})
    here.ranks.leave()


if __name__ == "__main__":
    _main()
