"""Guards attention: its ways agree, float16 holds the scores, torch's operator takes what it is given."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from shardwatt.engine.fast import attention as module
from shardwatt.engine.fast.attention import Attention, Flash, Heads, Products
from shardwatt.engine.fast.cache import Cache
from shardwatt.engine.fast.packing import packed

ROWS, POSITIONS = 3, 20
SIZES = [7, 1, 12]
CPU = torch.device("cpu")

ALONE = Heads(queries=4, groups=4, size=8)
SHARED = Heads(queries=6, groups=2, size=8)


def exact(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    *,
    causal: bool = False,
    used: Tensor | None = None,
) -> Tensor:
    """In the place of `flash`, which needs a GPU: row by row and head by head."""
    mixed = torch.full_like(q, torch.nan)
    shared = q.shape[1] // k.shape[1]
    for row, (first, stop) in enumerate(zip(starts[0].tolist(), starts[0][1:].tolist(), strict=False)):
        begin, end = starts[1][row : row + 2].tolist()
        end = end if used is None else begin + int(used[row])
        assert stop - first <= longest[0]
        assert end - begin <= longest[1]
        for head in range(q.shape[1]):
            scores = q[first:stop, head] @ k[begin:end, head // shared].T / math.sqrt(q.shape[2])
            if causal:
                scores += torch.full_like(scores, -math.inf).triu(1)
            mixed[first:stop, head] = scores.softmax(-1) @ v[begin:end, head // shared]
    return mixed


def cache(heads: Heads, by_position: bool, dtype: torch.dtype = torch.float32) -> Cache:
    return Cache(
        layers=1,
        rows=ROWS,
        positions=POSITIONS,
        heads=heads.groups,
        head_dim=heads.size,
        by_position=by_position,
        dtype=dtype,
        device=CPU,
    )


def both(heads: Heads, way: Attention) -> tuple[Tensor, Tensor]:
    """A prefill of prompts, and a step of each row after it."""
    generator = torch.Generator().manual_seed(3)
    prompts = packed([[5] * size for size in SIZES], range(ROWS), CPU)

    def random(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        groups = heads.groups
        fused = torch.randn(tokens, heads.queries + 2 * groups, heads.size, generator=generator)
        return fused[:, : heads.queries], fused[:, heads.queries : -groups], fused[:, -groups:]

    kept = cache(heads, way.by_position)
    q, k, v = random(sum(SIZES))
    kept.write(0, torch.cat([k, v], 1), kept.places(prompts.rows, prompts.positions))
    filled = way.prefill(q, k, v, prompts)
    q, k, v = random(ROWS)
    positions = torch.tensor(SIZES)
    kept.write(0, torch.cat([k, v], 1), kept.places(slice(ROWS), positions))
    most = max(SIZES) + 1
    return filled, way.decode(q, kept, 0, way.reach(positions, most), most)


@pytest.mark.parametrize("heads", [ALONE, SHARED], ids=["alone", "shared"])
@pytest.mark.parametrize("multiprocessors", [1, 100], ids=["whole", "split"])
def test_flash_attention_is_asked_for_what_the_products_give(
    monkeypatch: pytest.MonkeyPatch, heads: Heads, multiprocessors: int
) -> None:
    asked: list[int] = []

    def noting(q: Tensor, *rest: object, **more: object) -> Tensor:
        asked.append(q.shape[1])
        return exact(q, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "flash", noting)
    expected = both(heads, Products(heads, POSITIONS, torch.float32, CPU))
    found = both(heads, Flash(heads, ROWS, POSITIONS, multiprocessors, CPU))
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    # Kernels split keys only where query heads share them.
    twice = heads is ALONE and multiprocessors == 100
    assert asked == [heads.queries, heads.queries * (2 if twice else 1)]


def test_keys_that_are_copied_for_a_prefill_give_the_same() -> None:
    shared, copied = (Products(SHARED, POSITIONS, torch.float32, CPU) for _ in range(2))
    copied._copies = True
    assert torch.allclose(both(SHARED, shared)[0], both(SHARED, copied)[0], atol=1e-6)


def test_torchs_operator_takes_what_it_is_given() -> None:
    schema = torch.ops.aten._flash_attention_forward.default._schema
    assert [argument.name for argument in schema.arguments[:10]] == [
        *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
        *("dropout_p", "is_causal", "return_debug_mask"),
    ]
    assert "seqused_k" in [argument.name for argument in schema.arguments[10:]]


def test_scores_that_float16_holds_only_when_scaled_are_held() -> None:
    heads = Heads(queries=2, groups=2, size=64)
    kept = cache(heads, by_position=False, dtype=torch.float16)
    key = torch.full((2, 2, 64), 40.0, dtype=torch.float16)  # 64 x 40 x 40 is more than 65,504
    value = torch.ones_like(key)
    for position in range(2):
        kept.write(0, torch.cat([key, value], 1), kept.places(slice(2), torch.full((2,), position)))
    way = Products(heads, POSITIONS, torch.float16, CPU)
    mixed = way.decode(key, kept, 0, way.reach(torch.ones(2, dtype=torch.long), 2), 2)
    assert torch.equal(mixed, torch.ones_like(mixed))
