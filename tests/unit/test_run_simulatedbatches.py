"""Guards a simulated cell's batches: the plan's tokens and times, shared out whole among all its prompts."""

from __future__ import annotations

import itertools

import pytest

from shardwatt.architectures import CATALOGUE
from shardwatt.cell import Cell
from shardwatt.datasets import TokenLengths
from shardwatt.plan.lengths import Lengths
from shardwatt.plan.workload import Workload, workload
from shardwatt.run.exchange import BatchRun
from shardwatt.run.simulatedbatches import SimulatedBatches, simulated_batches, simulated_runs
from shardwatt.run.spans import PHASES
from synthetic_cells import make_cell

ARCHITECTURE = CATALOGUE["llama-65b"]
TOKENS = TokenLengths(
    prompt_deciles=[24, 60, 72, 85, 97, 110, 125, 140, 160, 190, 410],
    prompt_tail=[220, 290, 370],
    output_mean=120.0,
    source="a test",
)
LENGTHS = Lengths.of(TOKENS)
PROMPTS = 1000
PHASES_S = {"prefill": 30.0, "walk": 400.0, "decode": 900.0}


def planned(cell: Cell, cache_tokens: int | None = None) -> Workload:
    return workload(cell, ARCHITECTURE, prompts=PROMPTS, cache_tokens=cache_tokens, lengths=TOKENS)


def batches_of(cell: Cell, *, cache_tokens: int | None = None, seed: int = 7) -> SimulatedBatches:
    return simulated_batches(
        cell,
        LENGTHS,
        prompts=PROMPTS,
        output_tokens=planned(cell, cache_tokens).output_tokens,
        context=ARCHITECTURE.context,
        cache_tokens=cache_tokens,
        seed=seed,
    )


def runs_of(
    cell: Cell, duration_s: float = 1330.0, phases_s: dict[str, float] | None = None
) -> list[BatchRun]:
    return simulated_runs(batches_of(cell), planned(cell), phases_s or PHASES_S, duration_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("cache_tokens", [None, 512])
@pytest.mark.parametrize("length", [32, 256, 1024])
@pytest.mark.parametrize("engine", ["simulated", "simulated-fast"])
def test_a_cell_has_its_prompts_and_exactly_the_planned_output(
    engine: str, length: int, cache_tokens: int | None
) -> None:
    cell = make_cell(engine=engine, batch=64, length=length)
    made, load = batches_of(cell, cache_tokens=cache_tokens), planned(cell, cache_tokens)
    assert [len(plan.prompts) for plan in made.plans] == [64] * 15 + [40]
    assert len(made.plans) == load.batches
    assert len({one for plan in made.plans for one in plan.prompt_ids}) == PROMPTS == len(made.responses)
    assert sum(one.tokens for one in made.responses.values()) == load.output_tokens
    fed = sum(len(prompt) for plan in made.plans for prompt in plan.prompts)
    assert fed == pytest.approx(load.prompt_tokens, rel=0.01)


def test_responses_end_as_those_of_their_length_do() -> None:
    cell = make_cell(engine="simulated", batch=64, length=256)
    made = batches_of(cell)
    ended = [one for one in made.responses.values() if one.finish == "eos"]
    # Of exponentially distributed lengths 1 - e^(-256 / 120) = 0.88 end before 256 tokens.
    assert len(ended) / PROMPTS == pytest.approx(0.88, abs=0.01)
    assert all(one.tokens < 256 for one in ended)
    assert {one.tokens for one in made.responses.values() if one.finish == "length"} == {256}
    # With a cache that is too short for both, the prompt takes the room of the response.
    short = batches_of(cell, cache_tokens=300)
    sizes = {
        one: len(prompt)
        for plan in short.plans
        for one, prompt in zip(plan.prompt_ids, plan.prompts, strict=True)
    }
    cut = {one: found for one, found in short.responses.items() if found.finish == "context"}
    assert cut
    assert all(sizes[one] + found.tokens == 300 for one, found in cut.items())
    assert max(sizes.values()) < 300


def test_prompts_are_drawn_by_the_seed_and_ordered_by_the_engine() -> None:
    def sizes(engine: str, seed: int) -> list[int]:
        made = batches_of(make_cell(engine=engine, batch=64), seed=seed)
        return [len(prompt) for plan in made.plans for prompt in plan.prompts]

    assert sizes("simulated", 7) == sizes("simulated", 7) != sizes("simulated", 8)
    assert sizes("simulated-fast", 7) == sorted(sizes("simulated", 8), reverse=True)
    # One queue for all.
    assert len(batches_of(make_cell(engine="simulated-fast-refill", batch=64)).plans) == 1


def test_times_and_work_of_phases_are_shared_out_whole() -> None:
    cell = make_cell(engine="simulated", batch=64, length=256)
    runs, load = runs_of(cell), planned(cell)
    assert [runs[0].start_s, runs[-1].stop_s] == pytest.approx([0.0, 1330.0])
    for one, following in itertools.pairwise(runs):
        assert following.start_s == one.stop_s
    for name in PHASES:
        own = [phase for run in runs for phase in run.phases if phase.name == name]
        assert sum(phase.stop_s - phase.start_s for phase in own) == pytest.approx(PHASES_S[name])
        work = load.phases[name]
        assert sum(phase.steps for phase in own) == work.steps
        assert sum(phase.tokens for phase in own) == work.work.tokens
        assert sum(phase.attended for phase in own) == work.work.attended
    assert sum(run.generated_tokens for run in runs) == load.generated_tokens
    for run in runs:
        borders = [border for phase in run.phases for border in (phase.start_s, phase.stop_s)]
        assert [run.start_s, *borders, run.stop_s] == sorted([run.start_s, *borders, run.stop_s])
        assert [phase.name for phase in run.phases] == ["prefill", "walk", "decode"]


def test_time_of_the_window_beyond_its_phases_lies_between_batches() -> None:
    runs = runs_of(make_cell(engine="simulated", batch=64), duration_s=1490.0)
    assert runs[-1].stop_s == pytest.approx(1490.0)
    assert [run.stop_s - run.phases[-1].stop_s for run in runs] == pytest.approx([10.0] * 16)


def test_a_phase_that_the_engine_does_not_have_is_in_no_batch() -> None:
    runs = runs_of(make_cell(engine="simulated-fast", batch=64), 930.0, {"prefill": 30.0, "decode": 900.0})
    assert {phase.name for run in runs for phase in run.phases} == {"prefill", "decode"}
