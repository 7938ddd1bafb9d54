"""Guards the power model: against hand calculations, its own physics, and what cards show that only wait."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.datasheets import DATA_SHEETS
from shardwatt.plan.device import DEFAULT_FACTORS, Factors, Link, PlanDevice
from shardwatt.plan.power import (
    AWAKE_SHARE,
    COMPUTE_AT_TDP,
    DRAM_J_PER_BYTE,
    ON_CHIP_J_PER_BYTE,
    RIDGE_CLOCK,
    VOLTAGE_FLOOR,
    OperatingPoint,
    operating_point,
    power_parts,
    voltage,
    waits_under_cap,
)
from shardwatt.plan.timing import PhaseSeconds

LINK = Link(1e9, 1e-5, "a test's")
FACTORS = DEFAULT_FACTORS["cuda"]


def device(sheet: str, precision: str = "fp16") -> PlanDevice:
    found = DATA_SHEETS[sheet]
    rate = found.flop_per_s[precision]
    assert rate is not None
    return PlanDevice(
        name=sheet,
        kind="cuda",
        memory_gib=found.memory_gib,
        flop_per_s=rate,
        memory_bandwidth_b_s=found.memory_bandwidth_b_s,
        tdp_w=found.tdp_w,
        idle_w=found.idle_w,
        launch_s=6e-6,
        inside=LINK,
        between=LINK,
        source=found.source,
    )


A100 = device("a100-pcie-80gb")


def phase(
    compute_s: float = 0.0, memory_s: float = 0.0, collective_s: float = 0.0
) -> Callable[[float], PhaseSeconds]:
    """A phase whose parts follow one another; arithmetic goes by the clock."""

    def seconds_at(clock: float) -> PhaseSeconds:
        duration_s = compute_s / clock + memory_s + collective_s
        return PhaseSeconds(
            compute_s=compute_s / clock,
            memory_s=memory_s,
            transfer_s=collective_s,
            duration_s=duration_s,
            busy=1.0,
            busy_compute=compute_s / clock / duration_s,
            busy_memory=memory_s / duration_s,
            busy_collective=collective_s / duration_s,
        )

    return seconds_at


def point(
    seconds_at: Callable[[float], PhaseSeconds],
    cap_w: float | None = None,
    on: PlanDevice = A100,
    factors: Factors = FACTORS,
) -> OperatingPoint:
    return operating_point(seconds_at, on, factors, cap_w)


def watts(found: OperatingPoint) -> float:
    assert found.power_w is not None
    return found.power_w


def test_voltage_is_flat_up_to_the_ridge_and_then_rises_to_one() -> None:
    assert voltage(1.0) == 1.0
    assert voltage(0.1) == voltage(RIDGE_CLOCK) == VOLTAGE_FLOOR
    assert voltage((1 + RIDGE_CLOCK) / 2) == pytest.approx((1 + VOLTAGE_FLOOR) / 2)


def test_an_operation_at_the_ridge_takes_56_percent_of_its_joules() -> None:
    """0.75 of the voltage, squared; the same operations take 1 / 0.65 of the time."""
    work = phase(compute_s=1.0)
    found = [(clock, power_parts(work(clock), A100, FACTORS, clock)) for clock in (1.0, 0.65)]
    joules = [parts.compute_w / clock for clock, parts in found if parts is not None]
    assert joules[1] / joules[0] == pytest.approx(0.5625)


def test_a_memory_bound_phase_draws_what_a_hand_calculation_says() -> None:
    bytes_per_s = 0.8 * 1935e9
    expected = 45 + AWAKE_SHARE * 255 + bytes_per_s * (8 * 3.9e-12 + 8 * 8e-12)
    assert (A100.idle_w, A100.tdp_w, FACTORS.bandwidth) == (45, 300, 0.8)
    assert watts(point(phase(memory_s=1.0))) == pytest.approx(expected)
    assert expected == pytest.approx(212.8, abs=0.1)


def test_operations_at_the_rate_that_is_held_at_tdp_take_the_whole_range() -> None:
    factors = replace(FACTORS, compute=COMPUTE_AT_TDP)
    parts = power_parts(phase(compute_s=1.0)(1.0), A100, factors, 1.0)
    assert parts is not None
    assert parts.compute_w == pytest.approx(300 - 45)
    assert parts.dram_w == parts.on_chip_w == 0


@pytest.mark.parametrize(
    ("sheet", "shown_w"),
    [("v100-pcie-32gb", (44, 44)), ("v100-sxm2-16gb", (65, 76)), ("h100-pcie-80gb", (69, 72)),
     ("h100-sxm-80gb", (100, 152))],
)  # fmt: skip
def test_a_card_that_only_waits_draws_about_what_such_cards_show(
    sheet: str, shown_w: tuple[float, float]
) -> None:
    """What nvidia-smi shows of jobs that hang in a collective at 100 % utilisation; sources in power.py."""
    predicted = watts(point(phase(collective_s=1.0), on=device(sheet)))
    assert 0.9 * shown_w[0] <= predicted <= 1.1 * shown_w[1]


def test_a_cap_that_is_not_reached_changes_nothing() -> None:
    waiting = phase(memory_s=0.3, collective_s=0.7)
    free, capped = point(waiting), point(waiting, cap_w=175)
    assert free == capped
    assert (free.clock, free.holds_cap) == (1.0, True)


def test_a_phase_that_nothing_caps_is_worked_out_once() -> None:
    """It is most of what a forecast takes."""
    waiting, clocks = phase(memory_s=0.3, collective_s=0.7), []

    def seconds_at(clock: float) -> PhaseSeconds:
        clocks.append(clock)
        return waiting(clock)

    assert point(seconds_at) == point(waiting)
    assert clocks == [1.0]


def test_under_a_cap_the_mean_power_is_the_cap_and_the_clock_the_highest_that_holds_it() -> None:
    busy = phase(compute_s=0.4, memory_s=0.6)
    found = point(busy, cap_w=175)
    assert watts(found) == pytest.approx(175, abs=0.01)
    assert found.clock < 1
    above = power_parts(busy(found.clock + 0.001), A100, FACTORS, found.clock + 0.001)
    assert above is not None
    assert above.total_w > 175
    assert found.seconds.duration_s == pytest.approx(0.4 / found.clock + 0.6)


def test_the_tdp_is_a_cap_where_there_is_no_lower_one() -> None:
    heavy = phase(compute_s=1.0)
    factors = replace(FACTORS, compute=0.9)
    for cap_w in (None, 400.0):
        found = point(heavy, cap_w, factors=factors)
        assert watts(found) == pytest.approx(300, abs=0.01)
        assert found.clock < 1


@given(st.floats(0.05, 1), st.floats(0.05, 1), st.floats(0, 2), st.sampled_from([130.0, 150.0, 175.0, 250.0]))
def test_a_lower_cap_never_makes_a_phase_faster_or_the_card_draw_more(
    compute_s: float, memory_s: float, collective_s: float, cap_w: float
) -> None:
    work = phase(compute_s, memory_s, collective_s)
    higher, lower = point(work, cap_w + 25), point(work, cap_w)
    assert watts(lower) <= cap_w + 0.01
    assert watts(lower) <= watts(higher) + 0.01
    assert lower.seconds.duration_s >= higher.seconds.duration_s * (1 - 1e-6)


def test_of_two_phases_the_one_with_more_memory_traffic_gets_the_lower_clock() -> None:
    """More of the cap's watts go to memory, which the core clock does not slow."""
    little, much = (point(phase(0.5, memory_s, 0.5), cap_w=150) for memory_s in (0.6, 1.2))
    assert much.clock < little.clock < 1


