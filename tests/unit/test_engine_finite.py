"""Guards that no engine passes off as text what it drew from logits that are no numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import checkpoints_tiny
import engine_tiny
from engine_cases import GREEDY, SAMPLED
from shardwatt.engine.finite import Finite
from shardwatt.engine.load import load_engine
from shardwatt.engine.protocol import BatchResult, Sampling
from shardwatt.engines import MODEL_ENGINES
from shardwatt.errors import INCURABLE, CellFailure, Reason
from shardwatt.models import Checkpoint

LENGTH, POSITIONS = 6, 32
#: The token whose embedding is damaged, and prompts of which one holds it.
DAMAGED = 7
PROMPTS = [[1, 40, 41, 9], [1, DAMAGED, 9], [1, 250, 33]]

every_engine = pytest.mark.parametrize("name", MODEL_ENGINES)
either_way = pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return checkpoints_tiny.tiny(tmp_path / "model")[0]


def change(checkpoint: Checkpoint, name: str, rows: slice, value: float) -> None:
    path = checkpoint.folder / checkpoint.weights[0]
    weights = torch.load(path)
    weights[name][rows] = value
    torch.save(weights, path)


def answer(
    name: str, checkpoint: Checkpoint, sampling: Sampling, prompts: list[list[int]], precision: str = "fp32"
) -> BatchResult:
    shape = checkpoints_tiny.SHAPES["llama1"]
    with engine_tiny.alone(checkpoint.folder / f"group-{precision}"):
        model = engine_tiny.on_rank(checkpoint, shape, precision=precision, eos_ids=frozenset())
        engine = load_engine(name, model)
        engine.allocate(len(prompts), POSITIONS)
        # Another batch before: it is not to blame.
        engine.generate(engine_tiny.ask(PROMPTS[:1], LENGTH, POSITIONS), sampling, lambda rows: None)
        return engine.generate(engine_tiny.ask(prompts, LENGTH, POSITIONS), sampling, lambda rows: None)


@either_way
@every_engine
@pytest.mark.parametrize("count", [1, len(PROMPTS)])
def test_a_row_without_numbers_fails_the_cell(
    checkpoint: Checkpoint, name: str, sampling: Sampling, count: int
) -> None:
    change(checkpoint, "tok_embeddings.weight", slice(DAMAGED, DAMAGED + 1), torch.nan)
    prompts = PROMPTS if count > 1 else [PROMPTS[1]]
    with pytest.raises(CellFailure, match="precision fp32: the model's logits are infinite") as caught:
        answer(name, checkpoint, sampling, prompts)
    assert caught.value.reason is Reason.NOT_FINITE
    assert caught.value.reason in INCURABLE


@every_engine
def test_numbers_that_fp16_cannot_hold_fail_the_cell_and_not_that_in_fp32(
    checkpoint: Checkpoint, name: str
) -> None:
    change(checkpoint, "output.weight", slice(None), 60_000.0)
    assert [len(row) for row in answer(name, checkpoint, SAMPLED, PROMPTS).tokens] == [LENGTH] * 3
    with pytest.raises(CellFailure, match=r"precision fp16: .* use bf16 or fp32") as caught:
        answer(name, checkpoint, SAMPLED, PROMPTS, "fp16")
    assert caught.value.reason is Reason.NOT_FINITE


def test_infinities_of_both_signs_do_not_make_up_for_each_other() -> None:
    finite = Finite(torch.device("cpu"), torch.float16)
    for values in ([torch.inf, -torch.inf], [-torch.inf, 0.0], [torch.nan, 0.0]):
        finite.begin()
        for step in ([1.0, 2.0], values, [3.0, 4.0]):
            finite.add(torch.tensor(step))
        with pytest.raises(CellFailure):
            finite.check()
    finite.begin()
    finite.add(torch.full((512, 128_256), -65_504.0))
    finite.check()
