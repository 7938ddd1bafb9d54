"""The sampler draws from exactly the nucleus, and the same token for the same row, position and logits."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling import next_tokens, row_keys, sorted_next_tokens
from shardwatt.engine.sampling.noise import GAMMA, finish, hashes, streams
from shardwatt.engine.sampling.published import in_nucleus
from shardwatt.engine.sampling.shortlist import LISTED
from shardwatt.engine.sampling.unbranched import unbranched_next_tokens

Draw = Callable[[Tensor, Sampling, Tensor, Tensor], Tensor]

DRAWS = 40_000
LOGITS = torch.linspace(3, -3, 40)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
WAYS: list[Draw] = [sorted_next_tokens, next_tokens, unbranched_next_tokens]
NAMES = ["sorted", "shortlist", "unbranched"]
every_way = pytest.mark.parametrize("draw", WAYS, ids=NAMES)
# The third compares so much at once that a processor takes long; it is held to the tokens of the other two.
both_ways_on_processors = pytest.mark.parametrize("draw", WAYS[:2], ids=NAMES[:2])


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


def keys_of(rows: int, seed: int = 4) -> Tensor:
    return row_keys(seed, [f"prompt-{row}" for row in range(rows)], "cpu")


def counts_of(draw: Draw, sampling: Sampling, logits: Tensor = LOGITS) -> list[int]:
    """Tokens of many rows at one position and of one row at many positions, half of each."""
    half = DRAWS // 2
    keys = torch.cat([keys_of(half, sampling.seed), keys_of(1, sampling.seed).expand(half)])
    positions = torch.cat([torch.full((half,), 17), torch.arange(half)])
    counts = torch.zeros(len(logits), dtype=torch.int64)
    for some in torch.split(torch.arange(DRAWS), 1000):
        drawn = draw(logits.expand(len(some), -1), sampling, keys[some], positions[some])
        counts += torch.bincount(drawn, minlength=len(logits))
    return counts.tolist()


def spread_logits(rows: int, vocab_size: int, spreads: tuple[float, ...], seed: int = 7) -> Tensor:
    """Normal logits whose spread goes round the rows: nuclei from a few tokens to most of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab_size, generator=generator)
    return logits * torch.tensor(spreads).repeat(rows)[:rows, None]


@both_ways_on_processors
@pytest.mark.parametrize(
    ("temperature", "top_p"), [(0.8, 0.95), (1.0, 0.5), (1.5, 1.0), (10.0, 0.9), (1.0, 1e-6), (0.05, 0.95)]
)
def test_draws_follow_the_exact_nucleus(draw: Draw, temperature: float, top_p: float) -> None:
    counts = counts_of(draw, Sampling(temperature, top_p, seed=4))
    expected = exact_nucleus(LOGITS.tolist(), temperature, top_p)
    assert sum(counts[token] for token in range(len(LOGITS)) if token not in expected) == 0
    if len(expected) > 1:
        assert chi_square(counts, expected) < critical(len(expected) - 1)


@both_ways_on_processors
def test_a_nucleus_wider_than_the_short_list_is_followed_too(draw: Draw) -> None:
    logits = torch.linspace(1.5, -1.5, 400)[torch.randperm(400, generator=torch.Generator().manual_seed(2))]
    expected = exact_nucleus(logits.tolist(), 0.8, 0.6)
    assert len(expected) > LISTED
    counts = counts_of(draw, Sampling(0.8, 0.6, seed=4), logits)
    assert sum(counts[token] for token in range(len(logits)) if token not in expected) == 0
    assert chi_square(counts, expected) < critical(len(expected) - 1)


def test_the_chi_square_would_notice_another_temperature() -> None:
    counts = counts_of(next_tokens, Sampling(0.8, 1.0, seed=4))
    expected = exact_nucleus(LOGITS.tolist(), 0.85, 1.0)
    assert chi_square(counts, expected) > critical(len(expected) - 1)


@pytest.mark.parametrize("vocab_size", [40, 1000, 5000, 32_021])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.8, 0.95), (1.0, 0.2), (1.0, 1.0), (0.01, 0.95)])
def test_all_ways_draw_the_same_tokens(vocab_size: int, temperature: float, top_p: float) -> None:
    logits = spread_logits(24, vocab_size, (0.3, 1.0, 3.0, 6.0, 12.0))
    sampling = Sampling(temperature, top_p, seed=3)
    for position in (0, 511):
        positions = torch.full((24,), position)
        tokens = [draw(logits, sampling, keys_of(24), positions).tolist() for draw in WAYS]
        assert tokens[0] == tokens[1] == tokens[2]


