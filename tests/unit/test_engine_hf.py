"""Guards engine hf: transformers' own loop, with the weights, the counts and the manners of the others."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

import checkpoints_tiny
import engine_tiny
import hf_case
from checkpoints_tiny import SHAPES, Kind
from hf_case import GREEDY, PROMPTS, SAMPLED, options, tiny_model
from shardwatt.architectures import Architecture, RopeScaling
from shardwatt.engine.hf import load
from shardwatt.engine.load import load_engine
from shardwatt.engine.protocol import BatchRequest, BatchResult, Engine, ModelOnRank, Sampling
from shardwatt.errors import CellFailure, Reason
from shardwatt.models import Layout

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from shardwatt.engine.hf.generate import HuggingFace

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="the extra hf is not installed"
)

SIZES = [len(prompt) for prompt in PROMPTS]

CASES = [
    pytest.param("llama1", "meta", id="llama1-meta"),
    pytest.param("llama1", "huggingface", id="llama1-huggingface"),
    pytest.param("llama2-70b", "meta", id="llama2-70b-meta"),
    pytest.param("llama3", "meta", id="llama3-meta"),
    pytest.param("llama3", "huggingface", id="llama3-huggingface"),
]


def opened(model: ModelOnRank) -> HuggingFace:
    from shardwatt.engine.hf.generate import HuggingFace

    engine = load(model)
    assert isinstance(engine, HuggingFace)
    engine.allocate(len(PROMPTS), 64)
    return engine


def ended_by(engine: HuggingFace, eos_ids: Iterable[int]) -> HuggingFace:
    """The same weights with other ends of sequence."""
    engine.eos_ids = frozenset(eos_ids)
    return engine


def answer(
    engine: Engine, length: int = 20, positions: int = 64, sampling: Sampling = GREEDY, index: int = 0
) -> BatchResult:
    request = dataclasses.replace(engine_tiny.ask(PROMPTS, length, positions), index=index)
    return engine.generate(request, sampling, lambda rows: None)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> HuggingFace:
    """The engine with a LLaMA 1 that never ends by itself."""
    return opened(tiny_model(tmp_path_factory.mktemp("hf") / "plain"))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    with engine_tiny.alone(tmp_path / "group"):
        yield


@needs_transformers
@pytest.mark.parametrize(("kind", "layout"), CASES)
@pytest.mark.usefixtures("alone")
def test_it_says_greedily_what_the_reference_says(tmp_path: Path, kind: Kind, layout: Layout) -> None:
    model = tiny_model(tmp_path / "model", kind, layout)
    reference = load_engine("reference", model)
    reference.allocate(len(PROMPTS), 64)
    expected = answer(reference)
    found = answer(opened(model))
    assert found.tokens == expected.tokens
    assert found.finish == ["length"] * 3
    assert len({tuple(row) for row in found.tokens}) == 3, "rows that differ"


@needs_transformers
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "layout"), CASES)
def test_a_filled_model_is_the_one_that_transformers_loads(
    tmp_path: Path, kind: Kind, layout: Layout, precision: str
) -> None:
    from transformers import LlamaForCausalLM

    theirs_on_disk = checkpoints_tiny.tiny(tmp_path / "theirs", kind, "huggingface", shards=2)[0]
    theirs = LlamaForCausalLM.from_pretrained(
        theirs_on_disk.folder,
        local_files_only=True,
        dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[precision],
    )
    ours = opened(tiny_model(tmp_path / "ours", kind, layout, precision=precision)).causal_lm
    tokens = torch.tensor([PROMPTS[2]])
    assert torch.equal(logits(ours, tokens), logits(theirs, tokens))
    assert ours.config._attn_implementation == theirs.config._attn_implementation
    assert ours.num_parameters() == theirs.num_parameters(), "a tied embedding is there once"


@torch.inference_mode()
def logits(causal_lm: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    found = causal_lm(input_ids=tokens).logits
    assert isinstance(found, Tensor)
    return found


@needs_transformers
def test_work_is_counted_with_padding_apart(plain: HuggingFace) -> None:
    calls: list[int] = []
    result = plain.generate(engine_tiny.ask(PROMPTS, 20, 64), GREEDY, calls.append)
    prefill, decode = result.phases
    assert (prefill.name, prefill.steps, prefill.tokens) == ("prefill", 1, 3 * 8)
    assert prefill.attended == sum(size * (size + 1) // 2 for size in SIZES)
    assert (decode.name, decode.steps, decode.tokens) == ("decode", 19, 3 * 19)
    assert decode.attended == sum(size + step for size in SIZES for step in range(1, 20))
    assert prefill.start_s < prefill.stop_s == decode.start_s < decode.stop_s
    assert calls == [3] * 20
    assert result.generated_tokens == 3 * 20


@needs_transformers
def test_one_new_token_takes_no_decoding(plain: HuggingFace) -> None:
    result = answer(plain, length=1)
    assert [phase.name for phase in result.phases] == ["prefill"]
    assert [len(row) for row in result.tokens] == [1, 1, 1]


@needs_transformers
def test_a_full_context_ends_rows_and_is_named(plain: HuggingFace) -> None:
    whole = answer(plain)
    result = answer(plain, positions=12)
    # Each row where its own positions are full: padding takes none.
    assert result.tokens == [row[: 12 - size] for row, size in zip(whole.tokens, SIZES, strict=True)]
    assert result.finish == ["context"] * 3
    assert result.generated_tokens == 3 * (12 - min(SIZES))


@needs_transformers
def test_it_stops_when_rows_have_ended_or_are_full(plain: HuggingFace) -> None:
    free = answer(plain, positions=12).tokens
    # The longest prompt's row is full after 4 tokens, and the others end by themselves.
    result = answer(ended_by(plain, {row[5] for row in free[:2]}), positions=12)
    ended_by(plain, ())
    assert result.finish == ["eos", "eos", "context"]
    assert result.generated_tokens == 3 * (max(map(len, result.tokens[:2])) + 1)


@needs_transformers
def test_rows_end_at_the_first_of_several_ends_of_sequence(plain: HuggingFace) -> None:
    free = answer(plain).tokens
    ends = {0: free[0][4], 1: free[1][7]}
    expected = [row[: next((p for p, t in enumerate(row) if t in ends.values()), None)] for row in free]
    result = answer(ended_by(plain, ends.values()))
    ended_by(plain, ())
    assert result.tokens == expected
    assert result.finish == ["length" if len(row) == 20 else "eos" for row in expected]
    assert result.finish[:2] == ["eos", "eos"]


@needs_transformers
def test_it_stops_when_all_rows_have_ended(plain: HuggingFace) -> None:
    free = answer(plain).tokens
    ends = {row[3] for row in free}
    result = answer(ended_by(plain, ends))
    ended_by(plain, ())
    assert result.finish == ["eos"] * 3
    assert all(len(row) <= 3 for row in result.tokens)
    steps = max(map(len, result.tokens)) + 1
    assert result.generated_tokens == 3 * steps
    assert sum(phase.steps for phase in result.phases) == steps


@needs_transformers
def test_random_tokens_depend_on_seed_and_batch_alone(plain: HuggingFace) -> None:
    first = answer(plain, sampling=SAMPLED).tokens
    torch.rand(3)
    assert answer(plain, sampling=SAMPLED).tokens == first
    assert answer(plain, sampling=SAMPLED, index=1).tokens != first
    assert answer(plain, sampling=dataclasses.replace(SAMPLED, seed=12)).tokens != first


@needs_transformers
def test_only_the_nucleus_limits_what_is_drawn(plain: HuggingFace) -> None:
    # transformers would draw from the 50 likeliest tokens; nearly equal ones give 200 rows far more.
    rows = 200
    request = BatchRequest(0, [str(row) for row in range(rows)], [PROMPTS[0]] * rows, 1, 64, rows)
    drawn = plain.generate(request, Sampling(1000.0, 1.0, 0), lambda count: None).tokens
    assert len({row[0] for row in drawn}) > 100
    narrow = plain.generate(request, Sampling(1.0, 1e-6, 0), lambda count: None).tokens
    assert {row[0] for row in narrow} == {answer(plain, length=1).tokens[0][0]}


@needs_transformers
def test_the_record_says_how_it_ran(plain: HuggingFace) -> None:
    import transformers

    notes = plain.notes()
    assert notes["transformers"] == transformers.__version__
    assert notes["attention"] == "sdpa"
    assert notes["dtype"] == "float32"
    assert all(isinstance(value, str) for value in notes.values())


@needs_transformers
@pytest.mark.parametrize(
    ("kind", "layout", "ranks"),
    [("llama2-70b", "huggingface", 4), ("llama3", "meta", 2)],
)
def test_ranks_of_its_own_tensor_parallelism_say_what_one_says(
    tmp_path: Path, kind: Kind, layout: Layout, ranks: int
) -> None:
    model = tiny_model(tmp_path / "model", kind, layout)
    reports = engine_tiny.run_ranks(tmp_path / "ranks", "hf", ranks, **options(model, kind))
    one = opened(model)
    assert all(report["greedy"] == answer(one).tokens for report in reports)
    assert all(report["sampled"] == reports[0]["sampled"] for report in reports)
    exact = logits(one.causal_lm, torch.tensor([PROMPTS[2]]))[0, -1]
    found = torch.tensor(reports[-1]["logits"])
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-5
    # Norms are on each rank, all else is split.
    norms = sum(p.numel() for name, p in one.causal_lm.named_parameters() if "norm" in name)
    held = sum(p.numel() for p in one.causal_lm.parameters())
    assert {report["held"] for report in reports} == {(held - norms) // ranks + norms}


@needs_transformers
def test_what_it_cannot_split_is_refused_by_name(tmp_path: Path) -> None:
    model = dataclasses.replace(tiny_model(tmp_path / "model", "llama2-70b"), ranks=8)
    with pytest.raises(CellFailure, match="does not split 4 key and value heads over 8 ranks") as refusal:
        load(model)
    assert refusal.value.reason == Reason.CONFIGURATION
    assert "use shards: 1 or 2 or 4," in refusal.value.message


@needs_transformers
def test_a_shape_that_transformers_refuses_is_refused_by_name(tmp_path: Path) -> None:
    shape = Architecture(100, 1, 16, 16, 64, 320, head_size=8)
    model = dataclasses.replace(tiny_model(tmp_path / "model"), architecture=shape)
    with pytest.raises(CellFailure, match="not a multiple of the number of attention heads") as refusal:
        load(model)
    assert refusal.value.reason == Reason.CONFIGURATION


@needs_transformers
def test_every_kind_of_rope_scaling_reaches_transformers() -> None:
    from shardwatt.engine.hf.model import llama_config

    linear = dataclasses.replace(SHAPES["llama1"], rope_scaling=RopeScaling("linear", 4.0))
    assert llama_config(linear).rope_parameters == {
        "rope_type": "linear",
        "rope_theta": 10_000.0,
        "factor": 4.0,
    }
    scaled = llama_config(SHAPES["llama3"]).rope_parameters
    assert scaled is not None
    assert (scaled["rope_type"], scaled["original_max_position_embeddings"]) == ("llama3", 8192)


def test_a_missing_transformers_is_one_message_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CellFailure) as refusal:
        load(tiny_model(tmp_path / "model"))
    assert refusal.value.reason == Reason.CONFIGURATION
    assert "pip install 'shardwatt[hf]'" in refusal.value.message


def test_transformers_is_imported_for_this_engine_alone() -> None:
    script = (
        "import sys, shardwatt.engine.load, shardwatt.engine.reference, shardwatt.engine.hf; "
        "print('transformers' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


@needs_transformers
def test_nothing_is_asked_of_the_network_and_nothing_said_in_the_log(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", "llama3", "huggingface")
    script = Path(hf_case.__file__)
    found = subprocess.run(
        [sys.executable, str(script), json.dumps(options(model, "llama3"))],
        env={**os.environ, "PYTHONPATH": str(script.parent)},
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout) == []
