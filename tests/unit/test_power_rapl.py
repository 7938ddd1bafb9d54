"""Processors and memory through RAPL, on made-up folders of the kernel's power domains."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from powercap import RANGE_UJ, add_domain, set_energy
from shardwatt.power.meters.processors import BESIDE_S
from shardwatt.power.meters.rapl import INDEX, WHOLE_NODE, RaplMeter
from shardwatt.readings import Method, PowerSource, Status

NOBODY = 65534


def counters(meter: RaplMeter) -> list[float | None]:
    return [sample.counter_j for sample in meter.sample()]


@pytest.fixture
def server(tmp_path: Path) -> dict[str, Path]:
    """Two sockets with memory, as a server's kernel lists them: also what counts the same once more."""
    domains = {
        "intel-rapl:0": ("package-0", 100.0),
        "intel-rapl:0:0": ("core", 60.0),
        "intel-rapl:0:1": ("dram", 10.0),
        "intel-rapl:1": ("package-1", 200.0),
        "intel-rapl:1:0": ("dram", 20.0),
        "intel-rapl:2": ("psys", 5000.0),
        "intel-rapl-mmio:0": ("package-0", 100.0),
        "dtpm": ("dtpm", 0.0),
    }
    (tmp_path / "intel-rapl").mkdir()
    return {zone: add_domain(tmp_path, zone, *content) for zone, content in domains.items()}


def test_packages_and_memory_of_all_sockets_are_summed_each_once(
    server: dict[str, Path], tmp_path: Path
) -> None:
    meter = RaplMeter(["package", "dram"], tmp_path)
    assert (meter.method, meter.status, meter.detail) == (Method.RAPL, Status.MEASURED, WHOLE_NODE)
    assert [device.index for device in meter.devices] == [INDEX["package"], INDEX["dram"]]
    assert meter.devices[0].name.startswith("RAPL package x 2 (")
    assert meter.devices[1].name == "RAPL dram x 2"
    assert meter.power_sources == [PowerSource.COUNTER] * 2
    assert counters(meter) == [0, 0]
    for folder in server.values():
        set_energy(folder, 7000)  # psys, cores and the same package again move too, and are in no sum
    set_energy(server["intel-rapl:0"], 100.5)
    set_energy(server["intel-rapl:1"], 202)
    set_energy(server["intel-rapl:0:1"], 10.25)
    set_energy(server["intel-rapl:1:0"], 20)
    before_s = time.monotonic()
    package, dram = meter.sample()
    assert package.counter_j == pytest.approx(2.5)
    assert dram.counter_j == pytest.approx(0.25)
    assert (package.device, dram.device) == (0, 1)
    assert before_s <= package.t_s <= dram.t_s <= time.monotonic()
    assert (meter.failures, meter.strangers()) == ([], [])
    meter.close()


def test_power_is_the_rise_since_the_sample_before_and_unknown_at_first(
    server: dict[str, Path], tmp_path: Path
) -> None:
    meter = RaplMeter(["package", "dram"], tmp_path)
    first = meter.sample()
    assert [sample.power_w for sample in first] == [None, None]
    time.sleep(0.05)
    set_energy(server["intel-rapl:1"], 203)
    second = meter.sample()
    assert second[0].power_w == pytest.approx(3 / (second[0].t_s - first[0].t_s))
    assert second[1].power_w == 0
    # Where one of two samples knows no joules there is no power, and none is made up later.
    (server["intel-rapl:1"] / "energy_uj").write_text("none")
    assert [sample.power_w is None for sample in meter.sample()] == [True, False]


def test_packages_come_with_how_busy_and_how_full_the_node_is(
    server: dict[str, Path], tmp_path: Path
) -> None:
    meter = RaplMeter(["package", "dram"], tmp_path)
    assert meter.sample()[0].cpu_utilisation is None
    until_s = time.monotonic() + BESIDE_S
    while time.monotonic() < until_s:
        pass
    (server["intel-rapl:1"] / "energy_uj").write_text("none")
    package, dram = meter.sample()
    assert package.cpu_utilisation is not None
    assert 0 < package.cpu_utilisation <= 1
    assert package.memory_filled is not None
    assert 0 < package.memory_filled < 1
    assert (dram.cpu_utilisation, dram.memory_filled) == (None, None)


def test_dies_of_a_socket_are_added_and_are_one_socket(tmp_path: Path) -> None:
    dies = [add_domain(tmp_path, f"intel-rapl:{die}", f"package-0-die-{die}") for die in (0, 1)]
    meter = RaplMeter(["package"], tmp_path)
    assert " x " not in meter.devices[0].name.partition("(")[0]
    for die, energy_j in zip(dies, (3.0, 4.0), strict=True):
        set_energy(die, energy_j)
    assert counters(meter) == [pytest.approx(7)]


def test_a_counter_that_wraps_around_goes_on_and_each_domain_by_itself(tmp_path: Path) -> None:
    range_j = RANGE_UJ / 1e6
    first = add_domain(tmp_path, "intel-rapl:0", "package-0", range_j - 1)
    second = add_domain(tmp_path, "intel-rapl:1", "package-1", 50)
    meter = RaplMeter(["package"], tmp_path)
    set_energy(first, 2)
    set_energy(second, 60)
    assert counters(meter) == [pytest.approx(13)]
    set_energy(second, 61)
    assert counters(meter) == [pytest.approx(14)]


