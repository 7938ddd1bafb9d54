"""What the tests of engine hf let it compute elsewhere: as one of several ranks, or without a network."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch

import checkpoints_tiny
import engine_tiny
from shardwatt.engine.hf import load
from shardwatt.engine.parallel import Ranks
from shardwatt.engine.protocol import ModelOnRank, Sampling
from shardwatt.models import Checkpoint, Layout

PROMPTS = [[1, 7, 9, 250, 33], [1, 40, 41], [1, 5, 80, 81, 82, 83, 84, 11]]
GREEDY = Sampling(temperature=0, top_p=1, seed=0)
SAMPLED = Sampling(temperature=0.8, top_p=0.95, seed=11)

#: Events of sys.audit that mean the network, but for looking up one's own name.
_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"}


def tiny_model(
    folder: Path, kind: checkpoints_tiny.Kind = "llama1", layout: Layout = "meta", *, precision: str = "fp32"
) -> ModelOnRank:
    """A tiny checkpoint that is made, for one rank and without an end of sequence."""
    checkpoint, shape = checkpoints_tiny.tiny(folder, kind, layout)
    return engine_tiny.on_rank(checkpoint, shape, precision=precision, eos_ids=frozenset())


def options(model: ModelOnRank, kind: checkpoints_tiny.Kind) -> dict[str, Any]:
    """What another process needs to open a tiny model."""
    found = model.checkpoint
    return {"kind": kind, "checkpoint": str(found.folder), "layout": found.layout, "weights": found.weights}


def _model(given: dict[str, Any]) -> ModelOnRank:
    folder = Path(given["checkpoint"])
    checkpoint = Checkpoint(folder, folder / "unread", given["layout"], tuple(given["weights"]))
    return engine_tiny.on_rank(checkpoint, checkpoints_tiny.SHAPES[given["kind"]], eos_ids=frozenset())


def split(group: Ranks, given: dict[str, Any]) -> dict[str, Any]:
    """Answers, last logits and number of weights of one of several ranks."""
    from shardwatt.engine.hf.generate import HuggingFace

    engine = load(dataclasses.replace(_model(given), rank=group.rank, ranks=group.count))
    assert isinstance(engine, HuggingFace)
    request = engine_tiny.ask(PROMPTS, 20)
    local = [getattr(part, "to_local", lambda part=part: part)() for part in engine.causal_lm.parameters()]
    with torch.inference_mode():
        logits = engine.causal_lm(input_ids=torch.tensor([PROMPTS[2]])).logits[0, -1]
    return {
        "greedy": engine.generate(request, GREEDY, lambda rows: None).tokens,
        "sampled": engine.generate(request, SAMPLED, lambda rows: None).tokens,
        "logits": logits.tolist(),
        "held": sum(part.numel() for part in local),
    }


def main() -> None:
    """Load and answer while every look at the network is noted and refused; prints what was noted."""
    touched: list[str] = []

    def guard(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _NETWORK:
            touched.append(f"{event} {arguments}")
            raise PermissionError(f"the network was asked: {event}")

    given = json.loads(sys.argv[1])
    sys.addaudithook(guard)
    engine = load(_model(given))
    engine.generate(engine_tiny.ask(PROMPTS, 8), SAMPLED, lambda rows: None)
    print(json.dumps(touched))


if __name__ == "__main__":
    main()
