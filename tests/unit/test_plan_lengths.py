"""Guards what a plan expects of lengths: order statistics and cut responses, against draws."""

from __future__ import annotations

import math
import random
from functools import cache
from pathlib import Path
from statistics import fmean

import pytest

from shardwatt.datasets import TokenLengths, load_catalogue
from shardwatt.plan.lengths import Exponential, Lengths

ROOT = Path(__file__).parents[2]

#: Prompts of 10 to 310 tokens, most of them short, with a long tail; responses of 50 tokens on average.
TOKENS = TokenLengths(
    prompt_deciles=[10, 20, 25, 30, 35, 40, 45, 50, 60, 80, 310],
    prompt_tail=[110, 180, 260],
    output_mean=50.0,
    source="made up",
)
LENGTHS = Lengths.of(TOKENS)

#: The same prompts; responses whose quantiles are known, and of which none is short.
COUNTED = Lengths.of(
    TOKENS.model_copy(
        update={
            "output_deciles": [20, 30, 35, 40, 44, 48, 52, 58, 64, 75, 190],
            "output_tail": [90, 120, 150],
        }
    )
)
BOTH = pytest.mark.parametrize("lengths", [LENGTHS, COUNTED], ids=["exponential", "counted"])


@cache
def draws(rows: int, count: int = 4000, lengths: Lengths = LENGTHS) -> list[list[tuple[float, float]]]:
    """Batches of rows with the prompt and the response of each, uncut."""
    source = random.Random(7)
    return [
        [
            (lengths.prompts.quantile(source.random()), lengths.responses.quantile(source.random()))
            for _ in range(rows)
        ]
        for _ in range(count)
    ]


def test_quantiles_are_those_of_the_catalogue_with_straight_lines_between() -> None:
    assert [
        LENGTHS.prompts.quantile(share) for share in (0, 0.1, 0.5, 0.9, 0.95, 0.99, 0.999, 1)
    ] == pytest.approx([10, 20, 40, 80, 110, 180, 260, 310])
    assert LENGTHS.prompts.quantile(0.05) == pytest.approx(15)
    assert LENGTHS.prompts.quantile(0.97) == pytest.approx(145)


def test_without_a_tail_a_line_goes_to_the_longest() -> None:
    short = Lengths.of(TOKENS.model_copy(update={"prompt_tail": []}))
    assert short.prompts.quantile(0.95) == pytest.approx(195)
    assert short.prompts.mean > LENGTHS.prompts.mean