def test_all_ways_agree_where_many_tokens_are_equally_likely() -> None:
    logits = spread_logits(64, 5000, (1.0, 2.0, 4.0)).to(torch.bfloat16).to(torch.float32)
    sampling = Sampling(0.8, 0.9, seed=3)
    for position in range(8):
        positions = torch.full((64,), position)
        tokens = [draw(logits, sampling, keys_of(64), positions).tolist() for draw in WAYS]
        assert tokens[0] == tokens[1] == tokens[2]


@pytest.mark.parametrize("cached_bytes", [2, 2**17, 2**19, 2**20, 2**21, 2**23])
def test_the_way_without_branches_agrees_whatever_is_compared_at_once(
    cached_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardwatt.engine.sampling.unbranched._CACHED_BYTES", cached_bytes)
    logits, sampling = spread_logits(20, 1500, (0.3, 3.0, 12.0)), Sampling(0.8, 0.95, seed=3)
    positions = torch.arange(20)
    expected = sorted_next_tokens(logits, sampling, keys_of(20), positions)
    assert unbranched_next_tokens(logits, sampling, keys_of(20), positions).tolist() == expected.tolist()


@every_way
def test_a_token_is_the_same_in_any_batch_and_order_of_rows(draw: Draw) -> None:
    logits, keys = spread_logits(30, 9000, (0.5, 3.0, 9.0)), keys_of(30)
    positions = torch.arange(30) * 7
    sampling = Sampling(0.8, 0.95, seed=1)
    together = draw(logits, sampling, keys, positions)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(5))
    assert draw(logits[order], sampling, keys[order], positions[order]).tolist() == together[order].tolist()
    for row in range(30):
        one = slice(row, row + 1)
        assert draw(logits[one], sampling, keys[one], positions[one]).tolist() == [int(together[row])]


@every_way
def test_temperature_zero_takes_the_likeliest_and_of_equals_the_lowest_id(draw: Draw) -> None:
    sampling = Sampling(temperature=0, top_p=0.95, seed=1)
    rows = torch.stack([LOGITS, LOGITS.flip(0), torch.zeros(40), torch.arange(40.0).clamp(max=7)])
    drawn = draw(rows, sampling, keys_of(4), torch.zeros(4, dtype=torch.int64))
    assert drawn.tolist() == [*rows[:2].argmax(-1).tolist(), 0, 7]


@every_way
def test_what_may_not_be_drawn_is_not_drawn(draw: Draw) -> None:
    logits = torch.full((200, 6000), -torch.inf)
    logits[:, [11, 5999]] = 0.0
    drawn = draw(logits, Sampling(1.0, 1.0, seed=1), keys_of(200), torch.zeros(200, dtype=torch.int64))
    assert set(drawn.tolist()) == {11, 5999}


@every_way
def test_a_tiny_top_p_takes_the_likeliest(draw: Draw) -> None:
    logits = spread_logits(20, 5000, (0.1, 5.0))
    drawn = draw(logits, Sampling(10.0, 1e-6, seed=1), keys_of(20), torch.zeros(20, dtype=torch.int64))
    assert drawn.tolist() == logits.argmax(-1).tolist()


def test_the_token_that_crosses_top_p_stays() -> None:
    assert in_nucleus(torch.tensor([[0.5, 0.3, 0.2]]), 0.6).tolist() == [[True, True, False]]


def test_tokens_as_likely_as_the_last_one_stay() -> None:
    assert in_nucleus(torch.tensor([[0.4, 0.2, 0.2, 0.2]]), 0.5).tolist() == [[True] * 4]


def test_seed_prompt_and_position_decide_the_draw() -> None:
    logits, sampling = LOGITS.expand(64, -1), Sampling(1.5, 1.0, seed=1)
    positions = torch.full((64,), 9)
    drawn = next_tokens(logits, sampling, keys_of(64), positions)
    assert drawn.tolist() == next_tokens(logits, sampling, keys_of(64), positions).tolist()
    assert drawn.tolist() != next_tokens(logits, sampling, keys_of(64, seed=5), positions).tolist()
    assert drawn.tolist() != next_tokens(logits, sampling, keys_of(64), positions + 1).tolist()
    assert len(set(drawn.tolist())) > 1


def test_a_key_is_of_seed_and_prompt_id() -> None:
    digest = hashlib.sha256(b"7/alpaca-12").digest()
    assert row_keys(7, ["alpaca-12"], "cpu").tolist() == [int.from_bytes(digest[:8], "big", signed=True)]


def test_noise_in_the_logits_changes_few_tokens() -> None:
    generator = torch.Generator().manual_seed(11)
    sampling, changed, rows = Sampling(0.8, 0.95, seed=1), 0, 500
    for position in range(20):
        logits = torch.randn(rows, 2000, generator=generator)
        noisy = logits + 4e-6 * torch.randn(rows, 2000, generator=generator)
        positions = torch.full((rows,), position)
        pair = [next_tokens(values, sampling, keys_of(rows), positions) for values in (logits, noisy)]
        changed += int((pair[0] != pair[1]).sum())
    # 0.0005 % are expected, and up to 0.03 % would do; a sorted inverse of the distribution function changes
    # 2 % of them.
    assert changed <= 3


