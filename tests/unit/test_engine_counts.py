"""What a record counts of an engine is what goes through its layers, and never less than answers need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from torch import Tensor, nn

import engine_tiny
from checkpoints_tiny import SHAPES
from engine_cases import GREEDY, POSITIONS, PROMPTS, Case, opened
from shardwatt.engine.fast.linear import Linear
from shardwatt.engine.fast.loop import Fast
from shardwatt.engine.hf.generate import HuggingFace
from shardwatt.engine.protocol import BatchRequest, BatchResult, Engine
from shardwatt.engine.reference import Reference
from shardwatt.engines import MODEL_ENGINES
from shardwatt.models import Checkpoint
from shardwatt.modelwork import Work, flop
from shardwatt.run.exchange import BatchPlan, BatchRun, PhaseTime
from shardwatt.run.phasework import phase_work

SHAPE = SHAPES["llama2-70b"]
#: As many that rows end at different places, by themselves or at their length.
ENDS = range(0, SHAPE.vocab_size, 11)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    root: Path = tmp_path_factory.mktemp("counts")
    checkpoint = Case("llama2-70b", "meta", 1).write(root)
    with engine_tiny.alone(root / "group"):
        yield checkpoint


class Counted:
    """A product of `fast` that counts the rows that it is made for."""

    def __init__(self, product: Linear, rows: Counter[str], name: str) -> None:
        self.product, self.rows, self.name = product, rows, name

    def __call__(self, x: Tensor) -> Tensor:
        self.rows[self.name] += len(x)
        return self.product(x)

    def suit(self, rows: int) -> None:
        self.product.suit(rows)


def count_rows(engine: Engine) -> Counter[str]:
    """Rows that are going to go through the first layer, behind the last attention, and to the output."""
    rows: Counter[str] = Counter()

    def watched(module: nn.Module, name: str) -> None:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows[name] += inputs[0].numel() // inputs[0].shape[-1]

        module.register_forward_pre_hook(note)

    if isinstance(engine, Fast):
        weights = engine.model.weights
        first, last = weights.blocks[0], weights.blocks[-1]
        weights.blocks[0] = replace(first, qkv=Counted(first.qkv, rows, "tokens"))
        weights.blocks[-1] = replace(last, w2=Counted(last.w2, rows, "finished"))
        engine.model.weights = replace(weights, output=Counted(weights.output, rows, "logits"))
    elif isinstance(engine, Reference):
        layers = engine.model.layers
        watched(layers[0].get_submodule("attention.wq"), "tokens")
        watched(layers[-1].get_submodule("feed_forward"), "finished")
        watched(engine.model.output, "logits")
    else:
        assert isinstance(engine, HuggingFace)
        inner = engine.causal_lm.model
        watched(inner.layers[0].self_attn.q_proj, "tokens")
        watched(inner.layers[-1].mlp, "finished")
        watched(engine.causal_lm.lm_head, "logits")
    return rows


def as_run(request: BatchRequest, result: BatchResult) -> tuple[BatchPlan, BatchRun]:
    """A batch as a cell's files tell it."""
    plan = BatchPlan(
        prompt_ids=request.prompt_ids, prompts=request.prompts, positions=request.positions, rows=request.rows
    )
    run = BatchRun(
        start_s=result.phases[0].start_s,
        stop_s=result.phases[-1].stop_s,
        phases=[PhaseTime(**asdict(phase)) for phase in result.phases],
        tokens=result.tokens,
        finish=result.finish,
        generated_tokens=result.generated_tokens,
    )
    return plan, run


@pytest.mark.parametrize("name", MODEL_ENGINES)
def test_what_is_counted_went_through_the_layers_and_is_what_answers_need_or_more(
    saved: Checkpoint, name: str
) -> None:
    engine = opened(name, saved, "llama2-70b", eos_ids=ENDS)
    rows = count_rows(engine)
    request = engine_tiny.ask(PROMPTS, 20, POSITIONS, rows=2 if MODEL_ENGINES[name].queue else None)
    plan, run = as_run(request, engine.generate(request, GREEDY, lambda count: None))
    assert len({len(tokens) for tokens in run.tokens}) > 1, "rows end at different places"
    work = phase_work(name, [plan], [run])
    executed = sum((phase.executed for phase in work.values()), Work())
    assert (executed.tokens, executed.finished, executed.logits) == (
        rows["tokens"], rows["finished"], rows["logits"],
    )  # fmt: skip
    for phase, done in work.items():
        least, most = asdict(done.useful), asdict(done.executed)
        assert [part for part in least if least[part] > most[part]] == [], phase
        assert flop(SHAPE, done.useful) <= flop(SHAPE, done.executed)
