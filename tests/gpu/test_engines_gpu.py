"""Guards the engines on an NVIDIA GPU: run `pytest tests/gpu` on a machine that has one; skipped elsewhere.

They were written without a GPU at hand: what they find has yet to be seen.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from checkpoints_tiny import Kind
from engine_cases import PROMPTS, SAMPLED
from gpu_cases import BUCKET, DEVICE, ROOM, Tiny, answer, warm_up
from shardwatt.engine.fast import graphs
from shardwatt.engine.fast.attention import Attention, Flash, Heads, Products, attention
from shardwatt.engine.fast.cache import Cache
from shardwatt.engine.fast.loop import Fast
from shardwatt.engine.fast.packing import packed
from shardwatt.engine.fast.slots import Slots
from shardwatt.engine.load import load_engine
from shardwatt.engine.parallel import join
from shardwatt.engine.protocol import Engine
from shardwatt.engine.reference import Reference
from shardwatt.engine.sampling import row_keys
from shardwatt.engine.sampling.published import in_nucleus
from shardwatt.engines import BF16_CAPABILITY
from shardwatt.errors import CellFailure, DoesNotFit, Reason

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")

THERE = torch.cuda.is_available()
HAS_BF16 = THERE and torch.cuda.get_device_capability(DEVICE) >= BF16_CAPABILITY

needs_bf16 = pytest.mark.skipif(THERE and not HAS_BF16, reason="this GPU has no bfloat16 arithmetic")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the extra hf is not installed"
)
PRECISIONS = ["fp32", "fp16", pytest.param("bf16", marks=needs_bf16)]
OTHERS = ["reference-v2", "fast", "fast-drop", "fast-refill", pytest.param("hf", marks=needs_transformers)]


@dataclass
class Way:
    """What became of the rows of a batch.

    Attributes:
        filled: rows of each prefill's portions.
        moved: rows that were put into another place.
        sizes: rows of each step, prefills included.
    """

    filled: list[int] = field(default_factory=list)
    moved: int = 0
    sizes: list[int] = field(default_factory=list)


#: With graphs a batch shrinks by halves, without them with each row; two places are filled anew one by one.
WITH_GRAPHS = {
    "fast": ([4], 0, {4}),
    "fast-drop": ([4], 3, {4, 2, 1}),
    "fast-refill": ([2, 1, 1], 1, {2, 1}),
}
WITHOUT = WITH_GRAPHS | {"fast-drop": ([4], 2, {4, 3, 2, 1})}


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process, of which tensors go through NCCL."""
    folder = tmp_path / "group"
    folder.mkdir()
    ranks = join(folder, rank=0, count=1, device=DEVICE, start_timeout_s=60, collective_timeout_s=60)
    try:
        yield
    finally:
        ranks.leave()


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Way:
    """Of all that is answered from now on, but for the sizes."""
    way, fill, move = Way(), Slots.fill, Slots.move

    def counted_fill(slots: Slots, places: Sequence[int], *rest: Any) -> Tensor:
        way.filled.append(len(places))
        return fill(slots, places, *rest)

    def counted_move(slots: Slots, *words: int) -> None:
        way.moved += 1
        move(slots, *words)

    monkeypatch.setattr(Slots, "fill", counted_fill)
    monkeypatch.setattr(Slots, "move", counted_move)
    return way


def watched(engine: Engine, way: Way) -> tuple[list[list[int]], tuple[list[int], int, set[int]]]:
    """The text of PROMPTS, and what became of their rows."""
    way.filled, way.moved, way.sizes = [], 0, []
    tokens = answer(engine, on_step=way.sizes.append).tokens
    return tokens, (way.filled, way.moved, set(way.sizes))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama1", "llama2-70b", "llama3"])
@pytest.mark.parametrize("name", OTHERS)
def test_logits_and_greedy_text_are_the_references(
    tmp_path: Path, name: str, kind: Kind, precision: str
) -> None:
    tiny = Tiny(tmp_path, kind, precision)
    expected, found = (answer(tiny.opened(one)).tokens for one in ("reference", name))
    tiny.check_same(expected, found, tiny.noise("reference", name))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", OTHERS)
