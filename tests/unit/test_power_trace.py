"""Traces read back from samplers' files: nodes, scopes, coverage, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shardwatt.cellfiles import read_table, write_table
from shardwatt.errors import RecordError
from shardwatt.power.protocol import Sample
from shardwatt.power.samplefiles import (
    COLUMNS,
    MeterFile,
    meter_path,
    read_samples,
    sample_line,
    samples_path,
)
from shardwatt.power.trace import load_trace
from shardwatt.records import Device, Method, Scope, Status, write


def write_node(
    folder: Path,
    index: int,
    powers_w: Sequence[float],
    *,
    seconds: float = 20.0,
    clock_ahead_s: float = 0.0,
    method: Method | None = Method.NVML_COUNTER,
    status: Status = Status.MEASURED,
    detail: str | None = None,
) -> None:
    """Write a node's files: constant power on each device, on a monotonic clock that is ahead of node 0's."""
    devices = [
        Device(node=f"host{index}", index=place, name="GPU", uuid=f"GPU-{index}-{place}")
        for place in range(len(powers_w))
    ]
    meter = MeterFile(
        node=f"host{index}",
        method=method,
        status=status,
        detail=detail,
        devices=devices,
        period_s=0.1,
        wall_minus_monotonic_s=1e9 - clock_ahead_s,
    )
    lines = [",".join(COLUMNS) + "\n"]
    for tick in range(round(seconds * 10) + 1):
        for place, power_w in enumerate(powers_w):
            sample = Sample(
                t_s=tick * 0.1 + clock_ahead_s,
                device=place,
                power_w=None if method is Method.ESTIMATE and tick == 0 else power_w,
                counter_j=5e5 + power_w * tick * 0.1 if method is Method.NVML_COUNTER else None,
                sm_utilisation=0.5 if place == 0 else 1.0,
            )
            lines.append(sample_line(sample))
    samples_path(folder, index).write_text("".join(lines))
    write(meter, meter_path(folder, index))


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
    assert trace.rows(0.0)[-1]["t_s"] == pytest.approx(20, abs=1e-6)


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
    assert (trace.span, trace.rows(0.0)) == (None, [])


def test_sampler_that_died_early_leaves_no_joules_even_over_the_span(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100], seconds=20)
    write_node(tmp_path, 1, [100], seconds=9)
    trace = load_trace(tmp_path, 2, 1)
    assert trace.span == pytest.approx((0, 20))
    assert trace.span
    reading = trace.reading([trace.span], Scope.ALL_NODES)
    assert reading.joules is None
    assert reading.detail
    assert "device 0 of host1: its samples end before" in reading.detail


def test_span_of_samplers_that_ended_close_together_is_what_all_cover(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [100], seconds=20)
    write_node(tmp_path, 1, [100], seconds=18.5)
    trace = load_trace(tmp_path, 2, 1)
    assert trace.span == pytest.approx((0, 18.5))
    assert trace.span
    assert trace.reading([trace.span], Scope.ALL_NODES).joules == pytest.approx(3700)


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
    # What could be sampled is kept.
    assert trace.utilisation(2, 12).sm_utilisation.mean == pytest.approx(0.5)


def test_estimate_stays_estimated_with_its_constants_in_every_reading(tmp_path: Path) -> None:
    write_node(tmp_path, 0, [80], method=Method.ESTIMATE, status=Status.ESTIMATED, detail="tdp_w 100")
    trace = load_trace(tmp_path, 1, 1)
    assert trace.span == pytest.approx((0, 20))
    for scope in Scope:
        for minimum_ticks in (0, 10):
            reading = trace.reading([(0, 12)], scope, minimum_ticks=minimum_ticks)
            assert reading.joules == pytest.approx(960)
            assert (reading.method, reading.status) == (Method.ESTIMATE, Status.ESTIMATED)
            assert reading.detail == "tdp_w 100"


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
    assert len(read_samples(path)) == 200
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
    rows = load_trace(tmp_path, 1, 2).rows(origin_s=5.0)
    path = tmp_path / "power.parquet"
    write_table(path, rows)
    table = read_table(path)
    assert table.num_rows == 2 * 201
    first = table.to_pylist()[0]
    assert (first["t_s"], first["node"], first["uuid"]) == (-5.0, "host0", "GPU-0-0")
    assert (first["power_w"], first["temperature_c"]) == (100.0, None)
    assert table.column("temperature_c").null_count == table.num_rows
    assert not np.isnan(table.column("counter_j").to_numpy()).any()
