"""Guards every engine over several NVIDIA GPUs of a node against one; skipped where there is a single one."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoints_tiny
import engine_tiny
from checkpoints_tiny import Kind
from engine_cases import GREEDY, PROMPTS, SAMPLED
from gpu_cases import DEVICE, Tiny, answer, noise, opened, warm_up
from shardwatt.engine.parallel import Ranks, join
from shardwatt.engine.protocol import ModelOnRank
from shardwatt.errors import CellFailure, Reason
from shardwatt.study import CudaGraphs

RANKS = 2

#: Engines, and whether graphs hold NCCL's collectives.
WAYS: list[tuple[str, CudaGraphs]] = [
    ("reference", "never"),
    ("reference-v2", "never"),
    ("fast", "never"),
    ("fast-drop", "never"),
    ("fast-drop", "always"),
    ("fast-refill", "always"),
    ("hf", "never"),
]

#: Longest time in s that a rank waits for the other: far below that of `together`, so that a rank that hangs
#: says so.
TIMEOUT_S = 60
SHORT_TIMEOUT_S = 10

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < RANKS, reason="fewer than two NVIDIA GPUs")


def answers(group: Ranks, on: ModelOnRank, folder: Path) -> dict[str, Any]:
    """What every engine says, and how far its logits are from the exact ones."""
    exact, report = torch.load(folder / "exact.pt"), {}
    for name, use in WAYS:
        on = dataclasses.replace(on, cuda_graphs=use)
        engine, said = opened(name, on), {}
        for kind, sampling in (("greedy", GREEDY), ("sampled", SAMPLED)):
            warm_up(engine, sampling)
            said[kind] = answer(engine, sampling).tokens
        notes = engine.notes().get("cuda_graphs", "")
        report[f"{name}, {use}"] = said | {"notes": notes, "noise": noise(engine, on.precision, exact)}
        del engine  # graphs go before the group
    group.barrier()
    group.leave()
    return report


def absence(group: Ranks, on: ModelOnRank, folder: Path) -> dict[str, Any]:
    """Rank 1 stays away in the midst of a batch; how rank 0 learns of it."""
    engine = opened("fast-drop", dataclasses.replace(on, cuda_graphs="always"))
    warm_up(engine)
    steps = 0

    def on_step(rows: int) -> None:
        nonlocal steps
        steps += 1
        if group.rank == 1 and steps == 5:
            while not (folder / "report-0.json").is_file():
                time.sleep(0.1)
            os._exit(0)

    try:
        answer(engine, on_step=on_step)
    except CellFailure as failure:
        return {"reason": failure.reason, "message": failure.message}
    return {}


TASKS: dict[str, tuple[float, Callable[[Ranks, ModelOnRank, Path], dict[str, Any]]]] = {
    "answers": (TIMEOUT_S, answers),
    "absence": (SHORT_TIMEOUT_S, absence),
}


def be_rank(task: str, folder: Path, kind: Kind, precision: str, rank: int) -> None:
    """Meet the other rank, do the task, report, and go: where a step hangs, nothing else would end."""
    device = f"cuda:{rank}"
    timeout_s, run = TASKS[task]
    group = join(
        folder, rank=rank, count=RANKS, device=device, start_timeout_s=60, collective_timeout_s=timeout_s
    )
    checkpoint = engine_tiny.saved(folder / kind)
    on = engine_tiny.on_rank(
        checkpoint,
        checkpoints_tiny.SHAPES[kind],
        precision=precision,
        rank=rank,
        ranks=RANKS,
        eos_ids=frozenset(),
    )
    on = dataclasses.replace(on, device=device, collective_timeout_s=timeout_s)
    unfinished = folder / f".report-{rank}.json"
    unfinished.write_text(json.dumps(run(group, on, folder)))
    unfinished.rename(folder / f"report-{rank}.json")
    sys.stdout.flush()
    os._exit(0)


def together(task: str, folder: Path, kind: Kind, precision: str) -> list[Any]:
    """What each rank reports; None of one that has nothing to say."""
    words = [sys.executable, __file__, task, str(folder), kind, precision]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ranks = [subprocess.Popen([*words, str(rank)], env=environment) for rank in range(RANKS)]
    try:
        for one in ranks:
            assert one.wait(timeout=300) == 0
    finally:
        for one in ranks:
            one.kill()
    files = [folder / f"report-{rank}.json" for rank in range(RANKS)]
    return [json.loads(file.read_text()) if file.is_file() else None for file in files]


@pytest.mark.parametrize(("kind", "precision"), [("llama1", "fp16"), ("llama3", "fp32")])
def test_every_engine_says_over_several_gpus_what_it_says_on_one(
    tmp_path: Path, kind: Kind, precision: str
) -> None:
    (tmp_path / "group").mkdir()
    alone = join(
        tmp_path / "group", rank=0, count=1, device=DEVICE, start_timeout_s=60, collective_timeout_s=60
    )
    try:
        tiny = Tiny(tmp_path, kind, precision)
        torch.save(tiny.after_tokens, tmp_path / "exact.pt")
        reports = together("answers", tmp_path, kind, precision)
        for (name, use), (way, said), (_, other) in zip(
            WAYS, reports[0].items(), reports[1].items(), strict=True
        ):
            assert said == other, way
            if use == "always":
                assert "captured" in said["notes"], way
                assert "after the warm-up" not in said["notes"], way
            single = tiny.opened(name)
            noises = max(said["noise"], tiny.noise(name))
            tiny.check_same(answer(single).tokens, said["greedy"], noises)
            if precision == "fp32" and name != "hf":
                expected = answer(single, SAMPLED).tokens
                same = sum(one == two for one, two in zip(expected, said["sampled"], strict=True))
                assert same >= len(PROMPTS) - 1, way
    finally:
        alone.leave()


def test_a_gpu_that_stays_away_from_a_graphs_collective_is_told_in_time(tmp_path: Path) -> None:
    checkpoints_tiny.tiny(tmp_path / "llama1")
    report, _ = together("absence", tmp_path, "llama1", "fp32")
    assert report["reason"] == Reason.COLLECTIVE_TIMEOUT
    print(report["message"])


if __name__ == "__main__":
    be_rank(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))  # type: ignore[arg-type]
