"""Guards how tokens are drawn on GPUs: in parts that stay in the cache, which change no token."""

from __future__ import annotations

import pytest
import torch

from shardwatt.engine.protocol import Sampling
from shardwatt.engine.sampling import row_keys, sorted_next_tokens, unbranched
from shardwatt.engine.sampling.unbranched import unbranched_next_tokens

SAMPLING = Sampling(temperature=0.8, top_p=0.95, seed=3)


@pytest.mark.parametrize("rows", [1, 6, 23])
def test_parts_change_no_token(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    logits = 3 * torch.randn(rows, 1000, generator=torch.Generator().manual_seed(rows))
    keys, positions = row_keys(3, [str(row) for row in range(rows)], "cpu"), torch.arange(rows)
    expected = sorted_next_tokens(logits, SAMPLING, keys, positions)
    assert torch.equal(unbranched_next_tokens(logits, SAMPLING, keys, positions), expected)
    monkeypatch.setattr(unbranched, "_CACHED_BYTES", 40_000)  # of four rows
    assert unbranched.rows_at_a_time(rows, 1000) <= 4
    assert torch.equal(unbranched_next_tokens(logits, SAMPLING, keys, positions), expected)


@pytest.mark.parametrize("rows", [1, 7, 64, 256])
@pytest.mark.parametrize("vocab_size", [300, 32_000, 128_256])
def test_a_part_and_what_it_is_compared_with_fit_into_the_cache(rows: int, vocab_size: int) -> None:
    together = unbranched.rows_at_a_time(rows, vocab_size)
    assert 1 <= together <= rows
    bits = unbranched._bits_at_once(together * vocab_size)
    # A number, and for each that it is compared with a truth value and a product.
    assert together * vocab_size * (4 + 5 * (2**bits - 1)) <= 40e6  # an A100's cache
    assert rows < 2 * together or (together + 1) * vocab_size * 9 > 16 * 2**20  # no smaller than need be