def test_rows_that_say_an_end_of_sequence_end_as_in_the_reference(
    tmp_path: Path, way: Way, name: str, precision: str
) -> None:
    tiny = Tiny(tmp_path, "llama2-70b", precision)
    endless = answer(tiny.opened("reference")).tokens
    ends = frozenset({endless[0][4], endless[1][13]})
    expected = answer(tiny.opened("reference", eos_ids=ends))
    engine = tiny.opened(name, eos_ids=ends)
    warm_up(engine)
    way.filled, way.moved = [], 0
    found = answer(engine)
    assert min(result.finish.count("eos") for result in (expected, found)) >= 2
    tiny.check_same(expected.tokens, found.tokens, tiny.noise("reference", name), ends)
    if name in ("fast-drop", "fast-refill"):
        assert way.moved > 0 or way.filled == [2, 1, 1]
        assert found.generated_tokens < answer(tiny.opened(name)).generated_tokens


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["fast", "fast-drop", "fast-refill"])
def test_graphs_change_nothing_while_rows_leave_move_and_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Way, name: str, precision: str
) -> None:
    monkeypatch.setattr(graphs, "BUCKET", BUCKET)
    tiny = Tiny(tmp_path, "llama2-70b", precision)
    with_graphs = tiny.opened(name)
    warm_up(with_graphs)
    note = with_graphs.notes()["cuda_graphs"]
    sizes = {"fast": 1, "fast-drop": 3, "fast-refill": 2}[name]
    assert note.startswith(f"{ROOM // BUCKET * sizes} captured")
    captured, became = watched(with_graphs, way)
    assert became == WITH_GRAPHS[name]
    assert watched(with_graphs, way) == (captured, became)
    assert with_graphs.notes()["cuda_graphs"] == note  # none in the run
    without = tiny.opened(name, cuda_graphs="never")
    expected, became = watched(without, way)
    assert became == WITHOUT[name]
    assert without.notes()["cuda_graphs"].startswith("none")
    tiny.check_same(expected, captured, tiny.noise(name))
    tiny.check_same(answer(tiny.opened("reference")).tokens, captured, tiny.noise("reference", name))


def test_graphs_of_another_cache_follow_those_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "BUCKET", BUCKET)
    tiny = Tiny(tmp_path, "llama1", "fp16")
    engine = tiny.opened("fast-drop")
    warm_up(engine)
    first = answer(engine).tokens
    engine.allocate(2 * len(PROMPTS), 2 * ROOM)
    warm_up(engine)
    tiny.check_same(first, answer(engine).tokens, tiny.noise("fast-drop"))
    engine.allocate(len(PROMPTS), ROOM)
    warm_up(engine)
    assert answer(engine).tokens == first


def test_a_capture_that_fails_midway_is_told_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = Tiny(tmp_path, "llama1", "fp16")
    expected = answer(tiny.opened("fast", cuda_graphs="never")).tokens
    engine = tiny.opened("fast")
    assert isinstance(engine, Fast)
    step = engine.model.step

    def waiting(tokens: Tensor, positions: Tensor, most: int) -> Tensor:
        logits = step(tokens, positions, most)
        logits[0, 0].item()  # the host may not wait while a step is captured
        return logits

    with monkeypatch.context() as patched:
        patched.setattr(engine.model, "step", waiting)
        warm_up(engine)
        assert answer(engine).tokens == expected
        assert engine.notes()["cuda_graphs"].startswith("none: capture failed (")
        assert "not permitted" in engine.notes()["cuda_graphs"]  # the first error, not one of those after it
    for _ in range(2):
        engine.allocate(len(PROMPTS), ROOM)
        warm_up(engine)
        tiny.check_same(expected, answer(engine).tokens, tiny.noise("fast"))
        assert "captured" in engine.notes()["cuda_graphs"]


def attended(heads: Heads, way: Attention, dtype: torch.dtype) -> list[Tensor]:
    """A packed prefill, and a step of each row after it, float32; the same inputs for every way."""
    generator = torch.Generator().manual_seed(3)
    sizes, positions = [700, 1, 1023, 255], 1024
    cache = Cache(
        layers=1,
        rows=len(sizes),
        positions=positions,
        heads=heads.groups,
        head_dim=heads.size,
        by_position=way.by_position,
        dtype=dtype,
        device=torch.device(DEVICE),
    )

    def random(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        fused = torch.randn(tokens, heads.queries + 2 * heads.groups, heads.size, generator=generator)
        fused = fused.half().to(DEVICE, dtype)
        return fused[:, : heads.queries], fused[:, heads.queries : -heads.groups], fused[:, -heads.groups :]

    prompts = packed([[5] * size for size in sizes], range(len(sizes)), torch.device(DEVICE))
    q, k, v = random(sum(sizes))
    cache.write(0, torch.cat([k, v], 1), cache.places(prompts.rows, prompts.positions))
    filled = way.prefill(q, k, v, prompts)
    q, k, v = random(len(sizes))
    places = torch.tensor(sizes, device=DEVICE)
    cache.write(0, torch.cat([k, v], 1), cache.places(slice(len(sizes)), places))
    stepped = way.decode(q, cache, 0, way.reach(places, positions), positions)
    return [filled.float(), stepped.float()]


@pytest.mark.parametrize(("queries", "groups"), [(8, 8), (8, 2)], ids=["alone", "shared"])
@pytest.mark.parametrize("size", [64, 128])
@torch.inference_mode()
def test_flash_attention_gives_what_the_products_give(queries: int, groups: int, size: int) -> None:
    heads, device = Heads(queries, groups, size), torch.device(DEVICE)
    way = attention(heads, 4, 1024, torch.float16, device)
    if not isinstance(way, Flash):
        pytest.skip("this GPU has no FlashAttention")
    expected = attended(heads, Products(heads, 1024, torch.float32, device), torch.float32)
    for exact, found in zip(expected, attended(heads, way, torch.float16), strict=True):
        assert (found - exact).abs().max() < 1e-2
    # With one multiprocessor no row is split.
    whole = attended(heads, Flash(heads, 4, 1024, 1, device), torch.float16)
    assert (whole[1] - expected[1]).abs().max() < 1e-2


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_the_host_launches_a_portion_of_the_prefill_without_waiting(tmp_path: Path, precision: str) -> None:
    engine = Tiny(tmp_path, "llama2-70b", precision).opened("fast")
    assert isinstance(engine, Fast)
    keys = row_keys(1, [str(place) for place in range(len(PROMPTS))], "cpu")
    places = range(len(PROMPTS))
    expected = engine.slots.fill(places, PROMPTS, keys, SAMPLED).tolist()  # kernels are loaded by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = engine.slots.fill(places, PROMPTS, keys, SAMPLED)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert drawn.tolist() == expected


def embedding(engine: Engine) -> Tensor:
    if isinstance(engine, Reference):
        return cast(Tensor, engine.model.tok_embeddings.weight)
    if isinstance(engine, Fast):
        return engine.model.weights.embedding
    return cast(Tensor, engine.causal_lm.model.embed_tokens.weight)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["reference", "fast", pytest.param("hf", marks=needs_transformers)])
