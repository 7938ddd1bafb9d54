"""Guards the engines on an NVIDIA GPU: run `pytest tests/gpu` on a machine that has one; skipped elsewhere.

They were written without a GPU at hand: what they find has yet to be seen.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor

import checkpoints_tiny
import engine_tiny
from checkpoints_tiny import Kind
from engine_cases import GREEDY, PROMPTS, SAMPLED, first_difference
from shardwatt.engine.fast import graphs
from shardwatt.engine.fast.attention import Attention, Flash, Heads, Products, attention
from shardwatt.engine.fast.cache import Cache
from shardwatt.engine.fast.loop import Fast
from shardwatt.engine.fast.packing import packed
from shardwatt.engine.load import load_engine
from shardwatt.engine.parallel import join
from shardwatt.engine.protocol import BatchResult, Engine, ModelOnRank, Sampling
from shardwatt.engine.reference import Reference
from shardwatt.engine.sampling import row_keys
from shardwatt.engines import BF16_CAPABILITY
from shardwatt.errors import CellFailure, DoesNotFit, Reason

DEVICE = "cuda:0"
LENGTH, POSITIONS = 24, 64

#: Positions of graphs' buckets here: rows go from one to the next and to the one after it.
BUCKET = 16

#: Where engines say different tokens, how far the two likeliest may be apart, of the largest logit: kernels
#: round differently.
BOUND = {"fp32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")

THERE = torch.cuda.is_available()
HAS_BF16 = THERE and torch.cuda.get_device_capability(DEVICE) >= BF16_CAPABILITY

needs_bf16 = pytest.mark.skipif(THERE and not HAS_BF16, reason="this GPU has no bfloat16 arithmetic")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the extra hf is not installed"
)
PRECISIONS = ["fp32", "fp16", pytest.param("bf16", marks=needs_bf16)]

#: Where graphs are captured over several ranks.
RANKS = 2


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


def model(folder: Path, kind: Kind, precision: str) -> ModelOnRank:
    checkpoint, shape = checkpoints_tiny.tiny(folder / kind, kind)
    on_processor = engine_tiny.on_rank(checkpoint, shape, precision=precision, eos_ids=frozenset())
    return dataclasses.replace(on_processor, device=DEVICE)


def opened(name: str, on: ModelOnRank) -> Engine:
    engine = load_engine(name, on)
    engine.allocate(len(PROMPTS), POSITIONS)
    return engine


def answer(engine: Engine, sampling: Sampling = GREEDY) -> BatchResult:
    return engine.generate(engine_tiny.ask(PROMPTS, LENGTH, POSITIONS), sampling, lambda rows: None)


def warm_up(engine: Engine) -> None:
    """A single new token: graphs do not wait for a step."""
    asked = engine_tiny.ask(PROMPTS, 1, POSITIONS)
    engine.generate(dataclasses.replace(asked, index=-1), GREEDY, lambda rows: None)


@torch.inference_mode()
def top_two_apart(reference: Reference, tokens: list[int]) -> float:
    """How far the two likeliest tokens after these are apart, of the largest logit."""
    logits = reference.model.logits(torch.tensor([tokens], device=DEVICE), 0)[0, -1].float()
    first, second = logits.topk(2).values.tolist()
    return float((first - second) / logits.abs().max())


def check_same(on: ModelOnRank, expected: list[list[int]], found: list[list[int]]) -> None:
    """Texts are the same up to where the two likeliest tokens are as good as alike."""
    for prompt, one, other in zip(PROMPTS, expected, found, strict=True):
        place = first_difference(one, other)
        if place is not None:
            reference = opened("reference", on)
            assert isinstance(reference, Reference)
            assert top_two_apart(reference, prompt + one[:place]) <= BOUND[on.precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama1", "llama2-70b", "llama3"])
@pytest.mark.parametrize(
    "name", ["reference-v2", "fast", "fast-drop", pytest.param("hf", marks=needs_transformers)]
)
def test_greedy_text_is_the_references(tmp_path: Path, name: str, kind: Kind, precision: str) -> None:
    on = model(tmp_path, kind, precision)
    check_same(on, answer(opened("reference", on)).tokens, answer(opened(name, on)).tokens)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["fast", "fast-drop", "fast-refill"])
def test_graphs_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, precision: str
) -> None:
    monkeypatch.setattr(graphs, "BUCKET", BUCKET)
    on = model(tmp_path, "llama2-70b", precision)
    with_graphs = opened(name, on)
    warm_up(with_graphs)
    note = with_graphs.notes()["cuda_graphs"]
    assert note.startswith(f"{POSITIONS // BUCKET * (1 if name == 'fast' else 3)} captured")
    captured, replayed = (answer(with_graphs).tokens for _ in range(2))
    assert with_graphs.notes()["cuda_graphs"] == note  # none in the run
    assert replayed == captured
    without = opened(name, dataclasses.replace(on, cuda_graphs="never"))
    check_same(on, answer(without).tokens, captured)
    assert without.notes()["cuda_graphs"].startswith("none")


def test_graphs_of_another_cache_follow_those_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "BUCKET", BUCKET)
    engine = opened("fast-drop", model(tmp_path, "llama1", "fp16"))
    warm_up(engine)
    first = answer(engine).tokens
    engine.allocate(2 * len(PROMPTS), 2 * POSITIONS)
    warm_up(engine)
    check_same(model(tmp_path, "llama1", "fp16"), first, answer(engine).tokens)
    engine.allocate(len(PROMPTS), POSITIONS)
    warm_up(engine)
    assert answer(engine).tokens == first


def test_a_capture_that_fails_midway_is_told_and_spoils_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = model(tmp_path, "llama1", "fp16")
    expected = answer(opened("fast", dataclasses.replace(on, cuda_graphs="never"))).tokens
    engine = opened("fast", on)
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
        engine.allocate(len(PROMPTS), POSITIONS)
        warm_up(engine)
        check_same(on, expected, answer(engine).tokens)
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


def be_rank(folder: Path, rank: int) -> None:
    """Answer with graphs that hold NCCL's collectives, and without them."""
    checkpoint, shape = checkpoints_tiny.tiny(folder / f"rank-{rank}", "llama1")
    device = f"cuda:{rank}"
    group = join(folder, rank=rank, count=RANKS, device=device, start_timeout_s=60, collective_timeout_s=60)
    on = engine_tiny.on_rank(checkpoint, shape, precision="fp16", rank=rank, ranks=RANKS, eos_ids=frozenset())
    report = {}
    for use in ("always", "never"):
        engine = opened("fast-drop", dataclasses.replace(on, device=device, cuda_graphs=use))
        warm_up(engine)
        report[use] = [answer(engine).tokens, engine.notes()["cuda_graphs"]]
    del engine
    (folder / f"report-{rank}.json").write_text(json.dumps(report))
    group.barrier()
    group.leave()


