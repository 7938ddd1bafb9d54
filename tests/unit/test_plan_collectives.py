"""Guards the time of collectives: rings and trees worked out by hand, and what they must not depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardwatt.plan.collectives import Way, all_gather_s, all_reduce_s, way_of
from shardwatt.plan.device import DEFAULT_FACTORS, Factors, Link, PlanDevice

#: A node's ranks have 100 MB/s each to other nodes, and 1 GB/s among themselves.
DEVICE = PlanDevice(
    name="made up",
    kind="cuda",
    memory_gib=32,
    flop_per_s=1e14,
    memory_bandwidth_b_s=1e12,
    tdp_w=None,
    idle_w=None,
    launch_s=1e-6,
    inside=Link(1e9, 1e-6, "made up"),
    between=Link(1e8, 10e-6, "made up"),
    source="made up",
)
PERFECT = replace(DEFAULT_FACTORS["cuda"], network=1.0)

#: Where all of the bandwidth is reached, not the assumed 0.8, messages take 0.8 of the link's latency.
SHORTER = 0.8

SIZES = st.floats(1, 1e9)
RANKS_AND_NODES = st.sampled_from([(2, 1), (4, 1), (4, 2), (8, 4), (32, 16), (8, 8), (64, 8)])


def way(ranks: int, nodes: int, device: PlanDevice = DEVICE, factors: Factors = PERFECT) -> Way:
    return way_of(ranks, nodes, device, factors)


def test_one_rank_exchanges_nothing() -> None:
    assert all_reduce_s(1e6, way(1, 1)).total_s == 0
    assert all_gather_s(1e6, way(1, 1)).total_s == 0


def test_a_large_sum_in_a_node_goes_round_a_ring() -> None:
    found = all_reduce_s(1e6, way(4, 1))
    # Six messages in a row; each rank sends 2 x 3/4 of 1 MB at 1 GB/s.
    assert found.latency_s == pytest.approx(SHORTER * 6e-6)
    assert found.transfer_s == pytest.approx(1.5e-3)


def test_over_nodes_the_slow_link_carries_what_the_ring_sends_across() -> None:
    found = all_reduce_s(1e6, way(4, 2))
    # Of six messages two cross; two ranks of a node have 200 MB/s together.
    assert found.latency_s == pytest.approx(SHORTER * (4 * 1e-6 + 2 * 10e-6))
    assert found.transfer_s == pytest.approx(1.5 * 1e6 / 2e8)


def test_small_sums_over_many_nodes_go_up_and_down_a_tree() -> None:
    found = all_reduce_s(1000, way(32, 16))
    # A ring would take 30 messages between nodes; a tree 2 x log2(16).
    assert found.latency_s == pytest.approx(SHORTER * 2 * (1 * 1e-6 + 4 * 10e-6))
    assert found.transfer_s == pytest.approx(2 * 1000 / (0.9 * 2e8))
    ring = all_reduce_s(1e8, way(32, 16))
    assert ring.latency_s == pytest.approx(SHORTER * (32e-6 + 30 * 10e-6))


def test_processors_know_rings_alone() -> None:
    found = all_reduce_s(1000, way(32, 16, replace(DEVICE, kind="cpu"), DEFAULT_FACTORS["cpu"]))
    assert found.latency_s == pytest.approx(32e-6 + 30 * 10e-6)


def test_gathering_takes_half_a_sums_way() -> None:
    found = all_gather_s(1e6, way(4, 2))
    assert found.latency_s == pytest.approx(SHORTER * (2 * 1e-6 + 10e-6))
    assert found.transfer_s == pytest.approx(0.75 * 1e6 / 2e8)


def test_half_the_share_of_a_link_takes_twice_as_long() -> None:
    """Latencies too: messages of a decode step are small, and would tell the factor nothing."""
    whole, half = (
        all_reduce_s(1e7, way(8, 4, factors=replace(PERFECT, network=network))) for network in (1.0, 0.5)
    )
    assert half.transfer_s == pytest.approx(2 * whole.transfer_s)
    assert half.latency_s == pytest.approx(2 * whole.latency_s)


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_before_a_calibration_latencies_are_those_of_the_links(kind: str) -> None:
    assumed, device = DEFAULT_FACTORS[kind], replace(DEVICE, kind=kind)
    assert all_reduce_s(1.0, way(2, 1, device, assumed)).latency_s == pytest.approx(2e-6)
    assert all_gather_s(1.0, way(2, 2, device, assumed)).latency_s == pytest.approx(10e-6)


@given(SIZES, SIZES, RANKS_AND_NODES)
def test_more_bytes_never_take_less_time(one: float, other: float, where: tuple[int, int]) -> None:
    small, large = sorted((one, other))
    for collective in (all_reduce_s, all_gather_s):
        assert collective(small, way(*where)).total_s <= collective(large, way(*where)).total_s


@given(SIZES)
def test_65b_on_four_nodes_over_25_gigabit_ethernet_is_ruled_by_the_network(message: float) -> None:
    node = replace(DEVICE, between=Link(25e9 / 8 / 2, 30e-6, "25 Gb/s"), inside=Link(16e9, 5.7e-6, "PCIe"))
    transfer_s = all_reduce_s(message, way(8, 4, node)).transfer_s
    assert transfer_s >= 2 * 7 / 8 * message / (25e9 / 8) * (1 - 1e-12)


@pytest.mark.parametrize(("ranks", "share"), [(2, 1 / 7), (4, 3 / 7), (8, 1.0)])
def test_without_a_switch_ranks_use_the_links_to_each_other_alone(ranks: int, share: float) -> None:
    """Seven links of a board of eight go to seven peers: two ranks have one of them."""
    meshed = replace(DEVICE, inside=replace(DEVICE.inside, peers=7))
    for collective in (all_reduce_s, all_gather_s):
        alone = collective(1e9, way(ranks, 1, meshed))
        switched = collective(1e9, way(ranks, 1))
        assert alone.transfer_s == pytest.approx(switched.transfer_s / share)
        assert alone.latency_s == switched.latency_s


def test_more_ranks_than_a_board_has_peers_use_all_of_its_links() -> None:
    meshed = replace(DEVICE, inside=replace(DEVICE.inside, peers=3))
    assert all_reduce_s(1e9, way(8, 1, meshed)) == all_reduce_s(1e9, way(8, 1))
