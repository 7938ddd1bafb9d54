"""The sampler as a process: what it leaves behind however it is ended."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from powercap import add_domain, set_energy
from shardwatt.power.curve import Interval
from shardwatt.power.host import load_host
from shardwatt.power.sampling.files import (
    MeterFile,
    PowerNow,
    SamplerFile,
    host_meter_path,
    host_samples_path,
    meter_path,
    power_now_path,
    sampler_path,
    samples_path,
)
from shardwatt.power.sampling.lateness import Lateness
from shardwatt.power.sampling.table import read_samples
from shardwatt.power.trace import Trace, load_trace
from shardwatt.readings import Method, Scope, Status
from shardwatt.recordfiles import read

TYPE = {"kind": "cpu", "per_node": 2, "memory_gib": 4, "tdp_w": 100, "tdp_source": "a test"}
#: Metered by an estimate, also where processors could be measured.
CPU = json.dumps({**TYPE, "meter": "estimate"})
#: Longest time in s that a test waits for a sampler on a busy machine.
PATIENCE_S = 600.0
#: Metered by the best that there is.
ANY = ("--gpu-type", json.dumps(TYPE))


def command(folder: Path, *more: str) -> list[str]:
    module = [sys.executable, "-m", "shardwatt.power.sampling.sampler"]
    return [*module, "--gpu-type", CPU, "--ranks-per-node", "2", "--folder", str(folder), *more]


def start(folder: Path, *more: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(folder, *more), stdin=subprocess.PIPE, **options)


def end(sampler: subprocess.Popen[bytes]) -> int:
    """As its supervisor ends it."""
    assert sampler.stdin
    sampler.stdin.close()
    return sampler.wait(timeout=PATIENCE_S)


def sampled(trace: Trace) -> Interval:
    """From its first sample to its last, but for those that a busy machine held up: around them a border's
    joules are not known."""
    times_s = trace.devices[0].times_s
    spacings_s = np.diff(times_s)
    close = np.flatnonzero(spacings_s <= 2 * np.median(spacings_s))
    first, last = close[0], close[-1] + 1
    return float(times_s[first] + spacings_s[first] / 100), float(times_s[last])


def wait_for(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.02)


def test_the_end_of_its_input_ends_it_with_whole_files_and_a_last_sample(tmp_path: Path) -> None:
    sampler = start(tmp_path)
    # The first sample of an estimate knows no power; that of a second later does.
    wait_for(
        lambda: (path := power_now_path(tmp_path, 0)).exists() and read(PowerNow, path).power_w is not None
    )
    stopped_s = time.monotonic()
    assert end(sampler) == 0
    assert samples_path(tmp_path, 0).read_bytes().endswith(b"\n")
    meter = read(MeterFile, meter_path(tmp_path, 0))
    assert (meter.status, meter.period_s) == (Status.ESTIMATED, 0.1)
    trace = load_trace(tmp_path, 1, 1)
    assert trace.nodes[0].devices[0].columns["t_s"][-1] >= stopped_s
    span = sampled(trace)
    reading = trace.reading([span], Scope.ALL_NODES)
    assert reading.joules
    assert reading.joules <= 100 * (span[1] - span[0])
    kept = read(SamplerFile, sampler_path(tmp_path, 0))
    assert (kept.period_s, kept.failures) == (0.1, [])
    assert kept.samples == len(read_samples(samples_path(tmp_path, 0))["t_s"]) - 2
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_that_end_a_job_leave_it_to_its_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    sampler = start(tmp_path)
    wait_for(meter_path(tmp_path, 0).exists)
    sampler.send_signal(number)
    power_now_path(tmp_path, 0).unlink(missing_ok=True)
    wait_for(power_now_path(tmp_path, 0).exists)
    assert end(sampler) == 0


def test_it_ends_by_itself_when_its_supervisor_is_killed(tmp_path: Path) -> None:
    starter = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    parent = subprocess.Popen([sys.executable, "-c", starter, *command(tmp_path)])
    wait_for(meter_path(tmp_path, 0).exists)
    (sampler,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    wait_for(lambda: not sampler.is_running() or sampler.status() == psutil.STATUS_ZOMBIE)
    assert samples_path(tmp_path, 0).read_bytes().endswith(b"\n")
    assert len(load_trace(tmp_path, 1, 1).devices[0].columns["t_s"]) > 1


def test_killed_it_leaves_what_it_read_until_a_second_before(tmp_path: Path) -> None:
    sampler = start(tmp_path)
    path = samples_path(tmp_path, 0)
    wait_for(lambda: path.exists() and path.read_bytes().count(b"\n") > 9)
    sampler.kill()
    sampler.wait()
    times = read_samples(path)["t_s"].tolist()
    assert times == sorted(times)
    assert read(MeterFile, meter_path(tmp_path, 0)).status is Status.ESTIMATED
    assert read(MeterFile, host_meter_path(tmp_path, 0))
    assert not sampler_path(tmp_path, 0).exists()
    trace = load_trace(tmp_path, 1, 1)
    assert trace.reading([sampled(trace)], Scope.ALL_NODES).joules
    # What it did not live to see is not made up.
    assert trace.reading([(times[0], times[-1] + 5)], Scope.ALL_NODES).joules is None


@pytest.fixture
def powercap(tmp_path: Path) -> dict[str, Path]:
    """A node with two sockets and their memory, by the name of each domain's folder."""
    root = tmp_path / "powercap"
    zones = ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0", "intel-rapl:1:0")
    names = ("package-0", "package-1", "dram", "dram")
    return {zone: add_domain(root, zone, name) for zone, name in zip(zones, names, strict=True)}