# The hash itself.


def wrapped(number: int) -> int:
    """As a signed number of 64 bits."""
    return (number + 2**63) % 2**64 - 2**63


def split_mix(state: int) -> int:
    """SplitMix64's finaliser, in whole numbers."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
    return state ^ (state >> 31)


def test_streams_are_those_of_splitmix64() -> None:
    # The sequence of seed 1234567, as in Rosetta Code, "Pseudo-random numbers/Splitmix64".
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    keys = torch.full((4,), 1234567)
    assert streams(keys, torch.arange(1, 5)).tolist() == [wrapped(number) for number in known]
    keys = keys_of(50)
    expected = [wrapped(split_mix((key + 9 * GAMMA) % 2**64)) for key in keys.tolist()]
    assert streams(keys, torch.full((50,), 9)).tolist() == expected


def test_integers_wrap_around_as_whole_numbers_modulo_two_to_the_64() -> None:
    starts, ids = keys_of(3), torch.tensor([0, 1, 31_999, 128_255])
    for start, row in zip(starts.tolist(), hashes(starts, ids).tolist(), strict=True):
        for token, found in zip(ids.tolist(), row, strict=True):
            state = wrapped(start + token * GAMMA)
            state = wrapped((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9)
            state = wrapped((state ^ (state >> 27)) * 0x94D049BB133111EB)
            assert found == state % 2**63


def uniform(rows: int, tokens: int, position: int = 3) -> Tensor:
    starts = streams(keys_of(rows), torch.full((rows,), position))
    return hashes(starts, torch.arange(tokens)).to(torch.float64) * 2.0**-63


def test_hashes_are_uniform_in_their_high_and_their_next_bits() -> None:
    values = uniform(200, 5000)
    for scale in (1, 2**10, 2**20):
        bins = ((values * scale) % 1 * 1000).long().flatten()
        counts = torch.bincount(bins, minlength=1000).tolist()
        assert chi_square(counts, dict.fromkeys(range(1000), 1e-3)) < critical(999)


@pytest.mark.parametrize("beside", ["token", "position", "row"])
def test_neighbours_are_independent(beside: str) -> None:
    one = uniform(400, 2000)
    if beside == "token":
        one, other = one[:, :-1], one[:, 1:]
    elif beside == "position":
        other = uniform(400, 2000, position=4)
    else:
        one, other = one[:-1], one[1:]
    pairs = ((one * 32).long() * 32 + (other * 32).long()).flatten()
    counts = torch.bincount(pairs, minlength=1024).tolist()
    assert chi_square(counts, dict.fromkeys(range(1024), 1 / 1024)) < critical(1023)
    correlation = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(one.numel())


def test_the_first_of_many_equal_tokens_is_each_of_them() -> None:
    """What pairs would not show: all hashes of a row together decide the winner."""
    counts = torch.zeros(1024, dtype=torch.int64)
    ids, weights = torch.arange(1024), torch.full((1000, 1024), 1 / 1024)
    for position in range(60):
        starts = streams(keys_of(1000), torch.full((1000,), position))
        counts += torch.bincount(finish(weights, starts, ids).argmax(-1), minlength=1024)
    assert chi_square(counts.tolist(), dict.fromkeys(range(1024), 1 / 1024)) < critical(1023)


def test_any_subset_of_tokens_can_be_looked_at_alone() -> None:
    starts, weights = keys_of(5), torch.softmax(spread_logits(5, 300, (1.0,)), dim=-1)
    ids = torch.stack([torch.randperm(300, generator=torch.Generator().manual_seed(row)) for row in range(5)])
    whole = finish(weights, starts, torch.arange(300))
    some = finish(weights.gather(1, ids[:, :9]), starts, ids[:, :9])
    torch.testing.assert_close(some, whole.gather(1, ids[:, :9]), rtol=1e-6, atol=0)


def test_all_times_are_finite_and_none_is_zero() -> None:
    values = finish(torch.ones(100, 5000), keys_of(100), torch.arange(5000))
    assert bool((values < 0).all())
    assert bool(values.isfinite().all())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_cuda_draws_the_same_tokens_also_in_a_graph() -> None:
    logits, keys = spread_logits(48, 32_000, (0.3, 1.0, 3.0, 6.0)), keys_of(48)
    positions, sampling = torch.arange(48), Sampling(0.8, 0.95, seed=1)
    expected = sorted_next_tokens(logits, sampling, keys, positions)
    there = [part.cuda() for part in (logits, keys, positions)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        next_tokens(there[0], sampling, *there[1:])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = next_tokens(there[0], sampling, *there[1:])
    graph.replay()
    # Softmax differs in its last place between devices.
    assert int((drawn.cpu() != expected).sum()) <= 1