@pytest.mark.skipif(THERE and torch.cuda.device_count() < RANKS, reason="a single NVIDIA GPU")
def test_graphs_over_several_ranks_change_nothing(tmp_path: Path) -> None:
    words = [sys.executable, __file__, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    ranks = [subprocess.Popen([*words, str(rank)], env=environment) for rank in range(RANKS)]
    try:
        for one in ranks:
            assert one.wait(timeout=300) == 0
    finally:
        for one in ranks:
            one.kill()
    reports = [json.loads((tmp_path / f"report-{rank}.json").read_text()) for rank in range(RANKS)]
    assert reports[0] == reports[1]
    captured, note = reports[0]["always"]
    assert "captured" in note
    assert "after the warm-up" not in note
    check_same(model(tmp_path, "llama1", "fp16"), reports[0]["never"][0], captured)


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_the_host_launches_a_portion_of_the_prefill_without_waiting(tmp_path: Path, precision: str) -> None:
    engine = opened("fast", model(tmp_path, "llama2-70b", precision))
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
    engine = opened(name, model(tmp_path, "llama1", "fp16"))
    warm_up(engine)  # graphs are captured by now
    answer(engine, SAMPLED)
    with torch.inference_mode():
        embedding(engine)[PROMPTS[0][1]] = torch.nan
    with pytest.raises(CellFailure, match="precision fp16") as failure:
        answer(engine, SAMPLED)
    assert failure.value.reason == Reason.NOT_FINITE
    engine.synchronize()


@pytest.mark.parametrize("name", ["reference", "fast", "fast-drop"])
def test_sampled_text_is_the_same_each_time(tmp_path: Path, name: str) -> None:
    engine = opened(name, model(tmp_path, "llama1", "fp32"))
    assert answer(engine, SAMPLED).tokens == answer(engine, SAMPLED).tokens != answer(engine).tokens


@pytest.mark.skipif(HAS_BF16, reason="this GPU calculates in bfloat16: there is nothing to refuse")
def test_bf16_is_refused_where_it_would_be_emulated(tmp_path: Path) -> None:
    with pytest.raises(CellFailure, match=r"precision bf16: .* no bfloat16 arithmetic") as refusal:
        load_engine("fast", model(tmp_path, "llama1", "bf16"))
    assert refusal.value.reason == Reason.CONFIGURATION


@pytest.mark.parametrize("name", ["reference", "fast"])
def test_a_cache_too_large_for_the_gpu_does_not_fit(tmp_path: Path, name: str) -> None:
    engine = load_engine(name, model(tmp_path, "llama1", "fp32"))
    with pytest.raises(DoesNotFit):
        engine.allocate(2**20, 2**12)
    engine.allocate(len(PROMPTS), POSITIONS)
    assert len(answer(engine).tokens) == len(PROMPTS)


@pytest.mark.parametrize("name", ["reference", "fast", pytest.param("hf", marks=needs_transformers)])
def test_peak_memory_is_at_least_the_weights(tmp_path: Path, name: str) -> None:
    on = model(tmp_path, "llama2-70b", "fp32")
    engine = opened(name, on)
    engine.forget_peak_memory()
    answer(engine)
    weights_gib = on.architecture.parameters * 4 / 2**30
    assert weights_gib <= engine.peak_memory_gib() < weights_gib + 1


if __name__ == "__main__":
    be_rank(Path(sys.argv[1]), int(sys.argv[2]))
