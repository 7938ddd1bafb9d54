"""The ranks of tests: for each line of JSON, [task, folder, count, options], each writes report-RANK.json.

One process imports everything and forks the ranks before any of them has a thread: sixteen imports of
torch would take longer than the tests. It says `done` when all ranks of a line have ended.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

import engine_cases
import engine_tiny
import hf_case
from shardwatt.engine.model import Transformer
from shardwatt.engine.parallel import Ranks, join
from shardwatt.engine.protocol import Sampling
from shardwatt.errors import CellFailure

PROMPTS = [[1, 7, 9, 250, 33], [1, 40, 41], [1, 5, 80, 81, 82, 83, 84, 11]]
GREEDY = Sampling(temperature=0, top_p=1, seed=0)
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=11)


def answer(group: Ranks, options: dict[str, Any]) -> dict[str, Any]:
    """Logits and tokens of a checkpoint, and what the ranks think of each other's."""
    kv_heads = options["kv_heads"]
    unloaded = Transformer(engine_tiny.shape(kv_heads))
    checkpoint = engine_tiny.saved(Path(options["checkpoint"]), options["saved"])
    engine = engine_tiny.open_engine(checkpoint, kv_heads, rank=group.rank, ranks=group.count)
    engine.allocate(len(PROMPTS), 40)
    with torch.inference_mode():
        logits = engine.model(torch.tensor([PROMPTS[0]]), 0)[0]
    request = engine_tiny.ask(PROMPTS, 20, 40)
    greedy = engine.generate(request, GREEDY, lambda rows: None).tokens
    sampled = engine.generate(request, SAMPLED, lambda rows: None).tokens
    group.barrier()
    return {
        "unloaded_on_meta": all(parameter.is_meta for parameter in unloaded.parameters()),
        "logits": logits.tolist(),
        "greedy": greedy,
        "sampled": sampled,
        "same": group.all_agree(repr(sampled)),
        "different": group.all_agree(f"rank {group.rank}"),
    }


def lose(group: Ranks, options: dict[str, Any]) -> dict[str, Any]:
    """Rank 1 leaves in mid-batch, in one way or another; how the others learn of it."""
    checkpoint = engine_tiny.saved(Path(options["checkpoint"]), group.count)
    engine = engine_tiny.open_engine(checkpoint, rank=group.rank, ranks=group.count)
    engine.allocate(len(PROMPTS), 40)
    steps = 0

    def on_step(rows: int) -> None:
        nonlocal steps
        steps += 1
        if group.rank == 1 and steps == 5:
            if options["how"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            while not Path(options["until"]).exists():
                time.sleep(0.05)

    request = engine_tiny.ask(PROMPTS, 20, 40)
    began_s = time.monotonic()
    try:
        engine.generate(request, SAMPLED, on_step)
        group.barrier()
    except CellFailure as failure:
        return {"reason": failure.reason, "after_s": time.monotonic() - began_s, "message": failure.message}
    return {"reason": None}


TASKS: dict[str, Callable[[Ranks, dict[str, Any]], dict[str, Any]]] = {
    "answer": answer,
    "lose": lose,
    "compute": engine_cases.compute,
    "hf": hf_case.split,
}


def run(task: str, folder: Path, rank: int, count: int, options: dict[str, Any]) -> None:
    """Meet the other ranks, do the task, and report."""
    group = join(
        folder,
        rank=rank,
        count=count,
        device="cpu",
        start_timeout_s=engine_tiny.PATIENCE_S,
        collective_timeout_s=options.get("collective_timeout_s", engine_tiny.PATIENCE_S),
    )
    report = TASKS[task](group, options)
    unfinished = folder / f".report-{rank}.json"
    unfinished.write_text(json.dumps(report))
    unfinished.rename(folder / f"report-{rank}.json")
    group.leave()


def _be_rank(rank: int, task: str, folder: Path, count: int, options: dict[str, Any]) -> NoReturn:
    try:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what is said there is the forking process's
        run(task, folder, rank, count, options)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # taking down the interpreter costs a rank a second


def main() -> None:
    for line in sys.stdin:
        task, folder, count, options = json.loads(line)
        if task == "hf" or "hf" in options.get("engines", ()):
            importlib.import_module("shardwatt.engine.hf.generate")  # transformers, once for all ranks
        children = []
        for rank in range(count):
            child = os.fork()
            if child == 0:
                _be_rank(rank, task, Path(folder), count, options)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        print("done", flush=True)


if __name__ == "__main__":
    main()