def test_below_the_ridge_power_of_moving_bytes_does_not_fall_with_the_clock() -> None:
    seconds = phase(memory_s=1.0)(1.0)
    at_ridge, below = (power_parts(seconds, A100, FACTORS, clock) for clock in (RIDGE_CLOCK, 0.3))
    assert at_ridge is not None
    assert below is not None
    assert (below.dram_w, below.on_chip_w) == (at_ridge.dram_w, at_ridge.on_chip_w)
    assert below.awake_w == pytest.approx(at_ridge.awake_w * 0.3 / RIDGE_CLOCK)


def test_where_not_even_the_lowest_clock_holds_the_cap_the_same_joules_take_longer() -> None:
    streaming = phase(memory_s=1.0)
    found = point(streaming, cap_w=120)
    assert (watts(found), found.clock) == (120, A100.lowest_clock)
    slow = power_parts(streaming(found.clock), A100, FACTORS, found.clock)
    assert slow is not None
    assert slow.total_w > 120
    longer = found.seconds.duration_s
    assert longer > 1
    of_bytes_j = (slow.dram_w + slow.on_chip_w) * 1.0
    assert (120 - slow.idle_w - slow.awake_w) * longer == pytest.approx(of_bytes_j)
    parts = power_parts(found.seconds, A100, FACTORS, found.clock)
    assert parts is not None
    assert parts.total_w == pytest.approx(120)


