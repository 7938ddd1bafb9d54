"""Guards what a record is made of: times that add up, joules of the right stretch, nothing invented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sentencepiece import SentencePieceTrainer

from shardwatt.architectures import CATALOGUE, from_params
from shardwatt.cell import Cell
from shardwatt.data.tokenizer import Tokenizer, open_tokenizer
from shardwatt.datasets import load_catalogue
from shardwatt.jobshape import JobShape
from shardwatt.models import Checkpoint
from shardwatt.plan.forecast import Forecaster
from shardwatt.plan.memory import memory_need
from shardwatt.power.curve import Array
from shardwatt.power.host import HostTrace
from shardwatt.power.trace import Trace
from shardwatt.readings import Method, PowerCap, Reading, Scope, Status
from shardwatt.recordfiles import read
from shardwatt.records import Inputs, Outcome, Record
from shardwatt.run.assemble import assemble, assemble_does_not_fit
from shardwatt.run.baseline import CoolDown
from shardwatt.run.energy import MINIMUM_TICKS
from shardwatt.run.exchange import BatchPlan, BatchRun, PhaseTime, RankEnd, RunReport
from shardwatt.run.job import Job
from shardwatt.run.measured import Baseline, DcgmMissing, Measured
from shardwatt.run.provenance import versions
from shardwatt.study import Constants, Study
from small_project import make_site, study_content
from synthetic_cells import make_cell
from synthetic_traces import a_device, a_node, a_trace, times

START_S = 100.0
#: Time in s between samples, and so a tick of the meter.
TICK_S = 0.1
STARTED = datetime(2026, 1, 2, tzinfo=UTC)
SPAN = (80.0, 170.0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    prefix = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=iter(["the lamp is on", "the lamp is off and on again"]),
        model_prefix=str(prefix), model_type="bpe", vocab_size=290, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1,
    )  # fmt: skip
    return open_tokenizer(prefix.with_suffix(".model"))


def power_w(t_s: Array) -> Array:
    """100 W, and 300 W while the second batch runs, from 120 s on."""
    return np.where((t_s >= 120) & (t_s < 130), 300.0, 100.0)


def make_trace(nodes: int = 1, status: Status = Status.MEASURED) -> Trace:
    """A counter a node over 70 s to 180 s."""
    t_s = times(70, 180)
    unknown: dict[str, Any] = {}
    if status is not Status.MEASURED:
        unknown["counter_j"] = np.full(len(t_s), np.nan)
    detail = None if status is Status.MEASURED else "no driver"
    names = [f"host{index}" for index in range(nodes)]
    devices = [a_device(name, t_s=t_s, power=power_w, **unknown) for name in names]
    return a_trace(*(a_node([device], status=status, detail=detail) for device in devices))


def make_measured(trace: Trace) -> Measured:
    """What the meters give of a cell without anything beside them."""
    coverage = trace.coverage([], [])
    return Measured(
        trace=trace,
        host=HostTrace([]),
        job_span=SPAN,
        unloaded=None,
        cool_down=None,
        power_cap=None,
        dcgm=DcgmMissing(Status.UNAVAILABLE, "not asked"),
        slurm_node=Reading(
            joules=None, method=None, status=Status.UNSUPPORTED, scope=Scope.ALL_NODES, coverage=coverage
        ),
    )


def batch_run(tokenizer: Tokenizer, start_s: float, texts: list[str], lengths: dict[str, float]) -> BatchRun:
    """A batch: half a second before its first phase, a quarter between phases and after the last."""
    now_s = start_s + 0.5
    phases = []
    for name, length_s in lengths.items():
        work = {"steps": 2, "tokens": 10, "attended": 30}
        phases.append(
            PhaseTime.model_validate({"name": name, "start_s": now_s, "stop_s": now_s + length_s, **work})
        )
        now_s += length_s + 0.25
    return BatchRun(
        start_s=start_s,
        stop_s=now_s,
        phases=phases,
        # The begin of sequence, which is no text, can be sampled too.
        tokens=[[*tokenizer.encode(text)[1:], tokenizer.bos_id] for text in texts],
        finish=["eos"] * len(texts),
        generated_tokens=16 * len(texts),
    )


@pytest.fixture
def report(tokenizer: Tokenizer) -> RunReport:
    """A window from 100 to 150 s: batches at 102 s and 120 s, the second with a walk of half a second."""
    return RunReport(
        window_start_s=START_S,
        window_stop_s=150.0,
        rendezvous_s=-0.2,
        load_s=5.0,
        warmup_s=1.0,
        idle_loaded=None,
        versions=versions(),
        engine_notes={"loop": "as published"},
        batches=[
            batch_run(tokenizer, 102.0, ["the lamp", "on again"], {"prefill": 2.0, "decode": 8.0}),
            batch_run(tokenizer, 120.0, ["off"], {"prefill": 3.0, "walk": 0.5, "decode": 4.0}),
        ],
    )


@pytest.fixture
def job(tmp_path: Path, tokenizer: Tokenizer) -> Job:
    return make_job(tmp_path, tokenizer, make_cell(gpu="cpu", shards=1, batch=2))


def make_job(root: Path, tokenizer: Tokenizer, cell: Cell, nodes: int = 1, **site: Any) -> Job:
    params: dict[str, object] = {"dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 32}
    return Job(
        root=root,
        study="study",
        cell=cell,
        constants=Constants(prompts=3),
        site=make_site(root, **site),
        shape=JobShape(nodes, 1),
        checkpoint=Checkpoint(root, root / "tokenizer.model", "meta", ("consolidated.00.pth",)),
        architecture=from_params(params, tokenizer.vocab_size),
        tokenizer=tokenizer,
        eos_ids=tokenizer.eos_ids,
        inputs=Inputs(model_fingerprint="f" * 16, dataset_sha256="d" * 64, prompt_ids_sha256="e" * 64),
        batches=[
            BatchPlan(prompt_ids=["a", "b"], prompts=[[1, 5, 6], [1, 5]], positions=64, rows=2),
            BatchPlan(prompt_ids=["c"], prompts=[[1, 7, 8, 9]], positions=64, rows=1),
        ],
        longest_prompt=40,
        threads_per_rank=3,
        commit=("0" * 40, True),
    )


@pytest.fixture
def make(tmp_path: Path, job: Job) -> Callable[..., Record]:
    def make(report: RunReport, trace: Trace, job: Job = job, **beside: Any) -> Record:
        ends = [RankEnd(rank=rank, node="host0", ok=True, peak_memory_gib=1.5 + rank) for rank in range(2)]
        assemble(
            job, tmp_path, job_id="7", node="host0", started_at=STARTED, report=report, ends=ends,
            measured=replace(make_measured(trace), **beside),
        )  # fmt: skip
        return read(Record, tmp_path / "result.json")

    return make


def test_phases_and_what_is_between_add_up_to_the_window(
    make: Callable[..., Record], report: RunReport
) -> None:
    timings = make(report, make_trace()).timings
    assert timings is not None
    assert (timings.prefill_s, timings.walk_s, timings.decode_s) == (5.0, 0.5, 12.0)
    assert timings.duration_s == 50.0
    assert timings.between_s == 50.0 - 17.5
    assert timings.job_duration_s == 90.0
    assert timings.rendezvous_s == 0.0  # clocks that were set back give no negative time
    assert timings.ended_at - timings.started_at > timedelta(0)


def test_joules_are_those_of_each_stretch(make: Callable[..., Record], report: RunReport) -> None:
    """100 W, 300 W from 120 to 130 s; the second batch's 7.5 s of phases begin at 120.5 s."""
    energy = make(report, make_trace()).energy
    assert energy is not None
    assert energy.window.joules == pytest.approx(40 * 100 + 10 * 300)
    assert energy.job.joules == pytest.approx(80 * 100 + 10 * 300)
    assert energy.prefill.joules == pytest.approx(2 * 100 + 3 * 300)
    assert energy.decode.joules == pytest.approx(8 * 100 + 4 * 300)
    phases_j = 10 * 100 + 7.5 * 300
    assert energy.between.joules == pytest.approx(7000 - phases_j)
    assert (energy.window.status, energy.decode.status) == (Status.MEASURED, Status.DERIVED)


