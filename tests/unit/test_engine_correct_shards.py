"""Ranks together compute what one does alone, from checkpoints saved in any other number of shards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import engine_tiny
from checkpoints_tiny import Kind
from engine_cases import (
    GREEDY,
    PROMPTS,
    TOKENS,
    Case,
    answers,
    at_most,
    drawn,
    expected_to_differ,
    first_difference,
    logits_of,
    off,
    opened,
    top_two_apart,
)

#: Of the largest logit.
BOUND = 1e-5

REPEATS = 50

#: Prompts that so many ranks answer, and new tokens of each: sixteen processes on two cores are slow.
ASKED = {2: (4, 6), 4: (4, 3), 8: (2, 3), 16: (2, 2)}

#: What so many ranks load. Two kinds have 4 key and value heads: 8 and 16 ranks replicate them.
CASES = {
    2: [Case("llama1", "meta", 4), Case("llama3", "huggingface", 2)],
    4: [Case("llama2-70b", "meta", 8), Case("llama3", "meta", 1)],
    8: [Case("llama2-70b", "meta", 2), Case("llama2-70b", "huggingface", 3)],
    16: [Case("llama1", "meta", 1), Case("llama3", "huggingface", 1)],
}
ENGINES = {
    2: ["reference", "reference-v2", "fast", "fast-drop", "fast-refill", "hf"],
    4: ["reference", "fast"],
    8: ["reference", "fast"],
    16: ["reference", "fast"],
}


class Single(NamedTuple):
    """What one rank computes."""

    logits: Tensor
    greedy: list[list[int]]
    apart: list[list[float]]
    """How far the two likeliest tokens are apart at each of the greedy text."""
    sampled: Tensor
    """Drawn from the logits, REPEATS times at every place."""


class Alone:
    """What one rank computes, of each kind and engine, from a checkpoint in one file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[tuple[Kind, str], Single] = {}

    def of(self, kind: Kind, name: str) -> Single:
        if (kind, name) not in self.known:
            folder = self.root / f"{name}-{kind}"
            checkpoint = Case(kind, "meta", 1).write(folder)
            with engine_tiny.alone(folder / "group"):
                engine = opened(name, checkpoint, kind)
                greedy = answers(engine, name, GREEDY, *ASKED[2])
                apart = [
                    top_two_apart(partial(logits_of, engine), prompt, text)
                    for prompt, text in zip(PROMPTS, greedy, strict=True)
                ]
                logits = logits_of(engine, TOKENS)
                self.known[kind, name] = Single(logits, greedy, apart, drawn(logits, REPEATS))
        return self.known[kind, name]


class Run:
    """What several ranks reported."""

    def __init__(self, count: int, root: Path) -> None:
        self.count = count
        self.folder = root / f"{count}-ranks"
        self.folder.mkdir()
        cases = [
            {
                "kind": case.kind,
                "layout": case.layout,
                "saved": case.saved,
                "weights": list(case.write(self.folder).weights),
            }
            for case in CASES[count]
        ]
        self.reports: list[dict[str, Any]] = engine_tiny.run_ranks(
            self.folder / "run",
            "compute",
            count,
            root=str(self.folder),
            cases=cases,
            engines=ENGINES[count],
            asked=ASKED[count],
        )

    def results(self) -> Iterator[tuple[Case, str, dict[str, Any]]]:
        """By case and engine what rank 0 found."""
        assert all(self.reports), "a rank died: its words stand above"
        for case in CASES[self.count]:
            for name in ENGINES[self.count]:
                yield case, name, self.reports[0][f"{case.name}-{name}"]

    def logits(self, case: Case, name: str) -> Tensor:
        loaded: Tensor = torch.load(self.folder / f"{case.name}-{name}.pt", weights_only=True)
        return loaded


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    return Alone(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module", params=CASES, ids=lambda count: f"{count} ranks")
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(request.param, tmp_path_factory.mktemp("ranks"))


def test_logits_of_several_ranks_are_those_of_one(run: Run, alone: Alone) -> None:
    for case, name, _ in run.results():
        apart = off(run.logits(case, name), alone.of(case.kind, name).logits)
        print(f"{run.count} ranks, {case.name}, {name}: logits within {apart:.1e}")
        assert apart <= BOUND


def test_every_rank_has_the_same_logits_and_tokens(run: Run) -> None:
    for case, name, result in run.results():
        for which in ("logits", "greedy", "sampled"):
            assert result[f"same_{which}"], f"{case.name}, {name}: {which}"


def test_greedy_text_of_several_ranks_is_that_of_one(run: Run, alone: Alone) -> None:
    prompts, length = ASKED[run.count]
    places = close = 0
    for case, name, result in run.results():
        single = alone.of(case.kind, name)
        assert len(result["greedy"]) == prompts
        for row, other in enumerate(result["greedy"]):
            text, apart = single.greedy[row][:length], single.apart[row][:length]
            places, close = places + len(apart), close + sum(gap <= BOUND for gap in apart)
            place = first_difference(text, other)
            assert place is None or apart[place] <= BOUND, f"{case.name}, {name}, token {place}"
    print(f"{run.count} ranks: of {places} tokens, {close} with the likeliest two within the bound")


def test_sampled_tokens_differ_no_more_than_the_noise_of_the_logits_explains(run: Run, alone: Alone) -> None:
    for case, name, _ in run.results():
        single, logits = alone.of(case.kind, name), run.logits(case, name)
        differ, draws = int((drawn(logits, REPEATS) != single.sampled).sum()), single.sampled.numel()
        rate = 1 - differ / draws
        print(f"{run.count} ranks, {case.name}, {name}: {rate:.5f} of {draws} sampled tokens equal")
        assert differ <= at_most(expected_to_differ(logits, single.logits, REPEATS))
