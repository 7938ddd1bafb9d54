"""Guards RAPL beside the headline: all nodes' processors or memory, or why not; never one for the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from shardwatt.power.clock import NodeClock
from shardwatt.power.host import load_host
from shardwatt.power.meters.host import PROCESSORS_INDEX
from shardwatt.power.meters.rapl import INDEX, WHOLE_NODE, Kind
from shardwatt.power.protocol import Sample
from shardwatt.power.sampling.files import COLUMNS, MeterFile, host_meter_path, host_samples_path, sample_line
from shardwatt.readings import Device, Method, Status
from shardwatt.recordfiles import write

POWER_W: dict[Kind, float] = {"package": 80.0, "dram": 10.0}
WINDOW = (2.0, 12.0)


def write_host(
    folder: Path,
    index: int,
    kinds: Sequence[Kind],
    *,
    clock_ahead_s: float = 0.0,
    detail: str | None = None,
    busy: float = 0.25,
) -> None:
    """A node whose RAPL counts some kinds, and whose processors are busy from 5 s on; without RAPL they are
    a device of their own."""
    places: dict[int, tuple[str, float | None]] = {
        INDEX[kind]: (f"RAPL {kind}", POWER_W[kind]) for kind in kinds
    }
    if "package" not in kinds:
        places[PROCESSORS_INDEX] = ("processors", None)
    devices = [Device(node=f"host{index}", index=place, name=name) for place, (name, _) in places.items()]
    meter = MeterFile(
        node=f"host{index}",
        method=Method.RAPL if kinds else None,
        status=Status.MEASURED if kinds else Status.PERMISSION_DENIED,
        detail=detail,
        devices=devices,
        period_s=0.1,
        wall_minus_monotonic_s=1e9 - clock_ahead_s,
    )
    write(meter, host_meter_path(folder, index))
    lines = [",".join(COLUMNS) + "\n"]
    for tick in range(201):
        for place, (_, power_w) in places.items():
            at_s = tick * 0.1
            sample = Sample(
                t_s=at_s + clock_ahead_s,
                device=place,
                counter_j=None if power_w is None else power_w * at_s,
                cpu_utilisation=None if place == INDEX["dram"] else busy if at_s > 5 else 0.0,
            )
            lines.append(sample_line(sample))
    host_samples_path(folder, index).write_text("".join(lines))


def test_processors_and_memory_of_all_nodes_are_summed_apart(tmp_path: Path) -> None:
    write_host(tmp_path, 0, ["package", "dram"])
    write_host(tmp_path, 1, ["package", "dram"], clock_ahead_s=5e4)
    clocks = [NodeClock("host0", 0.0, 0.0), NodeClock("host1", -5e4, 0.0)]
    for known in (clocks, None):
        host = load_host(tmp_path, 2, known)
        package, dram = host.reading("package", WINDOW), host.reading("dram", WINDOW)
        assert package.joules == pytest.approx(1600, abs=1e-3)
        assert dram.joules == pytest.approx(200, abs=1e-3)
        assert (package.method, package.status) == (Method.RAPL, Status.MEASURED)
        # Other people's joules are in it, and it says so.
        assert package.detail == dram.detail == WHOLE_NODE
        assert [device.name for device in dram.coverage.devices] == ["RAPL dram", "RAPL dram"]
        assert (dram.coverage.nodes, dram.coverage.devices_expected) == (["host0", "host1"], 2)


def test_one_node_without_memory_counters_leaves_processors(tmp_path: Path) -> None:
    write_host(tmp_path, 0, ["package", "dram"])
    write_host(tmp_path, 1, ["package"], detail="RAPL dram of host1: these processors count no dram")
    host = load_host(tmp_path, 2)
    package = host.reading("package", WINDOW)
    assert package.joules == pytest.approx(1600)
    assert package.detail == WHOLE_NODE
    dram = host.reading("dram", WINDOW)
    assert (dram.joules, dram.status) == (None, Status.UNAVAILABLE)
    assert dram.detail == "RAPL dram of host1: these processors count no dram"
    assert (dram.coverage.nodes, dram.coverage.nodes_expected) == (["host0"], 2)


def test_where_only_root_may_read_the_reading_says_so(tmp_path: Path) -> None:
    write_host(tmp_path, 0, [], detail="energy_uj: only root may read it here")
    reading = load_host(tmp_path, 1).reading("package", WINDOW)
    assert (reading.joules, reading.status) == (None, Status.PERMISSION_DENIED)
    assert reading.detail == "energy_uj: only root may read it here"
    assert (reading.coverage.nodes, reading.coverage.devices) == ([], [])


@pytest.mark.parametrize("kinds", [["package", "dram"], ["package"], ["dram"], []])
def test_how_busy_processors_were_is_known_whatever_rapl_counts(tmp_path: Path, kinds: list[Kind]) -> None:
    write_host(tmp_path, 0, kinds, busy=0.2)
    write_host(tmp_path, 1, kinds, busy=0.6, clock_ahead_s=5e4)
    host = load_host(tmp_path, 2, [NodeClock("host0", 0.0, 0.0), NodeClock("host1", -5e4, 0.0)])
    found = host.utilisation(10.0, 15.0).cpu_utilisation
    assert found.mean == pytest.approx(0.4)
    assert found.max == 0.6
    assert host.utilisation(0.0, 4.0).cpu_utilisation.max == 0
    assert load_host(tmp_path / "none", 1).utilisation(0.0, 4.0).cpu_utilisation.mean is None


def test_a_host_meter_that_never_spoke_is_no_zero(tmp_path: Path) -> None:
    reading = load_host(tmp_path, 1).reading("dram", WINDOW)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail
    assert "node 0 has no host-meter-0.json" in reading.detail