def test_a_counter_that_was_set_back_is_no_wrap_around(tmp_path: Path) -> None:
    package = add_domain(tmp_path, "intel-rapl:0", "package-0", 5000)
    meter = RaplMeter(["package"], tmp_path)
    set_energy(package, 10)
    assert counters(meter) == [None]
    assert "from 5000 to 10 J" in meter.failures[0]
    assert "set back" in meter.failures[0]


def test_a_gap_in_which_a_counter_may_have_wrapped_twice_ends_it(tmp_path: Path) -> None:
    # 20 J last for 20 ms at 1 kW.
    package = add_domain(tmp_path, "intel-rapl:0", "package-0", range_uj=20_000_000)
    meter = RaplMeter(["package"], tmp_path)
    time.sleep(0.05)
    set_energy(package, 1)
    assert counters(meter) == [None]
    assert "may have wrapped around" in meter.failures[0]
    set_energy(package, 2)
    assert counters(meter) == [None]
    assert len(meter.failures) == 1


@pytest.mark.parametrize("content", ["", "none\n"])
def test_a_domain_that_fails_in_mid_run_ends_its_sum_and_no_other(
    server: dict[str, Path], tmp_path: Path, content: str
) -> None:
    meter = RaplMeter(["package", "dram"], tmp_path)
    assert counters(meter) == [0, 0]
    (server["intel-rapl:1"] / "energy_uj").write_text(content)
    set_energy(server["intel-rapl:0:1"], 11)
    assert counters(meter) == [None, pytest.approx(1)]
    set_energy(server["intel-rapl:1"], 201)
    assert counters(meter) == [None, pytest.approx(1)]
    (failure,) = meter.failures
    assert "package" in failure
    assert "intel-rapl:1" in failure


def test_missing_memory_is_named_and_packages_are_read(tmp_path: Path) -> None:
    add_domain(tmp_path, "intel-rapl:0", "package-0")
    meter = RaplMeter(["package", "dram"], tmp_path)
    assert (meter.method, meter.status) == (Method.RAPL, Status.MEASURED)
    assert [device.index for device in meter.devices] == [INDEX["package"]]
    assert meter.detail
    assert "RAPL dram of" in meter.detail
    assert "not counted by these processors" in meter.detail
    alone = RaplMeter(["dram"], tmp_path)
    assert (alone.method, alone.status, alone.devices, alone.sample()) == (None, Status.UNAVAILABLE, [], [])


def test_memory_of_one_socket_of_two_is_no_memory(tmp_path: Path) -> None:
    add_domain(tmp_path, "intel-rapl:0", "package-0")
    add_domain(tmp_path, "intel-rapl:0:0", "dram")
    add_domain(tmp_path, "intel-rapl:1", "package-1")
    meter = RaplMeter(["dram"], tmp_path)
    assert meter.status is Status.UNAVAILABLE
    assert meter.detail
    assert "1 of 2 sockets" in meter.detail


@pytest.mark.parametrize("there", [True, False])
def test_without_domains_it_says_what_mostly_is_the_cause(tmp_path: Path, there: bool) -> None:
    meter = RaplMeter(["package", "dram"], tmp_path if there else tmp_path / "none")
    assert (meter.method, meter.status, meter.devices) == (None, Status.UNAVAILABLE, [])
    assert meter.detail
    assert "virtual machines" in meter.detail
    assert meter.detail.count("no package") == 1


def test_a_domain_without_its_range_is_not_read(tmp_path: Path) -> None:
    folder = add_domain(tmp_path, "intel-rapl:0", "package-0")
    (folder / "max_energy_range_uj").unlink()
    meter = RaplMeter(["package"], tmp_path)
    assert (meter.status, meter.devices) == (Status.UNAVAILABLE, [])
    assert meter.detail
    assert "max_energy_range_uj: No such file" in meter.detail


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's rights for a while: root may read everything."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_counters_for_root_alone_are_permission_denied_with_what_to_do() -> None:
    root = Path(tempfile.mkdtemp())  # pytest's own folders let nobody in
    try:
        root.chmod(0o755)
        folder = add_domain(root, "intel-rapl:0", "package-0")
        (folder / "energy_uj").chmod(0o400 if os.geteuid() == 0 else 0)
        with as_nobody():
            meter = RaplMeter(["package"], root)
        assert (meter.method, meter.status, meter.devices) == (None, Status.PERMISSION_DENIED, [])
        assert meter.detail
        assert "chmod a+r" in meter.detail
    finally:
        shutil.rmtree(root)


def open_files(folder: Path) -> int:
    """Files below a folder; what else this process has open may come and go meanwhile."""
    return sum(
        Path(os.path.realpath(each)).is_relative_to(folder.resolve())
        for each in Path("/proc/self/fd").iterdir()
    )


def test_meters_leave_no_file_open(server: dict[str, Path], tmp_path: Path) -> None:
    meter = RaplMeter(["package", "dram"], tmp_path)
    assert open_files(tmp_path) == 4
    meter.close()
    assert open_files(tmp_path) == 0
    (server["intel-rapl:1"] / "energy_uj").unlink()
    RaplMeter(["package"], tmp_path)
    assert open_files(tmp_path) == 0
