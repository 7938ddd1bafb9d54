"""One rank of a test: python engine_rank.py TASK FOLDER COUNT RANK OPTIONS; writes report-RANK.json."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import engine_tiny
from shardwatt.engine.model import Transformer
from shardwatt.engine.parallel import Ranks, join
from shardwatt.engine.protocol import BatchRequest, Sampling
from shardwatt.errors import CellFailure
from shardwatt.models import Checkpoint

PROMPTS = [[1, 7, 9, 250, 33], [1, 40, 41], [1, 5, 80, 81, 82, 83, 84, 11]]
GREEDY = Sampling(temperature=0, top_p=1, seed=0)
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=11)


def answer(group: Ranks, options: dict[str, Any]) -> dict[str, Any]:
    """Logits and tokens of a checkpoint, and what the ranks think of each other's."""
    kv_heads = options["kv_heads"]
    folder = Path(options["checkpoint"])
    unloaded = Transformer(engine_tiny.shape(kv_heads))
    checkpoint = Checkpoint(folder, folder / "tokenizer.model", group.count)
    engine = engine_tiny.open_engine(checkpoint, kv_heads, rank=group.rank)
    engine.allocate(len(PROMPTS), 40)
    with torch.inference_mode():
        logits = engine.model(torch.tensor([PROMPTS[0]]), 0)[0]
    request = BatchRequest(0, PROMPTS, length=20, positions=40)
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
    folder = Path(options["checkpoint"])
    checkpoint = Checkpoint(folder, folder / "tokenizer.model", group.count)
    engine = engine_tiny.open_engine(checkpoint, rank=group.rank)
    engine.allocate(len(PROMPTS), 40)
    steps = 0

    def on_step(rows: int) -> None:
        nonlocal steps
        steps += 1
        if group.rank == 1 and steps == 5:
            if options["how"] == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(options["sleep_s"])

    request = BatchRequest(0, PROMPTS, length=20, positions=40)
    began_s = time.monotonic()
    try:
        engine.generate(request, SAMPLED, on_step)
        group.barrier()
    except CellFailure as failure:
        return {"reason": failure.reason, "after_s": time.monotonic() - began_s, "message": failure.message}
    return {"reason": None}


TASKS: dict[str, Callable[[Ranks, dict[str, Any]], dict[str, Any]]] = {"answer": answer, "lose": lose}


def main() -> None:
    task, folder, count, rank, words = sys.argv[1:]
    options = json.loads(words)
    group = join(
        Path(folder),
        rank=int(rank),
        count=int(count),
        device="cpu",
        start_timeout_s=60,
        collective_timeout_s=options.get("collective_timeout_s", 60),
    )
    report = TASKS[task](group, options)
    (Path(folder) / f"report-{rank}.json").write_text(json.dumps(report))
    group.leave()


if __name__ == "__main__":
    main()
