"""What the tests on NVIDIA GPUs share: tiny models, rows that end apart, how far rounding parts texts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import checkpoints_tiny
import engine_cases
import engine_tiny
from checkpoints_tiny import Kind
from engine_cases import GREEDY, PROMPTS, TOKENS
from shardwatt.engine.device import OnDevice
from shardwatt.engine.fast.loop import Fast
from shardwatt.engine.load import load_engine
from shardwatt.engine.protocol import BatchRequest, BatchResult, Engine, ModelOnRank, Sampling
from shardwatt.engine.reference import Reference
from shardwatt.engine.weights.dtypes import DTYPES

DEVICE = "cuda:0"

#: Positions that engines are given room for.
ROOM = 64

#: Positions and new tokens that are asked for: the rows end at 32, 34, 35 and 37 new tokens, where the
#: positions do.
POSITIONS = LENGTH = 40

#: Positions of graphs' buckets here: rows go from one to the next and to the one after it.
BUCKET = 16

#: Largest difference of a logit from what is exact, of the largest logit: in fp32 that of the tests on
#: processors, in 16 bits 8 of the format's last places (on processors 2.4 were seen).
BOUND = {"fp32": 1e-5, "fp16": 8 * 2.0**-10, "bf16": 8 * 2.0**-7}


class Tiny:
    """A tiny checkpoint, saved in the precision that it runs in.

    What is exact is the published loop in fp32 on a processor, with the same weights.

    Args:
        folder: gets the checkpoint.
        kind: of which shape.
        precision: of weights and runs.
    """

    def __init__(self, folder: Path, kind: Kind, precision: str) -> None:
        checkpoint, shape = checkpoints_tiny.tiny(folder / kind, kind, dtype=DTYPES[precision])
        on = engine_tiny.on_rank(checkpoint, shape, precision=precision, eos_ids=frozenset())
        exact = load_engine("reference", dataclasses.replace(on, precision="fp32"))
        assert isinstance(exact, Reference)
        self._exact = exact
        self.on: ModelOnRank = dataclasses.replace(on, device=DEVICE)

    def opened(self, name: str, **changes: object) -> Engine:
        """An engine on the device; changes: of `on`."""
        return opened(name, dataclasses.replace(self.on, **changes))  # type: ignore[arg-type]

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """The exact ones after each of tokens [R, S], [R, S, vocab_size]."""
        self._exact.allocate(*tokens.shape)
        return self._exact.model.logits(tokens, 0)

    @functools.cached_property
    def after_tokens(self) -> Tensor:
        """The exact logits after TOKENS, [R, S, vocab_size]."""
        return self.logits(TOKENS)

    def noise(self, *names: str) -> float:
        """How far the logits of these engines are from the exact ones."""
        return max(noise(self.opened(name), self.on.precision, self.after_tokens) for name in names)

    def check_same(
        self,
        expected: list[list[int]],
        found: list[list[int]],
        noise: float,
        ends: frozenset[int] = frozenset(),
    ) -> None:
        """Greedy texts are the same up to where the noise of the logits can have decided.

        A token that is said has the largest of logits that are each wrong by the noise at most: so its exact
        one is below the largest exact one by twice the noise at most.

        Args:
            expected: texts of PROMPTS.
            found: likewise.
            noise: of the logits that either was said by.
            ends: what ends a text.
        """
        for prompt, *both in zip(PROMPTS, expected, found, strict=True):
            place = engine_cases.first_difference(*both)
            if place is None:
                continue
            exact = self.logits(torch.tensor([prompt + both[0][:place]]))[0, -1]
            for text in both:
                said = text[place : place + 1] or sorted(ends)
                assert said, f"after {prompt} one text ends at {place} for no reason: {both}"
                below = float(exact.max() - exact[said].max())
                print(f"{self.on.precision}: texts part at {place}, {below / noise:.3f} of the noise")
                assert below <= 2 * noise, f"after {prompt} texts part at {place}: {both}"


@torch.inference_mode()
def noise(engine: Engine, precision: str, exact: Tensor) -> float:
    """How far an engine's logits after TOKENS are from the exact ones; no further than rounding explains.

    TOKENS are taken in at once, and one by one where an engine's single steps can be asked for logits.
    """
    assert isinstance(engine, OnDevice)
    tokens = TOKENS.to(engine.device)
    all_logits = [engine_cases.logits_of(engine, tokens)]
    if isinstance(engine, Reference | Fast):
        engine.allocate(len(PROMPTS), ROOM)
        all_logits.append(engine_cases.stepped_logits_of(engine, tokens))
    found = max(float((logits.cpu() - exact).abs().max()) for logits in all_logits)
    assert found <= BOUND[precision] * exact.abs().max()
    return found


def opened(name: str, on: ModelOnRank) -> Engine:
    """An engine with room for what is asked here."""
    engine = load_engine(name, on)
    engine.allocate(len(PROMPTS), ROOM)
    return engine


def asked(engine: Engine, length: int = LENGTH) -> BatchRequest:
    """PROMPTS; an engine that fills places anew has places for half of them."""
    refills = isinstance(engine, Fast) and engine.ended == "make room"
    return engine_tiny.ask(PROMPTS, length, POSITIONS, rows=len(PROMPTS) // 2 if refills else None)


def answer(
    engine: Engine, sampling: Sampling = GREEDY, on_step: Callable[[int], None] = lambda rows: None
) -> BatchResult:
    """What an engine makes of PROMPTS."""
    return engine.generate(asked(engine), sampling, on_step)


def warm_up(engine: Engine, sampling: Sampling = GREEDY) -> None:
    """A single new token: graphs do not wait for a step."""
    request = dataclasses.replace(asked(engine, 1), index=-1)
    engine.generate(request, sampling, lambda rows: None)
