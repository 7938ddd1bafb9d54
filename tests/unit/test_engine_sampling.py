"""The sampler draws from exactly the nucleus, and the same tokens from the same seed."""

from __future__ import annotations

import math

import pytest
import torch

from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling import batch_generator, next_tokens, nucleus

CPU = torch.device("cpu")
DRAWS = 40_000
LOGITS = torch.linspace(3, -3, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]


def exact_nucleus(logits: list[float], temperature: float, top_p: float) -> dict[int, float]:
    """Probability of each id, by the definition: likelier ones together at most top_p."""
    highest = max(logits)
    weights = [math.exp((logit - highest) / temperature) for logit in logits]
    probabilities = [weight / sum(weights) for weight in weights]
    kept: dict[int, float] = {}
    likelier = 0.0
    for token in sorted(range(len(logits)), key=lambda token: -probabilities[token]):
        if likelier > top_p:
            break
        kept[token] = probabilities[token]
        likelier += probabilities[token]
    return {token: share / sum(kept.values()) for token, share in kept.items()}


def chi_square(counts: list[int], expected: dict[int, float]) -> float:
    draws = sum(counts)
    return sum((counts[token] - draws * p) ** 2 / (draws * p) for token, p in expected.items())


def critical(degrees: int) -> float:
    """Chi-square exceeded once in 10,000 times; Wilson and Hilferty 1931, normal quantile 3.719."""
    part = 2 / (9 * degrees)
    return degrees * (1 - part + 3.719 * math.sqrt(part)) ** 3


def counts_of(sampling: Sampling) -> list[int]:
    drawn = next_tokens(LOGITS.expand(DRAWS, -1), sampling, batch_generator(sampling.seed, 0, CPU))
    return torch.bincount(drawn, minlength=len(LOGITS)).tolist()


@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.95), (1.0, 0.5), (1.5, 1.0)])
def test_draws_follow_the_exact_nucleus(temperature: float, top_p: float) -> None:
    counts = counts_of(Sampling(temperature, top_p, seed=4))
    expected = exact_nucleus(LOGITS.tolist(), temperature, top_p)
    assert sum(counts[token] for token in range(len(LOGITS)) if token not in expected) == 0
    assert chi_square(counts, expected) < critical(len(expected) - 1)


def test_the_chi_square_would_notice_another_temperature() -> None:
    counts = counts_of(Sampling(0.8, 1.0, seed=4))
    expected = exact_nucleus(LOGITS.tolist(), 0.85, 1.0)
    assert chi_square(counts, expected) > critical(len(expected) - 1)


def test_the_token_that_crosses_top_p_stays() -> None:
    kept, ids = nucleus(torch.tensor([[0.2, 0.5, 0.3]]), 0.6)
    assert ids.tolist() == [[1, 2, 0]]
    assert kept.tolist() == [pytest.approx([0.625, 0.375, 0.0])]


def test_the_likeliest_token_always_stays() -> None:
    kept, _ = nucleus(torch.tensor([[0.01, 0.99]]), 0.1)
    assert kept.tolist() == [[1.0, 0.0]]


def test_temperature_zero_takes_the_likeliest() -> None:
    sampling = Sampling(temperature=0, top_p=0.95, seed=1)
    rows = torch.stack([LOGITS, LOGITS.flip(0)])
    assert next_tokens(rows, sampling, batch_generator(1, 0, CPU)).tolist() == rows.argmax(-1).tolist()


def test_the_seed_and_the_batch_decide_the_draw() -> None:
    def draw(seed: int, batch: int) -> list[int]:
        rows = LOGITS.expand(32, -1)
        return next_tokens(rows, Sampling(1.0, 1.0, seed), batch_generator(seed, batch, CPU)).tolist()

    assert draw(1, 0) == draw(1, 0)
    draws = [draw(1, 0), draw(1, 1), draw(1, -1), draw(2, 0), draw(11, 0)]
    assert len({tuple(tokens) for tokens in draws}) == len(draws)


def test_seeds_and_batches_that_read_alike_do_not_meet() -> None:
    # "1" + "12" and "11" + "2" would be the same text without a mark between them.
    assert batch_generator(1, 12, CPU).initial_seed() != batch_generator(11, 2, CPU).initial_seed()