@pytest.mark.parametrize("rows", [1, 2, 8, 64, 512])
def test_the_longest_and_the_shortest_of_a_batch_are_those_of_draws(rows: int) -> None:
    batches = draws(rows, count=20_000 // rows + 200)
    longest = fmean(max(prompt for prompt, _ in batch) for batch in batches)
    shortest = fmean(min(prompt for prompt, _ in batch) for batch in batches)
    assert LENGTHS.prompts.longest(rows) == pytest.approx(longest, rel=0.04)
    assert LENGTHS.prompts.shortest(rows) == pytest.approx(shortest, rel=0.04)


def test_of_one_prompt_the_longest_is_the_mean() -> None:
    assert LENGTHS.prompts.longest(1) == pytest.approx(LENGTHS.prompts.mean)
    assert LENGTHS.prompts.shortest(1) == pytest.approx(LENGTHS.prompts.mean)
    assert LENGTHS.prompts.longest(10**6) == pytest.approx(310, abs=0.1)


def test_means_are_those_of_the_quantiles() -> None:
    places = [LENGTHS.prompts.quantile((number + 0.5) / 100_000) for number in range(100_000)]
    assert LENGTHS.prompts.mean == pytest.approx(fmean(places), rel=1e-5)
    assert LENGTHS.prompts.mean_square == pytest.approx(fmean(place**2 for place in places), rel=1e-4)


@BOTH
def test_a_cut_response_is_the_mean_of_cut_draws(lengths: Lengths) -> None:
    ends = [lengths.responses.quantile((number + 0.5) / 200_000) for number in range(200_000)]
    uncut = fmean(ends)
    for most in (1, 10, 64, 500):
        cut = [min(end, most) for end in ends]
        assert lengths.responses.cut_mean(most) == pytest.approx(fmean(cut), rel=1e-4)
        assert lengths.responses.cut_mean_square(most) == pytest.approx(
            fmean(end**2 for end in cut), rel=1e-3
        )
        assert lengths.responses.beyond(most) == pytest.approx(fmean(end > most for end in ends), abs=1e-5)
    assert lengths.responses.cut_mean(1e9) == lengths.responses.mean == pytest.approx(uncut, rel=1e-4)
    assert lengths.responses.cut_mean(0) == 0
    assert lengths.responses.beyond(1e9) == 0
    assert lengths.responses.beyond(0) == 1


def test_without_quantiles_every_token_has_the_same_chance_to_be_the_last() -> None:
    assert LENGTHS.responses.mean == 50
    assert LENGTHS.responses.quantile(0.5) == pytest.approx(50 * math.log(2))
    assert LENGTHS.responses.cut_longest(8, 1e9) == pytest.approx(50 * sum(1 / k for k in range(1, 9)))


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("most", [32, 256])
@BOTH
def test_the_longest_response_of_a_batch_is_that_of_draws(lengths: Lengths, rows: int, most: int) -> None:
    seen = fmean(max(min(end, most) for _, end in batch) for batch in draws(rows, lengths=lengths))
    assert lengths.responses.cut_longest(rows, most) == pytest.approx(seen, rel=0.03)


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("positions", [100, 400, 2000])
@pytest.mark.parametrize("stops", [True, False])
@BOTH
def test_steps_behind_the_longest_prompt_are_those_of_draws(
    lengths: Lengths, rows: int, positions: int, stops: bool
) -> None:
    cut, seen = lengths.within(positions - 1), []
    for batch in draws(rows, lengths=lengths):
        ends = [(min(prompt, positions - 1), min(prompt, positions - 1) + end) for prompt, end in batch]
        longest = max(prompt for prompt, _ in ends)
        most = min(128, positions - longest) - 1
        seen.append(min(most, max(end for _, end in ends) - longest) if stops else most)
    found = cut.steps_behind_longest(rows, 128, positions, stops=stops)
    assert found == pytest.approx(fmean(seen), rel=0.04, abs=0.5)


def test_prompts_that_are_cut_are_no_longer_than_that() -> None:
    cut = LENGTHS.within(95)
    assert [cut.prompts.quantile(share) for share in (0, 0.5, 0.9, 0.95, 1)] == pytest.approx(
        [10, 40, 80, 95, 95]
    )
    assert cut.prompts.quantile(0.925) == pytest.approx(95)
    places = [min(95, LENGTHS.prompts.quantile((number + 0.5) / 50_000)) for number in range(50_000)]
    assert cut.prompts.mean == pytest.approx(fmean(places), rel=1e-4)
    assert LENGTHS.within(310) == LENGTHS


def test_a_short_cache_cuts_the_responses_of_long_prompts() -> None:
    assert LENGTHS.output_within(64, 310 + 64) == LENGTHS.responses.cut_mean(64)
    places = [LENGTHS.prompts.quantile((number + 0.5) / 5000) for number in range(5000)]
    cut = fmean(LENGTHS.responses.cut_mean(min(64, max(0, 100 - place))) for place in places)
    assert LENGTHS.output_within(64, 100) == pytest.approx(cut, rel=0.02)
    assert LENGTHS.output_within(64, 10) == 0


@pytest.mark.parametrize(
    "name", ["alpaca", "alpaca-5000", "gsm8k", "gsm8k-test", "demo-alpaca", "demo-gsm8k"]
)
def test_the_catalogues_responses_have_the_mean_that_was_counted(name: str) -> None:
    tokens = load_catalogue(ROOT).dataset(name).tokens
    assert tokens is not None
    assert tokens.output_deciles
    assert Lengths.of(tokens).responses.mean == pytest.approx(tokens.output_mean, rel=0.03)


def test_answers_of_gsm8k_are_more_alike_than_a_constant_chance_of_the_end_makes_them() -> None:
    """Counted: 98 tokens on average, of 64 the longest some 250; with a constant chance it would be 465."""
    tokens = load_catalogue(ROOT).dataset("gsm8k").tokens
    assert tokens is not None
    assert 225 < Lengths.of(tokens).responses.cut_longest(64, 2048) < 275
    assert Exponential(98).cut_longest(64, 2048) == pytest.approx(465, abs=2)
