"""Guards what a reading says of its coverage: how densely and how punctually devices were sampled."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.power.coverage import density
from shardwatt.power.trace import Trace
from shardwatt.readings import Coverage, Method, Scope, Status
from synthetic_traces import a_device, a_node, a_trace, constant, one_node, times

WINDOW = [(2.05, 12.05)]


def coverage(trace: Trace, scope: Scope = Scope.ALL_NODES) -> Coverage:
    return trace.reading(WINDOW, scope).coverage


def test_everything_a_coverage_tells_of_a_good_cell() -> None:
    trace = a_trace(
        a_node(
            [a_device(), a_device(index=1)], late_s=0.001, wall_ahead_s=0.0, missed=7, sampler_cpu_share=0.01
        ),
        a_node(
            [a_device("host1"), a_device("host1", 1)],
            late_s=0.004,
            wall_ahead_s=-0.25,
            missed=2,
            sampler_cpu_share=0.03,
        ),
    )
    found = coverage(trace)
    assert (found.nodes, found.nodes_expected, found.devices_expected) == (["host0", "host1"], 2, 4)
    assert found.samples == 400
    assert found.asked_period_s == 0.1
    assert found.period_s == pytest.approx(0.1)
    assert found.jitter_s == pytest.approx(0, abs=1e-9)
    assert found.max_gap_s == pytest.approx(0.1)
    assert found.gaps == 0
    assert found.tick_s == pytest.approx(0.1)
    # The worst node's.
    assert (found.late_s, found.clock_offset_s) == (0.004, 0.25)
    assert (found.missed, found.sampler_cpu_share) == (7, 0.03)
    assert found.counter_over_integral == pytest.approx(1)


def test_jitter_is_how_far_spacings_are_from_what_was_asked_for() -> None:
    t_s = times(0, 20)
    # Every tenth sample is 30 ms late: a fifth of the spacings is off by as much.
    t_s[::10] += 0.03
    found = coverage(one_node(a_device(t_s=t_s)))
    assert found.jitter_s == pytest.approx(0.03)
    assert coverage(one_node(a_device(t_s=times(0, 20, period_s=0.08)))).jitter_s == pytest.approx(0.02)
    t_s = times(0, 20)
    t_s[100] += 0.03
    assert coverage(one_node(a_device(t_s=t_s))).jitter_s == pytest.approx(0, abs=1e-9)


def test_gaps_are_counted_with_those_over_the_borders() -> None:
    whole = times(0, 20)
    kept = whole[(whole < 0.9) | ((whole > 2.25) & (whole < 6)) | ((whole > 8.05) & (whole < 15))]
    found = coverage(one_node(a_device(t_s=kept)))
    assert found.gaps == 2
    assert found.max_gap_s == pytest.approx(2.2)


def test_a_sensor_that_fails_leaves_gaps_though_its_device_is_sampled() -> None:
    counter_j = 100 * times(0, 20)
    counter_j[50:90] = np.nan
    found = coverage(one_node(a_device(counter_j=counter_j)))
    assert (found.samples, found.gaps) == (60, 1)
    assert found.max_gap_s == pytest.approx(4.1)


def test_counter_over_integral_is_of_devices_that_have_both() -> None:
    low = a_device(power=constant(300), sensor=0.5)
    blind = a_device(index=1, power_w=np.full(201, np.nan))
    assert coverage(one_node(low, blind)).counter_over_integral == pytest.approx(2)
    assert coverage(one_node(blind)).counter_over_integral is None
    integral = a_node([a_device(method=Method.POWER_INTEGRAL)], status=Status.DERIVED)
    assert coverage(a_trace(integral)).counter_over_integral is None


def test_a_tick_is_a_counters_and_the_longest() -> None:
    t_s = times(0, 20)
    slow = a_device(index=1, counter_j=50 * np.floor(t_s / 0.5 + 1e-9) * 0.5)
    assert coverage(one_node(a_device(), slow)).tick_s == pytest.approx(0.5)
    estimate = a_node([a_device(method=Method.ESTIMATE)], status=Status.ESTIMATED)
    assert coverage(a_trace(estimate)).tick_s is None


def test_what_is_not_known_is_null() -> None:
    unknown = np.full(201, np.nan)
    blind = a_device(counter_j=unknown, power_w=unknown, t_s=times(0, 20))
    found = coverage(a_trace(a_node([blind], status=Status.PERMISSION_DENIED)))
    # Its samples, of whatever else it tells.
    assert (found.samples, found.gaps) == (100, 0)
    assert (found.late_s, found.tick_s, found.clock_offset_s, found.counter_over_integral) == (None,) * 4
    assert (found.missed, found.sampler_cpu_share) == (None, None)


def test_the_scaled_reading_covers_rank_0s_node_alone() -> None:
    trace = a_trace(a_node([a_device()]), a_node([a_device("host1")]))
    found = coverage(trace, Scope.RANK0_NODE_SCALED)
    assert (found.nodes, found.nodes_expected, found.devices_expected, found.samples) == (
        ["host0"],
        2,
        2,
        100,
    )


@given(borders_ms=st.lists(st.integers(0, 20_000), min_size=2, max_size=12, unique=True).map(sorted))
def test_samples_of_parts_add_up_to_those_of_the_whole(borders_ms: list[int]) -> None:
    # Between two samples lies every border, so that none is counted twice.
    borders_s = [border / 1000 + 0.0005 for border in borders_ms]
    device = a_device(t_s=times(0, 21))
    parts = [density(device, [part]).samples for part in pairwise(borders_s)]
    assert sum(parts) == density(device, [(borders_s[0], borders_s[-1])]).samples
