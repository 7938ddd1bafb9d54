"""In fp32 every engine computes what transformers does with the same weights, and says the same text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import engine_tiny
from checkpoints_tiny import SHAPES, Kind
from engine_cases import (
    GREEDY,
    POSITIONS,
    PROMPTS,
    SAMPLED,
    TOKENS,
    Case,
    answers,
    first_difference,
    logits_of,
    off,
    opened,
    stepped_logits_of,
    top_two_apart,
)
from shardwatt.engines import MODEL_ENGINES
from shardwatt.models import Checkpoint, Layout

#: Of the largest logit.
BOUND = 1e-5

#: All prompts, and new tokens of each.
ASKED = (len(PROMPTS), 24)


class Tiny:
    """A kind of tiny checkpoint in both layouts, and transformers' own model of it."""

    def __init__(self, kind: Kind, root: Path) -> None:
        self.kind = kind
        layouts: tuple[Layout, ...] = ("meta", "huggingface")
        self.saved: dict[Layout, Checkpoint] = {
            layout: Case(kind, layout, 1).write(root) for layout in layouts
        }
        self.exact = LlamaForCausalLM.from_pretrained(
            self.saved["huggingface"].folder, dtype=torch.float32, attn_implementation="eager"
        )

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> Tensor:
        """Of transformers, [R, S, vocab_size]."""
        output: Tensor = self.exact(tokens).logits
        return output


@pytest.fixture(scope="module", params=SHAPES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    root = tmp_path_factory.mktemp(request.param)
    with engine_tiny.alone(root / "group"):
        yield Tiny(request.param, root)


@pytest.mark.parametrize("layout", ["meta", "huggingface"])
@pytest.mark.parametrize("name", ["reference", "fast", "hf"])
def test_logits_equal_those_of_transformers(tiny: Tiny, name: str, layout: Layout) -> None:
    engine = opened(name, tiny.saved[layout], tiny.kind)
    assert off(logits_of(engine, TOKENS), tiny.logits(TOKENS)) <= BOUND


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_step_by_step_equals_prefill(tiny: Tiny, name: str) -> None:
    engine = opened(name, tiny.saved["meta"], tiny.kind)
    whole = logits_of(engine, TOKENS)
    engine.allocate(len(PROMPTS), POSITIONS)
    assert off(stepped_logits_of(engine, TOKENS), whole) <= 3e-6


def test_greedy_text_is_the_same_in_every_engine(tiny: Tiny) -> None:
    # Ends are chosen among what is said, so that rows end at different places and loops stop or refill.
    endless = answers(opened("reference", tiny.saved["meta"], tiny.kind), "reference", GREEDY, *ASKED)
    ends = {endless[0][4], endless[1][13]}
    texts = {
        name: answers(opened(name, tiny.saved["meta"], tiny.kind, eos_ids=ends), name, GREEDY, *ASKED)
        for name in MODEL_ENGINES
    }
    assert len({len(text) for text in texts["reference"]}) > 1
    places = close = 0
    for row, (prompt, text) in enumerate(zip(PROMPTS, texts["reference"], strict=True)):
        apart = top_two_apart(tiny.logits, prompt, text)
        places, close = places + len(apart), close + sum(gap <= BOUND for gap in apart)
        for name in MODEL_ENGINES:
            place = first_difference(text, texts[name][row])
            assert place is None or apart[place] <= BOUND, f"{name}, row {row}, token {place}"
    print(f"{tiny.kind}: of {places} tokens, {close} with the likeliest two within the bound")


@pytest.mark.parametrize("name", ["fast", "fast-drop", "fast-refill"])
def test_sampled_text_is_the_references(tiny: Tiny, name: str) -> None:
    # Noise of the logits may part a text once in many thousand tokens; each has its own random numbers.
    reference = answers(opened("reference", tiny.saved["meta"], tiny.kind), "reference", SAMPLED, *ASKED)
    texts = answers(opened(name, tiny.saved["meta"], tiny.kind), name, SAMPLED, *ASKED)
    same = sum(one == other for one, other in zip(reference, texts, strict=True))
    print(f"{tiny.kind}, {name}: {same} of {len(PROMPTS)} sampled texts as the reference's")
    assert same >= len(PROMPTS) - 1
