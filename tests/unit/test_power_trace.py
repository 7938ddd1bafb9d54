"""Traces read back from samplers' files: nodes, scopes, coverage, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardwatt.cellfiles import read_table, write_columns
from shardwatt.errors import RecordError
from shardwatt.power.clock import NodeClock
from shardwatt.power.sampling.files import COLUMNS, SamplerFile, meter_path, sampler_path, samples_path
from shardwatt.power.sampling.table import read_samples
from shardwatt.power.trace import load_trace
from shardwatt.readings import Method, PowerSource, Scope, Status
from shardwatt.recordfiles import write
from synthetic_traces import a_device, a_node, a_trace, one_node, times, write_node


def test_one_window_of_a_counter_is_measured_and_a_phase_is_derived(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 150])
    trace = load_trace(tmp_path, 1, 2)
    window = trace.reading([(2, 12)], Scope.ALL_NODES)
    assert window.joules == pytest.approx(2500)
    assert (window.status, window.method) == (Status.MEASURED, Method.NVML_COUNTER)
    assert window.uncertainty_j == pytest.approx(2 * 250 * 0.1)
    for phase in (
        trace.reading([(2, 12)], Scope.ALL_NODES, minimum_ticks=10),
        trace.reading([(2, 4), (6, 8)], Scope.ALL_NODES),
    ):
        assert phase.status is Status.DERIVED
    short = trace.reading([(2, 2.5)], Scope.ALL_NODES, minimum_ticks=10)
    assert (short.joules, short.method, short.status) == (None, None, Status.UNAVAILABLE)
    assert short.detail
    assert "lasted 0.5 s" in short.detail


def test_touching_and_overlapping_intervals_count_once(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100])
    trace = load_trace(tmp_path, 1, 1)
    reading = trace.reading([(6, 8), (2, 4), (4, 5), (4.5, 6), (9, 9)], Scope.ALL_NODES)
    assert reading.joules == pytest.approx(600)
    assert reading.status is Status.MEASURED
    assert reading.uncertainty_j == pytest.approx(2 * 100 * 0.1)
    with pytest.raises(ValueError, match="stops before it starts"):
        trace.reading([(4, 3)], Scope.ALL_NODES)


def test_all_nodes_sum_what_each_drew_and_rank0_scales_the_first(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 100])
    write_node(tmp_path, 1, [300, 100])
    trace = load_trace(tmp_path, 2, 2)
    everything = trace.reading([(2, 12)], Scope.ALL_NODES)
    scaled = trace.reading([(2, 12)], Scope.RANK0_NODE_SCALED)
    assert everything.joules == pytest.approx(6000)
    assert everything.status is Status.MEASURED
    # Wrong by what node 1 draws more, and so no measurement of it.
    assert scaled.joules == pytest.approx(4000)
    assert scaled.status is Status.DERIVED
    assert scaled.uncertainty_j == pytest.approx(2 * 2 * 200 * 0.1)
    assert everything.coverage.nodes == ["host0", "host1"]
    assert everything.coverage.devices_expected == len(everything.coverage.devices) == 4
    assert (scaled.coverage.nodes, scaled.coverage.nodes_expected) == (["host0"], 2)


def test_coverage_counts_samples_of_the_window(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 150])
    coverage = load_trace(tmp_path, 1, 2).reading([(2.05, 12.05)], Scope.ALL_NODES).coverage
    assert coverage.samples == 200
    assert coverage.period_s == pytest.approx(0.1)
    assert coverage.max_gap_s == pytest.approx(0.1)


def test_clocks_of_other_nodes_are_brought_to_node_0(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100])
    write_node(tmp_path, 1, [300], clock_ahead_s=5e4)
    trace = load_trace(tmp_path, 2, 1)
    assert trace.reading([(2, 12)], Scope.ALL_NODES).joules == pytest.approx(4000, abs=1e-2)
    *_, last = trace.columns(0.0)
    assert (last["node"], last["uuid"]) == ("host1", "GPU-1-0")
    assert np.asarray(last["t_s"])[-1] == pytest.approx(20, abs=1e-6)


def test_a_clock_that_drifts_is_brought_back_at_both_ends_of_the_window(tmp_path: Path) -> None:
    """Node 1's clock counts 10.4 s while node 0's counts 10."""
    write_node(tmp_path, 0, [100])
    write_node(tmp_path, 1, [100])
    stepped = NodeClock("host1", offset_s=0.0, wall_ahead_s=0.0, opened_s=2.0, closed_s=12.4, drift_s=-0.4)
    trace = load_trace(tmp_path, 2, 1, [NodeClock("host0", 0.0, 0.0), stepped])
    t_s = trace.nodes[1].devices[0].columns["t_s"]
    assert t_s[[0, 20]] == pytest.approx([0.0, 2.0])
    assert t_s[[124, 200]] == pytest.approx([12.0, 19.6])
    reading = trace.reading([(2, 12)], Scope.ALL_NODES)
    assert reading.joules == pytest.approx(1000 + 1040)
    assert reading.coverage.clock_drift_s == pytest.approx(0.4)


def test_clocks_of_a_barrier_count_and_wall_clocks_do_not(tmp_path: Path) -> None:
    """Wall clocks are 100 s apart, and monotonic clocks have nothing to do with each other."""
    write_node(tmp_path, 0, [100])
    write_node(tmp_path, 1, [300], clock_ahead_s=-7e4, wall_ahead_s=100.0)
    clocks = [NodeClock("host0", 0.0, 0.0), NodeClock("host1", 7e4, 100.0)]
    reading = load_trace(tmp_path, 2, 1, clocks).reading([(2, 12)], Scope.ALL_NODES)
    assert reading.joules == pytest.approx(4000)
    assert reading.coverage.clock_offset_s == 100.0
    assert reading.coverage.clock_drift_s is None
    by_wall_clocks = load_trace(tmp_path, 2, 1).reading([(2, 12)], Scope.ALL_NODES)
    assert by_wall_clocks.joules is None
    assert by_wall_clocks.coverage.clock_offset_s is None


def test_a_meter_on_another_node_than_its_ranks_is_not_taken_for_theirs(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100])
    write_node(tmp_path, 1, [300])
    clocks = [NodeClock("host0", 0.0, 0.0), NodeClock("host7", 0.0, 0.0)]
    reading = load_trace(tmp_path, 2, 1, clocks).reading([(2, 12)], Scope.ALL_NODES)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail == "host1: as node 1 it has a meter, and host7 has its ranks"


def test_with_node_0s_meter_dead_the_other_nodes_devices_are_still_read(tmp_path: Path) -> None:
    write_node(tmp_path, 1, [100], clock_ahead_s=3e3)
    clocks = [NodeClock("host0", 0.0, 0.0), NodeClock("host1", -3e3, 0.0)]
    trace = load_trace(tmp_path, 2, 1, clocks)
    for scope in Scope:
        reading = trace.reading([(2, 12)], scope)
        assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
        assert reading.detail
        assert "node 0 has no meter-0.json" in reading.detail
    (device,) = trace.devices
    assert device.part([(2, 12)]).joules == pytest.approx(1000)


def test_missing_node_makes_all_nodes_unavailable_and_is_not_extrapolated(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100])
    trace = load_trace(tmp_path, 2, 1)
    reading = trace.reading([(2, 12)], Scope.ALL_NODES)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail
    assert "node 1 has no meter-1.json" in reading.detail
    assert (reading.coverage.nodes, reading.coverage.nodes_expected) == (["host0"], 2)
    assert trace.reading([(2, 12)], Scope.RANK0_NODE_SCALED).joules == pytest.approx(2000)


def test_without_node_0_there_is_no_clock_and_no_utilisation(tmp_path: Path) -> None:
    write_node(tmp_path, 1, [100])
    trace = load_trace(tmp_path, 2, 1)
    assert trace.reading([(2, 12)], Scope.ALL_NODES).joules is None
    assert trace.utilisation(2, 12).sm_utilisation.mean is None
    assert list(trace.columns(0.0)) == []


def test_sampler_that_died_early_leaves_no_joules_over_what_it_did_not_see(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100], seconds=20)
    write_node(tmp_path, 1, [100], seconds=9)
    trace = load_trace(tmp_path, 2, 1)
    reading = trace.reading([(0, 20)], Scope.ALL_NODES)
    assert reading.joules is None
    assert reading.detail
    assert "device 0 of host1: its samples end before" in reading.detail


@pytest.mark.parametrize("expected", [1, 3])
def test_meter_of_more_or_fewer_devices_than_the_job_has_is_not_summed(tmp_path: Path, expected: int) -> None:
    write_node(tmp_path, 0, [100, 100])
    reading = load_trace(tmp_path, 1, expected).reading([(2, 12)], Scope.ALL_NODES)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail == f"host0: its meter read 2 devices; expected {expected}"


@pytest.mark.parametrize("status", [Status.PERMISSION_DENIED, Status.UNSUPPORTED, Status.UNAVAILABLE])
def test_status_and_reason_of_a_meter_reach_the_reading(tmp_path: Path, status: Status) -> None:
    write_node(tmp_path, 0, [100], method=None, status=status, detail="the driver says no")
    trace = load_trace(tmp_path, 1, 1)
    reading = trace.reading([(2, 12)], Scope.ALL_NODES)
    assert (reading.joules, reading.status, reading.detail) == (None, status, "the driver says no")
    # Nothing of a device either: it may be somebody else's joules that are refused.
    assert trace.devices[0].part([(2, 12)]).joules is None
    # What could be sampled is kept.
    assert trace.utilisation(2, 12).sm_utilisation.mean == pytest.approx(0.5)


def test_estimate_stays_estimated_with_its_constants_in_every_reading(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [80], method=Method.ESTIMATE, status=Status.ESTIMATED, detail="tdp_w 100")
    trace = load_trace(tmp_path, 1, 1)
    for scope in Scope:
        for minimum_ticks in (0, 10):
            reading = trace.reading([(0, 12)], scope, minimum_ticks=minimum_ticks)
            assert reading.joules == pytest.approx(960)
            assert (reading.method, reading.status) == (Method.ESTIMATE, Status.ESTIMATED)
            assert reading.detail == "tdp_w 100"


@pytest.mark.parametrize(("source", "late_s"), [(PowerSource.INSTANT, 0.1), (PowerSource.USAGE, 1.0)])
def test_an_integral_of_means_is_as_late_as_their_time_with_a_counter_and_without(
    tmp_path: Path, source: PowerSource, late_s: float
) -> None:
    write_node(tmp_path, 0, [100], power_sources=[source])
    (beside,) = load_trace(tmp_path, 1, 1).devices
    assert beside.integral_j([(2, 12)]) == pytest.approx((1000, 2 * 100 * late_s))
    write_node(
        tmp_path, 0, [100], method=Method.POWER_INTEGRAL, status=Status.DERIVED, power_sources=[source]
    )
    (alone,) = load_trace(tmp_path, 1, 1).devices
    assert alone.part([(2, 12)]).uncertainty_j == pytest.approx(2 * 100 * late_s)


def test_power_integral_is_derived(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [80], method=Method.POWER_INTEGRAL, status=Status.DERIVED)
    reading = load_trace(tmp_path, 1, 1).reading([(0, 12)], Scope.ALL_NODES)
    assert reading.joules == pytest.approx(960)
    assert (reading.method, reading.status) == (Method.POWER_INTEGRAL, Status.DERIVED)


def test_torn_last_line_is_dropped(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100])
    path = samples_path(tmp_path, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert len(read_samples(path)["t_s"]) == 200
    assert load_trace(tmp_path, 1, 1).reading([(2, 12)], Scope.ALL_NODES).joules == pytest.approx(1000)


@pytest.mark.parametrize("damage", [b"1.0,0,what\n", b"\xff\xfe\n", b",0,,,,,,,,\n", b"1,0\n"])
def test_damage_inside_samples_makes_them_unavailable(tmp_path: Path, damage: bytes) -> None:
    write_node(tmp_path, 0, [100])
    path = samples_path(tmp_path, 0)
    path.write_bytes(path.read_bytes() + damage + b"2.0,0,,,,,,,,\n")
    with pytest.raises(RecordError, match=r"samples-0\.csv"):
        read_samples(path)
    reading = load_trace(tmp_path, 1, 1).reading([(2, 12)], Scope.ALL_NODES)
    assert reading.status is Status.UNAVAILABLE
    assert reading.detail
    assert "samples-0.csv" in reading.detail


def test_a_line_that_is_no_sample_is_named(tmp_path: Path) -> None:
    path = samples_path(tmp_path, 0)
    header, empty = ",".join(COLUMNS) + "\n", "," * (len(COLUMNS) - 2)
    for damage, words in [
        (f",0{empty}\n", "line 3: t_s is missing"),
        (f"1,nan{empty}\n", "line 3: device is missing"),
        ("1,0\n", "got 2"),
        (f"1,what{empty}\n", "what"),
        ("\n", "line 3: t_s is missing"),
    ]:
        path.write_text(f"{header}1,0{empty}\n{damage}2,0{empty}\n")
        with pytest.raises(RecordError, match=words):
            read_samples(path)


def test_before_its_first_whole_line_a_sampler_has_no_samples(tmp_path: Path) -> None:
    path = samples_path(tmp_path, 0)
    for content in ("", "1.5,0,2"):
        path.write_text(",".join(COLUMNS) + "\n" + content)
        assert [len(column) for column in read_samples(path).values()] == [0] * len(COLUMNS)


@pytest.mark.parametrize("content", ["", "t_s,power_w\n1,2\n"])
def test_samples_of_other_columns_are_refused(tmp_path: Path, content: str) -> None:
    path = samples_path(tmp_path, 0)
    path.write_text(content)
    with pytest.raises(RecordError, match="expected"):
        read_samples(path)


def test_utilisation_is_over_the_window_and_null_where_never_known(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 100])
    utilisation = load_trace(tmp_path, 1, 2).utilisation(2, 12)
    assert utilisation.sm_utilisation.mean == pytest.approx(0.75)
    assert utilisation.sm_utilisation.max == 1.0
    assert (utilisation.memory_activity.mean, utilisation.memory_activity.max) == (None, None)


def test_rows_fit_the_declared_schema_with_null_for_unknown(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 150])
    path = tmp_path / "power.parquet"
    write_columns(path, load_trace(tmp_path, 1, 2).columns(origin_s=5.0))
    table = read_table(path)
    assert table.num_rows == 2 * 201
    first = table.to_pylist()[0]
    assert (first["t_s"], first["node"], first["uuid"]) == (-5.0, "host0", "GPU-0-0")
    assert (first["power_w"], first["temperature_c"]) == (100.0, None)
    assert table.column("temperature_c").null_count == table.num_rows
    assert not np.isnan(table.column("counter_j").to_numpy()).any()


def test_joules_alone_are_those_of_the_reading(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 150])
    trace = load_trace(tmp_path, 1, 2)
    assert trace.joules([(2, 4), (3, 7)]) == trace.reading([(2, 7)], Scope.ALL_NODES).joules
    assert trace.joules([(2, 2.5)], minimum_ticks=10) is None
    assert trace.joules([]) is None


def test_how_a_sampler_kept_its_time_and_what_failed_is_read_and_may_lack(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100])
    kept = SamplerFile(
        node="host0", period_s=0.1, deadlines=200, samples=198, missed=2, late_median_s=0.0001,
        late_p95_s=0.004, late_max_s=0.2, cpu_s=0.1, wall_s=20, failures=["GPU 0 of host0: clock: lost"],
        strangers=["GPU 0 of host0: 17"],
    )  # fmt: skip
    (killed,) = load_trace(tmp_path, 1, 1).nodes
    assert (killed.late_s, list(killed.failures)) == (None, [])
    assert (killed.missed, killed.sampler_cpu_share, list(killed.strangers)) == (None, None, [])
    write(kept, sampler_path(tmp_path, 0))
    (ended,) = load_trace(tmp_path, 1, 1).nodes
    assert (ended.late_s, ended.failures) == (0.004, ["GPU 0 of host0: clock: lost"])
    assert (ended.missed, ended.sampler_cpu_share, ended.strangers) == (2, 0.005, ["GPU 0 of host0: 17"])
    sampler_path(tmp_path, 0).write_text("{")
    assert load_trace(tmp_path, 1, 1).reading([(2, 12)], Scope.ALL_NODES).joules == pytest.approx(1000)


def test_a_counter_has_the_integral_of_its_power_beside_it(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 200], power_sources=[PowerSource.INSTANT, PowerSource.USAGE])
    instant, usage = load_trace(tmp_path, 1, 2).devices
    assert (instant.power_source, usage.power_source) == (PowerSource.INSTANT, PowerSource.USAGE)
    assert instant.integral_j([(2, 12)]) == pytest.approx((1000, 2 * 100 * 0.1))
    # NVML's usage may be a mean over 1 s.
    assert usage.integral_j([(2, 12)]) == pytest.approx((2000, 2 * 200 * 1.0))
    write_node(tmp_path, 0, [100], method=Method.POWER_INTEGRAL, status=Status.DERIVED)
    (derived,) = load_trace(tmp_path, 1, 1).devices
    assert derived.integral_j([(2, 12)]) is None


def test_one_estimated_gpu_makes_the_sum_an_estimate_and_not_the_other_gpu(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100, 200], status=Status.DERIVED, method=Method.POWER_INTEGRAL)
    path = meter_path(tmp_path, 0)
    meter = path.read_text().replace("power_integral", "estimate").replace("derived", "estimated")
    path.write_text(meter.replace('"power_sources": []', '"power_sources": ["estimate", "instant"]'))
    trace = load_trace(tmp_path, 1, 2)
    assert [device.curve.method for device in trace.devices if device.curve] == [
        Method.ESTIMATE,
        Method.POWER_INTEGRAL,
    ]
    reading = trace.reading([(2, 12)], Scope.ALL_NODES)
    assert (reading.method, reading.status) == (Method.ESTIMATE, Status.ESTIMATED)
    assert reading.joules == pytest.approx(3000)


def test_a_counter_that_was_reset_voids_the_window_that_holds_it_and_no_other() -> None:
    fallen = 100 * times(0, 20)
    fallen[100:] -= 1000
    trace = a_trace(a_node([a_device(), a_device(index=1, counter_j=fallen)]))
    reading = trace.reading([(5, 15)], Scope.ALL_NODES)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail == "device 1 of host0: the energy counter ran backwards"
    assert trace.reading([(11, 19)], Scope.ALL_NODES).joules == pytest.approx(1600)


def test_bits_of_throttling_are_whole_numbers_in_the_rows(tmp_path: Path) -> None:
    reasons = np.full(201, np.nan)
    reasons[7] = 0x44
    write_columns(tmp_path / "power.parquet", one_node(a_device(throttle_reasons=reasons)).columns(0.0))
    table = read_table(tmp_path / "power.parquet")
    found = table.column("throttle_reasons").to_pylist()
    assert (found[7], found[8], found.count(None)) == (0x44, None, 200)
