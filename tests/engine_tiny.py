"""A tiny LLaMA for the tests of the engine, and processes that run it as ranks."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from shardwatt.architectures import Architecture, from_params
from shardwatt.engine.make_weights import make_weights
from shardwatt.engine.parallel import Ranks, join
from shardwatt.engine.protocol import BatchRequest, ModelOnRank
from shardwatt.engine.reference import Reference, load
from shardwatt.models import SHARD_FILE, Checkpoint, Recipe

EOS = 2

#: Longest time in s that ranks wait for each other, and a test for them, on a busy machine.
PATIENCE_S = 600.0

RECIPE = Recipe(
    about="tiny",
    dim=64,
    n_layers=2,
    n_heads=4,
    multiple_of=32,
    context=128,
    vocab_size=300,
    mean_response_tokens=8,
    shards=[1],
    seed=3,
)


def shape(kv_heads: int = 4) -> Architecture:
    params = RECIPE.model_dump(include={"dim", "n_layers", "n_heads", "multiple_of", "vocab_size"})
    return from_params({**params, "n_kv_heads": kv_heads, "max_seq_len": RECIPE.context})


def make(folder: Path, shards: int = 1, kv_heads: int = 4) -> Checkpoint:
    """Make the tiny model; not while this process is in a group."""
    make_weights(RECIPE, shape(kv_heads), shards, folder, EOS)
    return saved(folder, shards)


def saved(folder: Path, shards: int = 1) -> Checkpoint:
    """A model that `make` made."""
    files = tuple(SHARD_FILE.format(rank=rank) for rank in range(shards))
    return Checkpoint(folder, folder / "tokenizer.model", "meta", files)


@contextmanager
def alone(folder: Path) -> Iterator[Ranks]:
    """A group of this process."""
    folder.mkdir()
    ranks = join(
        folder, rank=0, count=1, device="cpu", start_timeout_s=PATIENCE_S, collective_timeout_s=PATIENCE_S
    )
    try:
        yield ranks
    finally:
        ranks.leave()


def on_rank(
    checkpoint: Checkpoint,
    architecture: Architecture | None = None,
    *,
    precision: str = "fp32",
    rank: int = 0,
    ranks: int = 1,
    eos_ids: frozenset[int] = frozenset({EOS}),
) -> ModelOnRank:
    """What an engine loads on the CPU; the tiny model's shape unless another is given."""
    architecture = architecture or shape()
    return ModelOnRank(
        architecture=architecture,
        checkpoint=checkpoint,
        precision=precision,
        device="cpu",
        rank=rank,
        ranks=ranks,
        vocab_size=architecture.vocab_size,
        eos_ids=eos_ids,
    )


def open_engine(
    checkpoint: Checkpoint,
    kv_heads: int = 4,
    *,
    precision: str = "fp32",
    rank: int = 0,
    ranks: int = 1,
    eos_ids: frozenset[int] = frozenset({EOS}),
) -> Reference:
    """Engine `reference` with the tiny model."""
    model = on_rank(checkpoint, shape(kv_heads), precision=precision, rank=rank, ranks=ranks, eos_ids=eos_ids)
    return load(model)


def ask(
    prompts: list[list[int]], length: int, positions: int = 64, first: int = 0, rows: int | None = None
) -> BatchRequest:
    """A batch of prompts that are named p0, p1, … from the first one on."""
    names = [f"p{first + row}" for row in range(len(prompts))]
    return BatchRequest(0, names, prompts, length, positions, rows or len(prompts))


def off(logits: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest logit; ids 0 and 1 left out, which are made very unlikely."""
    return float((logits - exact)[..., 2:].abs().max() / exact[..., 2:].abs().max())


def run_ranks(folder: Path, task: str, count: int, **options: object) -> list[Any]:
    """Run a task of engine_rank.py in so many processes; what each one reported, None where it died."""
    folder.mkdir()
    host = _host()
    assert host.stdin is not None
    assert host.stdout is not None
    host.stdin.write(json.dumps([task, str(folder), count, options]) + "\n")
    host.stdin.flush()
    ended, _, _ = select.select([host.stdout], [], [], PATIENCE_S)
    if not ended or host.stdout.readline() != "done\n":
        _host.cache_clear()
        _stop(host)
        raise RuntimeError(
            f"{count} ranks, {task}: not all ended in {PATIENCE_S:g} s, or what forks them has"
        )
    files = [folder / f"report-{rank}.json" for rank in range(count)]
    return [json.loads(file.read_text()) if file.is_file() else None for file in files]


@cache
def _host() -> subprocess.Popen[str]:
    """What forks the ranks: importing what they need takes seconds, and is done once for all tests here."""
    host = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("engine_rank.py"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(_stop, host)
    return host


def _stop(host: subprocess.Popen[str]) -> None:
    """End it with all of its ranks."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(host.pid, signal.SIGKILL)
    with host:  # waits, and closes its pipes
        pass