def test_a_cap_below_rest_is_said_not_to_hold() -> None:
    found = point(phase(memory_s=1.0), cap_w=40)
    assert not found.holds_cap
    assert found.clock == A100.lowest_clock
    assert watts(found) > 40


def test_bytes_and_operations_take_their_joules_however_long_they_last() -> None:
    """Waiting adds rest and running clocks alone."""
    short, long = (phase(0.1, 0.2, waiting) for waiting in (0.0, 3.0))
    extra_j = 3.3 * watts(point(long)) - 0.3 * watts(point(short))
    waiting_w = watts(point(phase(collective_s=1.0)))
    assert extra_j == pytest.approx(3.0 * waiting_w)


def test_the_power_factor_scales_what_is_above_rest() -> None:
    work = phase(0.1, 0.4, 0.5)
    single, double = watts(point(work)), watts(point(work, factors=replace(FACTORS, power=2.0)))
    assert double - 45 == pytest.approx(2 * (single - 45))


def test_without_tdp_or_idle_power_no_watts_are_predicted() -> None:
    for unknown in (replace(A100, tdp_w=None), replace(A100, idle_w=None)):
        found = point(phase(1.0), cap_w=100, on=unknown)
        assert found.power_w is None
        assert found.clock == 1.0
        assert found.seconds.duration_s == 1.0


def test_busy_processors_draw_their_tdp_as_a_run_estimates_too() -> None:
    processor = replace(A100, kind="cpu", tdp_w=60.0, idle_w=None)
    assert watts(point(phase(1.0), on=processor)) == 60
    assert watts(point(phase(1.0), on=processor, factors=replace(FACTORS, power=0.5))) == 30


def test_a_phase_that_does_not_occur_takes_no_time_and_hides_no_watts() -> None:
    """Sums over phases stay known."""
    found = point(lambda clock: PhaseSeconds(), cap_w=100)
    assert found.seconds.duration_s == 0
    assert watts(found) == 45


def test_a_device_that_waits_for_its_host_is_at_rest_meanwhile() -> None:
    busy, half = phase(memory_s=1.0)(1.0), replace(phase(memory_s=1.0)(1.0), busy=0.5)
    full, less = (power_parts(seconds, A100, FACTORS, 1.0) for seconds in (busy, half))
    assert full is not None
    assert less is not None
    assert full.awake_w == pytest.approx(AWAKE_SHARE * 255)
    assert less.awake_w == pytest.approx(full.awake_w / 2)
    assert (less.idle_w, less.on_chip_w) == (full.idle_w, full.on_chip_w)


def test_joules_of_a_byte_on_the_chip_can_be_assumed_otherwise() -> None:
    seconds_at = phase(memory_s=1.0)
    found = operating_point(seconds_at, A100, FACTORS, None, on_chip_j_per_byte=0.0)
    assert watts(point(seconds_at)) - watts(found) == pytest.approx(0.8 * 1935e9 * ON_CHIP_J_PER_BYTE)


def test_a_cap_that_waiting_hides_from_is_told_from_one_that_holds_or_does_nothing() -> None:
    waiting, working = phase(memory_s=0.3, collective_s=0.7), phase(compute_s=0.4, memory_s=0.6)

    def waits(work: Callable[[float], PhaseSeconds], cap_w: float | None) -> bool:
        return waits_under_cap([point(work, cap_w)], A100, cap_w)

    assert waits(waiting, 175)
    assert not waits(waiting, None)
    assert not waits(waiting, 300), "the TDP"
    assert not waits(working, 175), "holds"
    assert not waits(phase(memory_s=0.6, collective_s=0.4), 250), "waits for less than half of the time"
    assert not waits(waiting, 100), "holds while it waits"
    brief = phase(memory_s=0.1)
    assert waits_under_cap([point(brief, 250), point(waiting, 250)], A100, 250)


def test_energies_of_a_byte_are_those_of_a_bit_eight_times() -> None:
    assert pytest.approx(31.2e-12) == DRAM_J_PER_BYTE
    assert pytest.approx(64e-12) == ON_CHIP_J_PER_BYTE
