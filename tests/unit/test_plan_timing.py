"""Guards the time of phases: rooflines by hand, what a lower clock slows, and what each part hangs on."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.architectures import CATALOGUE
from shardwatt.cell import Cell
from shardwatt.datasets import TokenLengths
from shardwatt.engines import ENGINES, MODEL_ENGINES
from shardwatt.modelwork import PhaseName, Work
from shardwatt.plan.device import DEFAULT_FACTORS, PlanDevice, device_of
from shardwatt.plan.timing import LOOP_COSTS, PhaseSeconds, phase_seconds
from shardwatt.plan.workload import PhaseLoad, workload
from shardwatt.study import CudaGraphs
from small_project import make_site

LLAMA_65B = CATALOGUE["llama-65b"]
CELL = Cell("reference", "llama-65b", "fp16", "a100", 8, 64, 256, "gsm8k", "none", 1)
#: Real kernels as fast as data sheets say: what reference figures at line rate are compared with.
PERFECT = replace(DEFAULT_FACTORS["cuda"], compute=1.0, bandwidth=1.0, network=1.0)
#: One decode step of 64 rows at position 400.
STEP = PhaseLoad(1, 64, Work(64, 64, 64 * 400, 64), 400)
PROMPTS = TokenLengths(prompt_deciles=[50] * 10 + [300], output_mean=100.0, source="made up")


@pytest.fixture
def a100(tmp_path: Path) -> PlanDevice:
    return device(tmp_path, "a100-sxm-80gb", 80)


@pytest.fixture
def v100(tmp_path: Path) -> PlanDevice:
    return device(tmp_path, "v100-pcie-32gb", 32)


def device(folder: Path, sheet: str, memory_gib: float) -> PlanDevice:
    gpu = {"kind": "cuda", "per_node": 2, "memory_gib": memory_gib, "data_sheet": sheet}
    site = make_site(folder, gpus={"it": gpu}, launcher="slurm", slurm={"gres": "gpu", "nodes": 64})
    found = device_of(site, "it", "fp16", 8)
    assert found is not None
    return found


def processor(folder: Path) -> PlanDevice:
    site = make_site(folder, gpus={"it": {"kind": "cpu", "per_node": 4, "memory_gib": 8}}, threads_per_rank=1)
    found = device_of(site, "it", "fp32", 1)
    assert found is not None
    return found


def decode(
    where: PlanDevice, cell: Cell = CELL, load: PhaseLoad = STEP, nodes: int = 4, **words: Any
) -> PhaseSeconds:
    factors = words.pop("factors", PERFECT)
    return phase_seconds(LLAMA_65B, cell, "decode", load, where, factors, nodes=nodes, **words)


def rows(count: int) -> PhaseLoad:
    return PhaseLoad(1, count, Work(count, count, 400 * count, count), 400)


def test_eight_a100s_read_65b_in_eight_milliseconds(a100: PlanDevice) -> None:
    weights = PhaseLoad(1, 1, Work(1, 1, 0, 1), 0)
    assert decode(a100, load=weights).memory_s == pytest.approx(8.0e-3, rel=0.02)
    four_times = replace(CELL, shards=32)
    assert decode(a100, four_times, weights, 16).memory_s == pytest.approx(2.0e-3, rel=0.02)


def test_32_v100s_read_65b_in_four_and_a_half_milliseconds(v100: PlanDevice) -> None:
    weights = PhaseLoad(1, 1, Work(1, 1, 0, 1), 0)
    assert decode(v100, replace(CELL, shards=32), weights, 16).memory_s == pytest.approx(4.5e-3, rel=0.02)


def test_over_25_gigabit_ethernet_160_sums_rule_a_step(v100: PlanDevice) -> None:
    """2 x 7/8 x 1 MiB at 3.125 GB/s, 160 times, is 94 ms; eight times that at batch 512."""
    at_64 = decode(v100, load=rows(64)).transfer_s
    assert at_64 == pytest.approx(160 * 2 * 7 / 8 * 2**20 / 3.125e9, rel=0.03), "and two gatherings"
    assert 0.090 < at_64 < 0.110
    assert 0.7 < decode(v100, load=rows(512)).transfer_s < 0.9
    # One message of 16 KiB: latency rules.
    alone = decode(v100, load=rows(1))
    assert alone.latency_s > 5 * alone.transfer_s


def test_the_host_launches_some_3700_kernels_a_step(a100: PlanDevice) -> None:
    assert decode(a100).launch_s == pytest.approx((80 * 46 + 60) * 6e-6)
    slower = decode(a100, factors=replace(PERFECT, launch=2.0))
    assert slower.launch_s == pytest.approx(2 * decode(a100).launch_s)


def test_cuda_graphs_take_the_launches_of_a_single_rank_of_fast(a100: PlanDevice) -> None:
    fast = replace(CELL, engine="fast", shards=1)
    assert decode(a100, fast, nodes=1).launch_s == pytest.approx(6e-6)
    assert decode(a100, replace(fast, engine="reference"), nodes=1).launch_s > 0.01
    assert decode(a100, replace(fast, shards=2), nodes=1).launch_s > 0.005, "more ranks launch one by one"
    prefill = phase_seconds(LLAMA_65B, fast, "prefill", STEP, a100, PERFECT, nodes=1)
    assert prefill.launch_s > 0.005


def test_a_launch_bound_step_takes_the_hosts_time(a100: PlanDevice) -> None:
    slow = decode(a100, replace(CELL, shards=1), rows(1), 1, factors=replace(PERFECT, launch=100.0))
    assert slow.duration_s == pytest.approx(slow.launch_s)
    assert slow.busy < 0.2


def test_the_published_loop_reads_the_cache_twice_more_than_it_must(a100: PlanDevice) -> None:
    longer = replace(STEP, work=replace(STEP.work, attended=64 * 800), positions=800)
    more = decode(a100, load=longer)
    least = more.memory_s - decode(a100).memory_s
    assert more.copies_s - decode(a100).copies_s == pytest.approx(2 * least)
    fast = replace(CELL, engine="fast")
    assert decode(a100, fast, longer).copies_s == decode(a100, fast).copies_s


def test_repeated_heads_multiply_the_copies(a100: PlanDevice) -> None:
    grouped = CATALOGUE["llama-2-70b"]
    longer = replace(STEP, work=replace(STEP.work, attended=64 * 800), positions=800)
    parts = {}
    for engine in ("reference", "hf", "fast"):
        short, long = (
            phase_seconds(grouped, replace(CELL, engine=engine), "decode", load, a100, PERFECT, nodes=4)
            for load in (STEP, longer)
        )
        parts[engine] = (long.copies_s - short.copies_s) / (long.memory_s - short.memory_s)
    # Eight query heads to each of key and values.
    assert parts == {"reference": pytest.approx(32), "hf": pytest.approx(18), "fast": 0}


def test_a_prefill_is_arithmetic_and_a_step_of_few_rows_is_memory(a100: PlanDevice) -> None:
    prompts = PhaseLoad(1, 64, Work(64 * 256, 64, 64 * 256 * 128, 64 * 256), 256)
    prefill = phase_seconds(LLAMA_65B, CELL, "prefill", prompts, a100, PERFECT, nodes=4)
    assert prefill.compute_s == pytest.approx(2 * 65e9 * 64 * 256 / 8 / 312e12, rel=0.05)
    assert prefill.compute_s > 20 * prefill.memory_s
    few = decode(a100, load=rows(4))
    assert few.memory_s > 5 * few.compute_s


def test_of_each_product_the_longer_of_arithmetic_and_reading_counts(a100: PlanDevice) -> None:
    """With many rows products are arithmetic, while attention still reads the cache: they add up."""
    found = decode(a100, replace(CELL, engine="fast", shards=1), rows(4096), 1)
    other = found.copies_s + found.kernels_s + found.sampling_s
    products_and_attention_s = found.duration_s - other
    assert products_and_attention_s > max(found.compute_s, found.memory_s)
    assert products_and_attention_s < found.compute_s + found.memory_s


def test_a_lower_clock_slows_arithmetic_and_small_kernels_alone(a100: PlanDevice) -> None:
    full, half = (decode(a100, clock=clock) for clock in (1.0, 0.5))
    assert half.compute_s == pytest.approx(2 * full.compute_s)
    assert half.kernels_s > full.kernels_s
    for part in ("memory_s", "copies_s", "sampling_s", "latency_s", "transfer_s", "launch_s"):
        assert getattr(half, part) == getattr(full, part), part
    assert full.duration_s <= half.duration_s < 2 * full.duration_s


def test_factors_slow_what_they_are_of(a100: PlanDevice) -> None:
    best = decode(a100)
    for factors, parts in (
        (replace(PERFECT, compute=0.5), {"compute_s"}),
        (replace(PERFECT, bandwidth=0.5), {"memory_s", "copies_s", "sampling_s"}),
        (replace(PERFECT, network=0.5), {"transfer_s", "latency_s"}),
    ):
        found = decode(a100, factors=factors)
        for part in ("compute_s", "memory_s", "copies_s", "sampling_s", "transfer_s", "latency_s"):
            times = 2 if part in parts else 1
            assert getattr(found, part) == pytest.approx(times * getattr(best, part)), part


def test_one_shard_exchanges_nothing_and_more_shards_share_the_rest(a100: PlanDevice) -> None:
    alone, many = decode(a100, replace(CELL, shards=1), nodes=1), decode(a100)
    assert (alone.latency_s, alone.transfer_s, alone.busy_collective) == (0, 0, 0)
    for part in ("compute_s", "memory_s"):
        assert getattr(many, part) == pytest.approx(getattr(alone, part) / 8, rel=0.01)
    assert many.sampling_s == alone.sampling_s, "each rank draws over the whole vocabulary"


def test_on_a_processor_launches_add_to_the_work(tmp_path: Path) -> None:
    core = processor(tmp_path)
    cell = replace(CELL, precision="fp32", shards=1)
    found = decode(core, cell, nodes=1, factors=DEFAULT_FACTORS["cpu"])
    parts = found.copies_s + found.sampling_s + found.launch_s
    assert found.kernels_s == 0
    assert found.duration_s >= parts + max(found.compute_s, found.memory_s)


def test_a_phase_that_does_not_occur_takes_no_time(a100: PlanDevice) -> None:
    nothing = decode(a100, load=PhaseLoad())
    assert all(getattr(nothing, field.name) == 0 for field in fields(nothing))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["llama-7b", "llama-3.1-8b", "llama-2-70b"])
def test_shares_are_shares_of_the_phase(engine: str, model: str, a100: PlanDevice) -> None:
    shape = CATALOGUE[model]
    cell = replace(CELL, engine=engine, model=model, shards=2)
    load = workload(cell, shape, prompts=128, cache_tokens=None, lengths=PROMPTS)
    for name, part in load.phases.items():
        found = phase_seconds(shape, cell, name, part, a100, DEFAULT_FACTORS["cuda"], nodes=1)
        for share in ("busy", "busy_compute", "busy_memory", "busy_collective"):
            assert 0 <= getattr(found, share) <= 1 + 1e-9, (name, share)


@given(st.integers(1, 512), st.integers(1, 512), st.floats(0.2, 1.0), st.sampled_from(["prefill", "decode"]))
def test_more_rows_and_a_lower_clock_never_take_less_time(
    one: int, other: int, clock: float, phase: PhaseName
) -> None:
    where = _plain_device()
    few, many = (
        phase_seconds(LLAMA_65B, CELL, phase, rows(count), where, PERFECT, nodes=4).duration_s
        for count in sorted((one, other))
    )
    assert few <= many * (1 + 1e-9)
    slow = phase_seconds(LLAMA_65B, CELL, phase, rows(one), where, PERFECT, nodes=4, clock=clock).duration_s
    fast = phase_seconds(LLAMA_65B, CELL, phase, rows(one), where, PERFECT, nodes=4).duration_s
    assert fast <= slow


def _plain_device() -> PlanDevice:
    return device(Path("nowhere"), "v100-pcie-32gb", 32)


def test_every_loop_has_its_costs() -> None:
    assert set(LOOP_COSTS) == {facts.loop for facts in MODEL_ENGINES.values()}
    for costs in LOOP_COSTS.values():
        assert 0 < costs.small < costs.kernels
        assert set(costs.sampling_bytes) == {"cuda", "cpu"}


@pytest.mark.parametrize(
    ("cuda_graphs", "shards", "replays"),
    [
        ("one-shard", 1, True),
        ("one-shard", 4, False),
        ("always", 4, True),
        ("always", 1, True),
        ("never", 1, False),
        ("never", 4, False),
    ],
)
def test_a_study_says_where_decode_steps_are_replayed(
    a100: PlanDevice, cuda_graphs: CudaGraphs, shards: int, replays: bool
) -> None:
    cell = replace(CELL, engine="fast", shards=shards)
    words: dict[str, Any] = {"nodes": 1, "cuda_graphs": cuda_graphs}
    decode_s = phase_seconds(LLAMA_65B, cell, "decode", STEP, a100, PERFECT, **words).launch_s
    prefill_s = phase_seconds(LLAMA_65B, cell, "prefill", STEP, a100, PERFECT, **words).launch_s
    assert (decode_s == pytest.approx(STEP.steps * a100.launch_s)) == replays
    assert decode_s < prefill_s / 100 if replays else decode_s == prefill_s, "a prefill is never captured"


@pytest.mark.parametrize("engine", ["reference", "fast", "hf"])
def test_the_likeliest_token_is_found_without_a_sort(a100: PlanDevice, engine: str) -> None:
    cell = replace(CELL, engine=engine)
    drawn, greedy = (
        phase_seconds(LLAMA_65B, cell, "decode", STEP, a100, PERFECT, nodes=1, temperature=temperature)
        for temperature in (0.8, 0.0)
    )
    assert 0 < greedy.sampling_s < drawn.sampling_s / 40
    assert (greedy.compute_s, greedy.launch_s) == (drawn.compute_s, drawn.launch_s)