def test_stretches_too_short_for_the_meter_have_no_joules(
    make: Callable[..., Record], report: RunReport, tmp_path: Path
) -> None:
    assert MINIMUM_TICKS * TICK_S > 0.5
    energy = make(report, make_trace()).energy
    assert energy is not None
    assert energy.walk.joules is None
    assert energy.walk.status is Status.UNAVAILABLE
    assert "in stretches of 10 ticks" in (energy.walk.detail or "")
    rows = pq.read_table(tmp_path / "batches.parquet").to_pylist()
    assert [row["walk_j"] for row in rows] == [None, None]
    assert rows[1]["walk_s"] == 0.5


def test_a_batch_too_short_for_the_meter_has_no_joules_and_the_window_still_has(
    make: Callable[..., Record], report: RunReport, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    short = batch_run(tokenizer, 140.0, ["off"], {"decode": 0.2})
    record = make(report.model_copy(update={"batches": [report.batches[0], short]}), make_trace())
    rows = pq.read_table(tmp_path / "batches.parquet").to_pylist()
    assert rows[0]["energy_j"] == pytest.approx(100 * (rows[0]["stop_s"] - rows[0]["start_s"]))
    assert rows[1]["stop_s"] - rows[1]["start_s"] == pytest.approx(0.95)
    assert rows[1]["energy_j"] is None
    assert record.energy is not None
    assert record.energy.window.joules == pytest.approx(7000)


def test_what_was_done_to_the_devices_before_stands_in_the_record(
    make: Callable[..., Record], report: RunReport
) -> None:
    plain = make(report, make_trace())
    assert plain.timings is not None
    assert (plain.timings.cool_down_s, plain.power_cap) == (None, None)
    cap = PowerCap(asked_w=150, set_by="prolog", devices=[])
    record = make(report, make_trace(), power_cap=cap, cool_down=CoolDown(7.5, reached=True, hottest_c=40.0))
    assert record.timings is not None
    assert (record.timings.cool_down_s, record.power_cap) == (7.5, cap)


def test_the_record_of_a_short_cell_on_an_estimate_is_as_whole_as_any(
    make: Callable[..., Record], report: RunReport, tmp_path: Path
) -> None:
    """What a machine without meters gives: the demo."""
    device = a_device(t_s=times(70, 180), power=power_w, method=Method.ESTIMATE)
    trace = a_trace(a_node([device], status=Status.ESTIMATED, detail="tdp_w 300 (a test)"))
    energy = make(report, trace).energy
    assert energy is not None
    assert energy.window.joules == pytest.approx(7000, abs=20)
    assert {energy.window.status, energy.decode.status, energy.devices[0].status} == {Status.ESTIMATED}
    assert (energy.scope_ratio, energy.method_ratio, energy.dcgm) == (1.0, None, None)
    assert (energy.window_dcgm.joules, energy.window_dcgm.detail) == (None, "not asked")
    assert (energy.cpu.joules, energy.dram.joules, energy.slurm_node.joules) == (None, None, None)
    assert (energy.idle_unloaded.power_w, energy.idle_loaded.power_w) == (None, None)
    assert energy.violations == []


def test_the_baseline_for_the_next_cell_comes_back(job: Job, report: RunReport, tmp_path: Path) -> None:
    ends = [RankEnd(rank=0, node="host0", ok=True)]
    measured = replace(make_measured(make_trace()), unloaded=(72.0, 77.0))
    baseline = assemble(
        job, tmp_path, job_id="7", node="host0", started_at=STARTED, report=report, ends=ends,
        measured=measured,
    )  # fmt: skip
    assert isinstance(baseline, Baseline)
    assert baseline.cell == job.cell.path
    assert baseline.idle.power_w == pytest.approx(100)


def test_unknown_energy_is_never_zero(make: Callable[..., Record], report: RunReport, tmp_path: Path) -> None:
    energy = make(report, make_trace(status=Status.PERMISSION_DENIED)).energy
    assert energy is not None
    for reading in (energy.window, energy.window_rank0_scaled, energy.decode, energy.between, energy.job):
        assert reading.joules is None
        assert reading.status is Status.PERMISSION_DENIED
    rows = pq.read_table(tmp_path / "batches.parquet").to_pylist()
    assert {row[name] for row in rows for name in row if name.endswith("_j")} == {None}


def test_the_papers_accounting_scales_the_first_node(
    make: Callable[..., Record], report: RunReport, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    two = make_job(tmp_path, tokenizer, make_cell(gpu="v100", shards=2, batch=2), nodes=2)
    trace = make_trace(nodes=2)
    record = make(report, trace, two)
    assert record.energy is not None
    assert record.energy.window.joules == pytest.approx(2 * 7000)
    assert record.energy.window_rank0_scaled.joules == pytest.approx(2 * 7000)
    assert record.energy.window_rank0_scaled.coverage.nodes == ["host0"]
    assert record.nodes == 2
    assert record.memory.planned_memory_gib is not None


def test_counts_and_rows_are_those_of_prompts_and_batches(
    make: Callable[..., Record], report: RunReport, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    counts = make(report, make_trace()).counts
    assert counts is not None
    output = sum(len(tokens) for run in report.batches for tokens in run.tokens)
    assert (counts.prompts, counts.responses, counts.batches) == (3, 3, 2)
    assert (counts.prompt_tokens, counts.output_tokens, counts.generated_tokens) == (9, output, 48)
    assert counts.words == 2 + 2 + 1
    assert counts.output_tokens_reencoded == output - 3
    assert counts.output_tokens_reencoded == sum(map(tokenizer.count, ("the lamp", "on again", "off")))
    responses = pq.read_table(tmp_path / "responses.parquet").to_pylist()
    assert [(row["prompt_id"], row["batch"]) for row in responses] == [("a", 0), ("b", 0), ("c", 1)]
    assert [row["text"] for row in responses] == ["the lamp", "on again", "off"]
    batches = pq.read_table(tmp_path / "batches.parquet").to_pylist()
    assert [(row["rows"], row["prompt_tokens"], row["words"]) for row in batches] == [(2, 5, 4), (1, 4, 1)]
    assert batches[1]["start_s"] == 20.0


PEAK = {"memory_bandwidth_gb_s": 1, "tflops": {"fp16": 0.001}, "source": "a test"}


def test_phases_have_their_work_and_its_share_of_the_machines_peak(
    make: Callable[..., Record], report: RunReport, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Layers of width 64 with 4 heads of 16 and 192 wide; 290 pieces; fp16; two batches' stretches."""
    cpu = {"kind": "cpu", "per_node": 1, "memory_gib": 2, "peak": PEAK}
    job = make_job(tmp_path, tokenizer, make_cell(gpu="cpu", batch=2), gpus={"cpu": cpu})
    efficiency = make(report, make_trace(), job).efficiency
    assert efficiency is not None
    assert efficiency.peak is not None
    assert (efficiency.peak.source, efficiency.peak.devices) == ("a test", 1)
    prefill, walk, decode = efficiency.prefill, efficiency.walk, efficiency.decode
    assert (prefill.steps, prefill.tokens, walk.tokens, decode.tokens) == (4, 20, 10, 20)
    assert [prefill.tokens_per_s, decode.tokens_per_s] == pytest.approx([20 / 5, 20 / 12])
    assert prefill.tokens_useful_per_s == pytest.approx(prefill.tokens_useful / 5)
    layers = 2 * (4 * 64 * 64 + 3 * 64 * 192)
    assert prefill.flop_executed == 2 * layers * 20 + 2 * 64 * 290 * 3 + 4 * 2 * 64 * 60
    assert decode.flop_executed == 2 * layers * 20 + 2 * 64 * 290 * 20 + 4 * 2 * 64 * 60
    assert decode.moved_bytes == 2 * (4 * (layers + 5 * 64 + 64 * 290) + 20 * 64 + 2 * 2 * 64 * 60)
    assert decode.bandwidth_utilisation == pytest.approx(decode.moved_bytes / (1e9 * 12))
    assert decode.flop_utilisation_executed == pytest.approx(decode.flop_executed / (1e9 * 12))
    window = efficiency.window
    assert window.flop_utilisation_executed == pytest.approx(window.flop_executed / (1e9 * 50))
    # All prompts end by themselves; the last one walks, so its batch's useful prefill is its shortest prompt.
    assert prefill.tokens_useful == 3 + 2 + 4
    output = sum(len(tokens) for run in report.batches for tokens in run.tokens)
    assert prefill.tokens_useful + walk.tokens_useful + decode.tokens_useful == 9 + output


def test_a_site_without_figures_leaves_utilisation_empty_and_work_known(
    make: Callable[..., Record], report: RunReport
) -> None:
    efficiency = make(report, make_trace()).efficiency
    assert efficiency is not None
    assert efficiency.peak is None
    assert efficiency.decode.moved_bytes is not None
    assert efficiency.decode.bandwidth_utilisation is None
    assert efficiency.window.flop_utilisation_useful is None


def test_the_plan_is_that_of_the_engines_loop(
    make: Callable[..., Record], report: RunReport, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    planned = {}
    context_gib = 0.75
    for engine in ("reference", "fast", "hf"):
        job = make_job(tmp_path, tokenizer, make_cell(engine=engine, gpu="v100", batch=2))
        record = make(report, make_trace(), job)
        planned[engine] = record.memory.planned_memory_gib
        need = memory_need(
            job.architecture, precision="fp16", shards=1, batch=2, length=job.cell.length, longest_prompt=40,
            engine=engine,
        )  # fmt: skip
        assert planned[engine] == need.total_gib
        # torch does not count the CUDA context, so its peak is compared with the rest.
        assert record.memory.planned_allocated_gib == pytest.approx(need.total_gib - context_gib)
    assert len(set(planned.values())) == 3


def test_a_records_planned_memory_is_the_plans_own(
    make: Callable[..., Record], report: RunReport, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """With the data set's longest prompt, and of a batch as many rows as there are prompts."""
    root = Path(__file__).parents[2]
    longest_prompt = load_catalogue(root).dataset("alpaca").longest_prompt
    assert longest_prompt not in (None, 256), "another one than is assumed where none is known"
    for prompts in (4096, 8):
        study = Study(**study_content(prompts=prompts))
        job = replace(
            make_job(tmp_path, tokenizer, make_cell(engine="hf", gpu="v100", batch=64)),
            architecture=CATALOGUE["llama-7b"],
            constants=study.constants,
            longest_prompt=longest_prompt,
        )
        record = make(report, make_trace(), job)
        need = Forecaster(root, "study", study, job.site).need(job.cell)
        assert need is not None
        assert record.memory.planned_memory_gib == need.total_gib


def test_how_the_engine_ran_and_took_its_prompts_is_told(
    make: Callable[..., Record], report: RunReport, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    assert make(report, make_trace()).provenance.prompt_order == "sample"
    fast = make_job(tmp_path, tokenizer, make_cell(engine="fast", gpu="cpu", batch=2))
    notes = {"kernels": "packed", "CUDA graphs": "none: two ranks"}
    origin = make(report.model_copy(update={"engine_notes": notes}), make_trace(), fast).provenance
    assert (origin.prompt_order, origin.engine) == ("length", notes)


def test_samples_count_from_the_windows_begin(
    make: Callable[..., Record], report: RunReport, tmp_path: Path
) -> None:
    make(report, make_trace())
    times = pq.read_table(tmp_path / "power.parquet")["t_s"].to_pylist()
    assert times[0] == pytest.approx(-30.0)
    assert times[-1] == pytest.approx(80.0)


def test_a_record_says_where_it_comes_from(make: Callable[..., Record], report: RunReport) -> None:
    record = make(report, make_trace())
    origin = record.provenance
    assert (origin.job_id, origin.site, origin.nodes, origin.device_names) == (
        "7", "testbed", ["host0"], ["GPU"],
    )  # fmt: skip
    assert (origin.commit, origin.commit_dirty, origin.threads_per_rank) == ("0" * 40, True, 3)
    assert {"python", "torch", "shardwatt"} <= origin.versions.keys()
    assert record.memory.peak_memory_gib == 2.5
    assert (record.memory.planned_memory_gib, record.memory.planned_allocated_gib) == (None, None)


def test_what_does_not_fit_is_a_record_without_measurements(job: Job, tmp_path: Path) -> None:
    assemble_does_not_fit(job, tmp_path, job_id="7", node="host3", reason="rank 0 wanted 2 GiB more")
    record = read(Record, tmp_path / "result.json")
    assert (record.outcome, record.reason) == (Outcome.DOES_NOT_FIT, "rank 0 wanted 2 GiB more")
    assert (record.timings, record.energy, record.counts) == (None, None, None)
    assert record.provenance.nodes == ["host3"]
    assert (record.efficiency, record.provenance.engine) == (None, {})
    assert record.power_cap is None
    cap = PowerCap(asked_w=150, set_by="prolog", devices=[])
    assemble_does_not_fit(job, tmp_path, job_id="7", node="host3", reason="too large", power_cap=cap)
    assert read(Record, tmp_path / "result.json").power_cap == cap
    for name in ("responses", "batches", "power"):
        assert pq.read_table(tmp_path / f"{name}.parquet").num_rows == 0


def test_gpus_come_with_how_busy_their_nodes_processors_were(
    make: Callable[..., Record], report: RunReport
) -> None:
    t_s = times(70, 180)
    busy = np.where((t_s >= report.window_start_s) & (t_s <= report.window_stop_s), 0.75, 0.1)
    unknown = np.full(len(t_s), np.nan)
    full = np.full(len(t_s), 0.5)
    processors = a_device(t_s=t_s, counter_j=unknown, cpu_utilisation=busy, memory_filled=full)
    host = HostTrace([a_node([processors], status=Status.UNAVAILABLE)])
    utilisation = make(report, make_trace(), host=host).utilisation
    assert utilisation is not None
    assert (utilisation.cpu_utilisation.mean, utilisation.cpu_utilisation.max) == (0.75, 0.75)
    # The memory of a GPU is not that of its node.
    assert utilisation.memory_filled.mean is None
    # Processors that are the headline have their own.
    own = a_device(t_s=t_s, power=power_w, method=Method.RAPL, cpu_utilisation=full, memory_filled=full)
    utilisation = make(report, a_trace(a_node([own])), host=host).utilisation
    assert utilisation is not None
    assert (utilisation.cpu_utilisation.mean, utilisation.memory_filled.mean) == (0.5, 0.5)
