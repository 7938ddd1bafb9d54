"""Sampled tokens depend on logits, the prompt's key and the position: not on the batch or the engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import engine_tiny
from engine_cases import (
    POSITIONS,
    PROMPTS,
    SAMPLED,
    TOKENS,
    Case,
    at_most,
    drawn,
    expected_to_differ,
    logits_of,
    opened,
    stepped_logits_of,
)
from shardwatt.engine.protocol import BatchRequest, Engine
from shardwatt.models import Checkpoint

REPEATS = 200
LENGTH = 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    root = tmp_path_factory.mktemp("sampled")
    with engine_tiny.alone(root / "group"):
        yield Case("llama2-70b", "meta", 1).write(root)


def answer(engine: Engine, prompts: list[int]) -> dict[int, list[int]]:
    """Texts of some of PROMPTS, in this order, each under its own name."""
    names = [f"p{prompt}" for prompt in prompts]
    tokens = [PROMPTS[prompt] for prompt in prompts]
    request = BatchRequest(0, names, tokens, LENGTH, POSITIONS, min(2, len(prompts)))
    texts = engine.generate(request, SAMPLED, lambda rows: None).tokens
    return dict(zip(prompts, texts, strict=True))


@pytest.mark.parametrize("name", ["fast", "fast-drop", "fast-refill"])
def test_a_prompts_text_is_the_same_in_every_batch(checkpoint: Checkpoint, name: str) -> None:
    engine = opened(name, checkpoint, "llama2-70b")
    whole = answer(engine, [0, 1, 2, 3])
    others = [answer(engine, prompts) for prompts in ([3, 2, 1, 0], [2, 0], [1], [3, 1, 0])]
    texts = [(whole[prompt], text) for other in others for prompt, text in other.items()]
    same = sum(one == other for one, other in texts)
    print(f"{name}: {same} of {len(texts)} texts the same in another batch")
    # Noise of the logits may part a text once in many thousand tokens.
    assert same >= len(texts) - 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["reference", "fast"])
def test_tokens_of_another_batch_differ_no_more_than_the_noise_of_the_logits_explains(
    checkpoint: Checkpoint, name: str, precision: str
) -> None:
    engine = opened(name, checkpoint, "llama2-70b", precision=precision)
    batch = torch.cat([TOKENS, TOKENS.flip(1)])
    together, alone = stepped_logits_of(engine, batch)[:1], stepped_logits_of(engine, batch[:1])
    compare(f"{name}, {precision}, batch of 4 and 1", together, alone)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tokens_of_another_engine_differ_no_more_than_the_noise_of_the_logits_explains(
    checkpoint: Checkpoint, precision: str
) -> None:
    logits = [
        logits_of(opened(name, checkpoint, "llama2-70b", precision=precision), TOKENS)
        for name in ("reference", "fast")
    ]
    compare(f"reference and fast, {precision}", *logits)


def compare(what: str, one: Tensor, other: Tensor) -> None:
    tokens = drawn(one, REPEATS)
    differ, draws = int((tokens != drawn(other, REPEATS)).sum()), tokens.numel()
    expected = expected_to_differ(one, other, REPEATS)
    noise = float((one - other).abs().max())
    print(
        f"{what}: {1 - differ / draws:.5f} of {draws} sampled tokens equal, "
        f"{1 - expected / draws:.5f} expected of logits within {noise:.1e}"
    )
    assert differ <= at_most(expected)