def host_rows(folder: Path) -> list[dict[str, float]]:
    columns = read_samples(host_samples_path(folder, 0))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_processors_and_memory_are_read_beside_the_headline(
    tmp_path: Path, powercap: dict[str, Path]
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {**os.environ, "SHARDWATT_POWERCAP": str(tmp_path / "powercap")}
    sampler = start(folder, *ANY, env=environment)
    wait_for(meter_path(folder, 0).exists)
    for zone, joules in [("intel-rapl:0", 30), ("intel-rapl:1", 12), ("intel-rapl:0:0", 5)]:
        set_energy(powercap[zone], joules)
    wait_for(lambda: any(row["counter_j"] == 42 for row in host_rows(folder)))
    (powercap["intel-rapl:1:0"] / "energy_uj").write_text("no number")
    wait_for(lambda: any(math.isnan(row["counter_j"]) for row in host_rows(folder)))
    assert end(sampler) == 0
    primary, host = read(MeterFile, meter_path(folder, 0)), read(MeterFile, host_meter_path(folder, 0))
    # Processors that are the headline are one device, and stand beside their memory once more.
    assert (primary.method, primary.status, len(primary.devices)) == (Method.RAPL, Status.MEASURED, 1)
    assert (host.method, host.status) == (Method.RAPL, Status.MEASURED)
    assert [device.name.split(" (")[0] for device in host.devices] == ["RAPL package x 2", "RAPL dram x 2"]
    last = {row["device"]: row["counter_j"] for row in host_rows(folder)}
    assert last[0] == 42
    assert math.isnan(last[1])
    (failure,) = read(SamplerFile, sampler_path(folder, 0)).failures
    assert failure.startswith("RAPL dram of ")
    assert load_trace(folder, 1, 1).nodes[0].devices[0].columns["counter_j"][-1] == 42


def test_host_without_rapl_says_so_and_still_tells_how_busy_it_is(tmp_path: Path) -> None:
    environment = {**os.environ, "SHARDWATT_POWERCAP": str(tmp_path / "nothing")}
    begin_s = time.monotonic()
    sampler = start(tmp_path, *ANY, env=environment)
    wait_for(meter_path(tmp_path, 0).exists)
    # Its first look at processors knows nothing, the two after it do.
    wait_for(lambda: len(read_samples(host_samples_path(tmp_path, 0))["t_s"]) > 2)
    assert end(sampler) == 0
    host = read(MeterFile, host_meter_path(tmp_path, 0))
    assert (host.method, host.status, len(host.devices)) == (None, Status.UNAVAILABLE, 1)
    assert host.detail
    beside = load_host(tmp_path, 1)
    busy = beside.utilisation(begin_s, time.monotonic()).cpu_utilisation
    assert busy.mean is not None
    assert 0 <= busy.mean <= 1
    reading = beside.reading("package", (begin_s, begin_s + 0.1))
    assert (reading.joules, reading.detail) == (None, host.detail)
    # And processors that are the headline are estimated.
    meter = read(MeterFile, meter_path(tmp_path, 0))
    assert meter.status is Status.ESTIMATED
    assert meter.detail
    assert meter.detail.endswith(host.detail)


def test_lateness_is_told_to_five_percent_whatever_its_size() -> None:
    lateness = Lateness()
    assert lateness.quantile_s(0.5) is None
    late_s = [10 ** (place / 1000 - 5) for place in range(4001)]
    for each_s in late_s:
        lateness.add(each_s)
    for share in (0.01, 0.5, 0.95, 1.0):
        assert lateness.quantile_s(share) == pytest.approx(late_s[int(share * 4000)], rel=0.05)
    assert (lateness.count, lateness.max_s) == (4001, late_s[-1])


def test_lateness_takes_what_is_off_its_scale() -> None:
    lateness = Lateness()
    for late_s in (-1e-3, 0.0, 1e6):
        lateness.add(late_s)
    assert lateness.quantile_s(0.5) == pytest.approx(0, abs=1e-6)
    assert lateness.max_s == 1e6


def test_the_node_is_the_one_that_slurm_numbers(tmp_path: Path) -> None:
    sampler = start(tmp_path, env={**os.environ, "SLURM_NODEID": "3"})
    wait_for(meter_path(tmp_path, 3).exists)
    assert end(sampler) == 0


def test_too_few_gpus_are_one_line_and_an_exit_code_of_their_own(tmp_path: Path) -> None:
    gpu = json.dumps({"kind": "cuda", "per_node": 2, "memory_gib": 32})
    words = [*command(tmp_path), "--gpu-type", gpu]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 78
    assert ended.stderr.startswith("sampler of node 0: CUDA_VISIBLE_DEVICES names 1 GPUs")


def test_folder_that_cannot_be_written_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    ended = subprocess.run(command(tmp_path / "missing"), capture_output=True, text=True, timeout=PATIENCE_S)
    assert ended.returncode == 1
    assert ended.stderr.startswith("sampler of node 0: ")
    assert "Traceback" not in ended.stderr


def test_folder_that_vanishes_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    sampler = start(folder, stderr=subprocess.PIPE)
    wait_for(meter_path(folder, 0).exists)
    folder.rename(tmp_path / "gone")
    assert sampler.wait(timeout=PATIENCE_S)
    assert sampler.stderr
    errors = sampler.stderr.read()
    assert sampler.returncode == 1
    assert b"No such file" in errors


def test_period_that_is_no_time_is_refused(tmp_path: Path) -> None:
    ended = subprocess.run(
        command(tmp_path, "--period-s", "0"), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ended.returncode == 2
    assert "expected a time above 0" in ended.stderr


def test_it_starts_without_torch_numpy_and_pyarrow() -> None:
    code = (
        "import sys, shardwatt.power.sampling.sampler\n"
        "print([name for name in ('torch', 'numpy', 'pyarrow') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
