"""Guards what the plan takes a site's devices to be: data sheets, the site's own words, named assumptions."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from shardwatt.datasheets import DATA_SHEETS
from shardwatt.plan.calibrated import factors_of
from shardwatt.plan.device import DEFAULT_FACTORS, Factors, PlanDevice, device_of
from shardwatt.plan.warned import Warned
from shardwatt.site import Site
from small_project import make_site

V100 = {"kind": "cuda", "per_node": 2, "memory_gib": 32, "data_sheet": "v100-pcie-32gb"}
CPU = {"kind": "cpu", "per_node": 4, "memory_gib": 2}
OWN = {"memory_bandwidth_gb_s": 500, "tflops": {"fp16": 80}, "source": "measured"}


def site(folder: Path, gpu: dict[str, Any], **changes: Any) -> Site:
    return make_site(folder, gpus={"it": gpu}, **changes)


def device(place: Site, precision: str = "fp16", shards: int = 1) -> PlanDevice:
    found = device_of(place, "it", precision, shards)
    assert found is not None
    return found


def test_a_data_sheet_says_nearly_all(tmp_path: Path) -> None:
    found = device(site(tmp_path, V100))
    assert (found.name, found.kind, found.memory_gib) == ("v100-pcie-32gb", "cuda", 32)
    assert found.flop_per_s == pytest.approx(112e12)
    assert found.memory_bandwidth_b_s == pytest.approx(900e9)
    assert (found.tdp_w, found.idle_w) == (250, 25)
    assert found.lowest_clock == pytest.approx(135 / 1380)
    assert found.inside.bandwidth_b_s == pytest.approx(16e9)
    assert found.assumptions == (), "one shard needs no link"


def test_the_sites_word_on_power_stands_over_the_data_sheets(tmp_path: Path) -> None:
    assert device(site(tmp_path, {**V100, "tdp_w": 300})).tdp_w == 300


def test_links_between_nodes_that_nobody_gives_are_assumed_and_named(tmp_path: Path) -> None:
    place = site(tmp_path, V100, launcher="slurm", slurm={"gres": "gpu:v100", "nodes": 4, "runtime_min": 120})
    found = device(place, shards=8)
    # 25 Gb/s of a node, shared by its two.
    assert found.between.bandwidth_b_s == pytest.approx(25e9 / 8 / 2)
    assert found.between.latency_s == pytest.approx(30e-6)
    (said,) = found.assumptions
    assert isinstance(said, Warned)
    assert "25 Gb/s Ethernet" in said
    assert "give links.between" in said
    assert device(place, shards=2).assumptions == (), "one node needs none"


def test_the_sites_links_are_taken_and_those_of_a_gpu_type_first(tmp_path: Path) -> None:
    slow = {"gb_s": 1.5, "latency_us": 20, "source": "iperf"}
    fast = {"gb_s": 100, "latency_us": 2, "source": "nccl-tests"}
    place = site(
        tmp_path,
        {**V100, "links": {"inside": fast}},
        links={"inside": slow, "between": slow},
        launcher="slurm",
        slurm={"gres": "gpu:v100", "nodes": 4},
    )
    found = device(place, shards=8)
    assert found.inside.bandwidth_b_s == pytest.approx(100e9)
    assert found.between.bandwidth_b_s == pytest.approx(1.5e9)
    assert found.between.latency_s == pytest.approx(20e-6)
    assert found.between.source == "iperf"
    assert found.assumptions == ()


def test_figures_of_the_sites_own_take_the_place_of_a_data_sheet(tmp_path: Path) -> None:
    own = {"kind": "cuda", "per_node": 2, "memory_gib": 24, "peak": OWN, "tdp_w": 200}
    found = device(site(tmp_path, own))
    assert (found.name, found.source) == ("it", "measured")
    assert found.flop_per_s == pytest.approx(80e12)
    assert found.memory_bandwidth_b_s == pytest.approx(500e9)
    assert found.idle_w == pytest.approx(26)
    assert found.lowest_clock == 0.15
    rest, link, clock = found.assumptions
    assert rest == "it: 13% of 200 W at rest are assumed; give gpus.it.peak.idle_w"
    assert "between GPUs of a node" in link
    assert clock == (
        "it: a lowest clock of 15% of the boost clock is assumed; give gpus.it.peak.clock_mhz and "
        "lowest_clock_mhz"
    )
    assert [isinstance(said, Warned) for said in found.assumptions] == [False, True, False]


def test_a_gpu_of_ones_own_has_all_that_the_catalogue_has_of_others(tmp_path: Path) -> None:
    peak = {**OWN, "idle_w": 31.0, "clock_mhz": 1500.0, "lowest_clock_mhz": 300.0, "power_min_w": 100.0}
    link = {"inside": {"gb_s": 32, "latency_us": 6, "source": "a slot"}}
    own = {"kind": "cuda", "per_node": 2, "memory_gib": 24, "peak": peak, "tdp_w": 200, "links": link}
    found = device(site(tmp_path, own))
    assert (found.idle_w, found.lowest_clock) == (31, 0.2)
    assert found.assumptions == (), "nothing is left to assume"


@pytest.mark.parametrize(
    ("gpu", "precision"),
    [
        ({"kind": "cuda", "per_node": 1, "memory_gib": 24}, "fp16"),
        ({"kind": "cuda", "per_node": 1, "memory_gib": 24, "peak": OWN}, "bf16"),
        (
            {"kind": "cuda", "per_node": 1, "memory_gib": 24, "peak": {**OWN, "memory_bandwidth_gb_s": None}},
            "fp16",
        ),
        (V100, "bf16"),
    ],
    ids=["nothing", "another precision", "no bandwidth", "not calculated in"],
)
def test_a_gpu_of_which_nothing_is_known_is_not_guessed(
    tmp_path: Path, gpu: dict[str, Any], precision: str
) -> None:
    assert device_of(site(tmp_path, gpu), "it", precision, 1) is None


def test_without_tdp_no_idle_power_is_made_up(tmp_path: Path) -> None:
    found = device(site(tmp_path, {"kind": "cuda", "per_node": 1, "memory_gib": 24, "peak": OWN}))
    assert (found.tdp_w, found.idle_w) == (None, None)
    assert found.assumptions == (), "no clock either: watts alone hang on it"


def test_a_core_is_assumed_where_a_processor_has_no_peak(tmp_path: Path) -> None:
    found = device(site(tmp_path, CPU, threads_per_rank=1), "fp32")
    assert found.memory_bandwidth_b_s == pytest.approx(10e9)
    assert found.flop_per_s == pytest.approx(60e9)
    (said,) = found.assumptions
    assert said == "it: a core is taken to do 10 GB/s and 60 GFLOP/s; give gpus.it.peak, or calibrate"
    cores = os.cpu_count() or 1
    whole = device(site(tmp_path, CPU), "fp32")
    assert whole.flop_per_s == pytest.approx(cores * 60e9), "one rank has the machine"
    quarter = device(site(tmp_path, CPU), "fp32", shards=4)
    assert quarter.flop_per_s == pytest.approx(cores / 4 * 60e9), "four share it"


def test_ranks_share_what_the_site_says_of_the_machine(tmp_path: Path) -> None:
    peak = {
        "memory_bandwidth_gb_s": 200,
        "tflops": {"fp32": 4},
        "idle_w": 40.0,
        "source": "measured",
    }
    place = site(
        tmp_path,
        {**CPU, "peak": peak, "tdp_w": 400, "slurm": {"nodes": 2}, "cores_per_node": 64},
        launcher="slurm",
        slurm={"cpus_per_rank": 16},
        links={"inside": {"gb_s": 5, "latency_us": 100, "source": "a test"}},
    )
    found = device(place, "fp32", shards=4)
    assert found.memory_bandwidth_b_s == pytest.approx(50e9)
    assert found.flop_per_s == pytest.approx(1e12)
    assert (found.tdp_w, found.idle_w) == (100, 10)
    assert found.source == "measured"
    assert found.assumptions == ()
    # What the peak leaves out is assumed of the cores that a rank is bound to.
    half = device(place, "bf16", shards=4)
    assert half.flop_per_s == pytest.approx(16 * 60e9)
    assert "60 GFLOP/s" in half.assumptions[0]
    assert "GB/s" not in half.assumptions[0]


def test_on_slurm_a_rank_has_the_cores_that_it_is_bound_to_and_not_the_machine(tmp_path: Path) -> None:
    peak = {"memory_bandwidth_gb_s": 200, "tflops": {"fp32": 4}, "idle_w": 40.0, "source": "measured"}
    cpu = {**CPU, "peak": peak, "tdp_w": 400, "slurm": {"exclusive": False}}

    def found(shards: int, **words: Any) -> PlanDevice:
        return device(site(tmp_path, {**cpu, **words}, launcher="slurm"), "fp32", shards)

    for shards in (1, 2, 4):
        known = found(shards, cores_per_node=32)
        assert (known.tdp_w, known.idle_w) == (400 / 32, 40 / 32), "one core a rank is asked for"
        assert known.memory_bandwidth_b_s == pytest.approx(200e9 / 32)
        assert known.flop_per_s == pytest.approx(4e12 / 32)
    unknown = found(1)
    assert (unknown.tdp_w, unknown.idle_w) == (None, None)
    assert unknown.flop_per_s == pytest.approx(60e9), "what one core is taken to do"
    said, cores = unknown.assumptions
    assert said == (
        "it: a rank has 1 of a machine's cores, and how many these are is not known, so `peak` and `tdp_w` "
        "are left out; give gpus.it.cores_per_node"
    )
    assert "a core is taken to do" in cores


def test_links_between_processes_that_nobody_gives_are_assumed_and_named(tmp_path: Path) -> None:
    assumed = "it: 1 GB/s between ranks of a machine and 200 us a message are assumed; give links.inside, or"
    assert not any(assumed in said for said in device(site(tmp_path, CPU), "fp32").assumptions)
    (said,) = (one for one in device(site(tmp_path, CPU), "fp32", shards=2).assumptions if assumed in one)
    assert isinstance(said, Warned), "a warning, as that of GPUs is, and no note among others"
    given = site(tmp_path, CPU, links={"inside": {"gb_s": 5, "latency_us": 100, "source": "a test"}})
    assert not any("between ranks" in said for said in device(given, "fp32", shards=2).assumptions)


def test_factors_are_those_of_the_engine_on_the_gpu_type(tmp_path: Path) -> None:
    fitted = {
        "compute": 0.5,
        "bandwidth": 0.7,
        "network": 0.6,
        "launch": 1.5,
        "power": 0.9,
        "fitted": ["compute", "bandwidth"],
        "spread": {"duration_s": [0.9, 1.2]},
        "cells": 12,
        "source": "study demo",
        "fitted_on": date(2026, 11, 21),
    }
    place = site(tmp_path, V100, calibration={"it/reference": fitted})
    expected = Factors(
        0.5, 0.7, 0.6, 1.5, 0.9, "calibrated on 2026-11-21: study demo", {"duration_s": (0.9, 1.2)}
    )
    assert factors_of(place, "it", "reference") == expected
    assert factors_of(place, "it", "simulated") == expected, "it stands for reference"
    assert factors_of(place, "it", "fast") is DEFAULT_FACTORS["cuda"]
    assert not DEFAULT_FACTORS["cuda"].spread, "no interval before a calibration"
    assert factors_of(site(tmp_path, CPU), "it", "fast") is DEFAULT_FACTORS["cpu"]


@pytest.mark.parametrize(
    ("sheet", "per_node", "gb_s", "peers"),
    [
        ("a100-sxm-80gb", 4, 300, 3),
        ("a100-sxm-80gb", 8, 300, 1),
        ("v100-sxm2-32gb", 8, 150, 3),
        ("mi300x", 8, 448, 7),
        ("b200-sxm-180gb", 8, 900, 1),
        ("a100-pcie-80gb", 4, 32, 1),
    ],
)
def test_boards_without_a_switch_share_their_links_out_to_peers(
    tmp_path: Path, sheet: str, per_node: int, gb_s: float, peers: int
) -> None:
    found = device(
        site(
            tmp_path,
            {**V100, "per_node": per_node, "data_sheet": sheet, "memory_gib": DATA_SHEETS[sheet].memory_gib},
        )
    )
    assert (found.inside.bandwidth_b_s, found.inside.peers) == (gb_s * 1e9, peers)