def test_logits_that_are_no_numbers_fail_the_cell_and_not_the_device(tmp_path: Path, name: str) -> None:
    engine = Tiny(tmp_path, "llama1", "fp16").opened(name)
    warm_up(engine)  # graphs are captured by now
    answer(engine, SAMPLED)
    with torch.inference_mode():
        embedding(engine)[PROMPTS[0][1]] = torch.nan
    with pytest.raises(CellFailure, match="precision fp16") as failure:
        answer(engine, SAMPLED)
    assert failure.value.reason == Reason.NOT_FINITE
    engine.synchronize()


@pytest.mark.parametrize("name", ["reference", "fast", "fast-drop", "fast-refill"])
def test_sampled_text_is_the_references_and_the_same_each_time(tmp_path: Path, name: str) -> None:
    tiny = Tiny(tmp_path, "llama1", "fp32")
    reference, engine = tiny.opened("reference"), tiny.opened(name)
    warm_up(engine, SAMPLED)
    expected, found = answer(reference, SAMPLED).tokens, answer(engine, SAMPLED).tokens
    assert found == answer(engine, SAMPLED).tokens != answer(reference).tokens
    # Noise of the logits may part a text once in many thousand tokens.
    assert sum(one == other for one, other in zip(expected, found, strict=True)) >= len(PROMPTS) - 1


def test_the_nucleus_of_a_single_row_is_the_exact_one() -> None:
    # So many tokens nearly as likely that a last place of float32 decides which of them stay.
    generator = torch.Generator().manual_seed(9)
    for _ in range(40):
        logits = torch.randn(1, 2**21, generator=generator) * 0.2
        falling = torch.softmax(logits.to(DEVICE), dim=-1).sort(dim=-1, descending=True).values
        exact = in_nucleus(falling.cpu().double(), 0.95)
        assert torch.equal(in_nucleus(falling, 0.95).cpu(), exact)


@pytest.mark.skipif(HAS_BF16, reason="this GPU calculates in bfloat16: there is nothing to refuse")
def test_bf16_is_refused_where_it_would_be_emulated(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match=r"precision bf16: .* no bfloat16 arithmetic") as refusal:
        Tiny(tmp_path, "llama1", "bf16").opened("fast")
    assert refusal.value.reason == Reason.CONFIGURATION


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_a_cache_too_large_for_the_gpu_does_not_fit(tmp_path: Path, name: str) -> None:
    engine = load_engine(name, Tiny(tmp_path, "llama1", "fp32").on)
    with pytest.raises(DoesNotFit):
        engine.allocate(2**20, 2**12)
    engine.allocate(len(PROMPTS), ROOM)
    assert len(answer(engine).tokens) == len(PROMPTS)


@pytest.mark.parametrize("name", ["reference", "fast", pytest.param("hf", marks=needs_transformers)])
def test_peak_memory_is_at_least_the_weights(tmp_path: Path, name: str) -> None:
    tiny = Tiny(tmp_path, "llama2-70b", "fp32")
    engine = tiny.opened(name)
    engine.forget_peak_memory()
    answer(engine)
    weights_gib = tiny.on.architecture.parameters * 4 / 2**30
    assert weights_gib <= engine.peak_memory_gib() < weights_gib + 1
