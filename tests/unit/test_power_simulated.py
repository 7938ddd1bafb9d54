"""The NVML meter and the real sampler on simulated GPUs: a C library under the real nvidia-ml-py.

The library is tests/nvml/simulated_nvml.c; its head says what the environment can make it do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shardwatt.power.curve import NoJoulesError
from shardwatt.power.samplefiles import MeterFile, meter_path
from shardwatt.power.trace import Trace, load_trace
from shardwatt.records import Method, Scope, Status, read

SOURCE = Path(__file__).parents[1] / "nvml" / "simulated_nvml.c"
CUDA = json.dumps({"kind": "cuda", "per_node": 4, "memory_gib": 80})
#: Time in s after the origin at which a power steps, at which sensors fail, and that samplers run.
STEP_S, FAULT_S, RUN_S = 1.5, 2.0, 3.0
TICK_S = 0.1


def build(folder: Path, *flags: str) -> Path:
    folder.mkdir()
    words = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", *flags]
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([*words, f"-Wl,-soname,{library.name}", "-o", library, SOURCE], check=True)
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the simulated library."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc: the simulated NVML library cannot be built")
    return build(tmp_path_factory.mktemp("nvml") / "whole")


@pytest.fixture(scope="module")
def library_without_counter(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Path:
    """Folder of a library that lacks the counter's symbol."""
    return build(tmp_path_factory.mktemp("nvml") / "old", "-DWITHOUT_COUNTER")


def simulated(library: Path, **settings: object) -> dict[str, str]:
    """The environment under which nvidia-ml-py finds the simulated library."""
    own = {f"SIMULATED_NVML_{name}": str(value) for name, value in settings.items()}
    return os.environ | {"LD_LIBRARY_PATH": str(library)} | own


def sample(environment: dict[str, str], selectors: str, folder: Path, node: int) -> subprocess.Popen[str]:
    """Start the sampler of a node whose GPUs the scheduler names so."""
    ranks = len([name for name in selectors.split(",") if name])
    words = ["--gpu-type", CUDA, "--ranks-per-node", str(ranks), "--folder", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "shardwatt.power.sampler", *words, "--node-index", str(node)],
        env=environment | {"CUDA_VISIBLE_DEVICES": selectors},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, sampler: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 60
    while not path.exists():
        assert sampler.poll() is None, sampler.communicate()[1]
        assert time.monotonic() < until_s, f"waited in vain for {path.name}"
        time.sleep(0.02)


@dataclass(frozen=True)
class Run:
    """A finished job of two nodes, and one of a node on which sensors fail in mid-run.

    Attributes:
        origin_s: monotonic time at which the power programmes began.
    """

    origin_s: float
    job: Trace
    failing: Trace
    failing_log: str


@pytest.fixture(scope="module")
def run(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run the real sampler for a few seconds: two nodes of a job, and a node with failing sensors."""
    job, failing = tmp_path_factory.mktemp("job"), tmp_path_factory.mktemp("failing")
    origin = job / "origin"

    def start(folder: Path, node: int, selectors: str, power: str, faults: str = "") -> subprocess.Popen[str]:
        return sample(simulated(library, ORIGIN=origin, POWER=power, FAULTS=faults), selectors, folder, node)

    faults = f"0:lost@{FAULT_S};1:backwards@{FAULT_S};2:still;3:no_power@{FAULT_S}"
    samplers = [
        # GPU 1 belongs to somebody else: it must not be counted.
        start(job, 0, "0,GPU-00000000-0000-0000-0000-000000000002", f"100;999;50,{STEP_S}:250"),
        start(job, 1, "0,1", "300;150"),
        start(failing, 0, "0,1,2,3", "100;100;100;100", faults),
    ]
    ready = (meter_path(job, 0), meter_path(job, 1), meter_path(failing, 0))
    for sampler, path in zip(samplers, ready, strict=True):
        wait_for(path, sampler)
    # The programmes begin when every sampler runs, however long a busy machine took to start them.
    origin_s = time.monotonic() + 0.2
    (job / "written").write_text(f"{origin_s:.6f}")
    (job / "written").rename(origin)
    time.sleep(RUN_S + 0.2)
    for sampler in samplers:
        assert sampler.stdin
        sampler.stdin.close()
        sampler.stdin = None
    logs = [sampler.communicate(timeout=60)[1] for sampler in samplers]
    assert [sampler.returncode for sampler in samplers] == [0, 0, 0]
    return Run(origin_s, load_trace(job, 2, 2), load_trace(failing, 1, 4), logs[-1])


def node0_j(start_s: float, stop_s: float) -> float:
    """Analytic energy of node 0's GPUs 0 and 2 between two times after the origin."""
    low_s = max(min(stop_s, STEP_S) - start_s, 0.0)
    return 100 * (stop_s - start_s) + 50 * low_s + 250 * (stop_s - start_s - low_s)


@pytest.mark.parametrize("window_s", [(0.4, 2.8), (0.437, 1.011), (1.9, 2.55)])
def test_joules_of_the_jobs_own_gpus_are_analytic_to_one_tick(
    run: Run, window_s: tuple[float, float]
) -> None:
    window = [(run.origin_s + window_s[0], run.origin_s + window_s[1])]
    length_s = window_s[1] - window_s[0]
    everything = run.job.reading(window, Scope.ALL_NODES)
    scaled = run.job.reading(window, Scope.RANK0_NODE_SCALED)
    assert (everything.status, everything.method) == (Status.MEASURED, Method.NVML_COUNTER)
    # One tick of the counters; one gap between samples where a busy machine let them come late.
    assert everything.coverage.max_gap_s
    tick_s = max(TICK_S, everything.coverage.max_gap_s)
    assert everything.joules == pytest.approx(node0_j(*window_s) + 450 * length_s, abs=800 * tick_s)
    assert scaled.joules == pytest.approx(2 * node0_j(*window_s), abs=2 * 350 * tick_s)
    assert everything.uncertainty_j is not None
    assert everything.uncertainty_j >= 600 * TICK_S
    assert [device.index for device in everything.coverage.devices] == [0, 2, 0, 1]


def test_every_sensor_is_read_in_its_unit(run: Run) -> None:
    rows = run.job.rows(run.origin_s)
    first = rows[0]
    assert first["power_w"] == 100
    assert first["counter_j"] == pytest.approx(1e6, abs=1e3)
    assert (first["sm_utilisation"], first["memory_activity"], first["memory_filled"]) == (0.75, 0.4, 0.25)
    assert (first["clock_sm_mhz"], first["temperature_c"], first["cpu_utilisation"]) == (1410, 55, None)
    assert {row["uuid"][-1] for row in rows} == {"0", "1", "2"}


def test_window_after_a_sensor_failed_has_no_joules_and_never_zero(run: Run) -> None:
    lost, backwards, still, powerless = run.failing.nodes[0].devices
    window = [(run.origin_s + 0.4, run.origin_s + 2.8)]
    reading = run.failing.reading(window, Scope.ALL_NODES)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail
    assert reading.detail.startswith("device 0 of ")
    assert lost.curve
    before_j, _ = lost.curve.joules([(run.origin_s + 0.4, run.origin_s + 1.6)])
    assert before_j == pytest.approx(120, abs=100 * TICK_S)
    # Samples go on, with nothing in place of what could not be read.
    late = lost.columns["t_s"] > run.origin_s + FAULT_S + 0.1
    assert late.any()
    for column in ("power_w", "counter_j", "sm_utilisation", "memory_filled", "temperature_c"):
        assert not (lost.columns[column][late] >= 0).any()
    assert "GPU 0 of" in run.failing_log
    assert "energy counter: GPU is lost" in run.failing_log
    assert backwards.curve
    with pytest.raises(NoJoulesError, match="ran backwards"):
        backwards.curve.joules(window)
    assert still.curve
    with pytest.raises(NoJoulesError, match="stood still"):
        still.curve.joules(window)
    assert powerless.curve
    assert np.isnan(powerless.columns["power_w"][-1])
    assert powerless.curve.joules(window)[0] == pytest.approx(240, abs=100 * TICK_S)


def meter_of(environment: dict[str, str], selectors: str, folder: Path) -> MeterFile:
    """What the sampler says of its meter under an environment."""
    sampler = sample(environment, selectors, folder, 0)
    wait_for(meter_path(folder, 0), sampler)
    # It ends with its standard input, which this closes.
    _, log = sampler.communicate(timeout=60)
    assert sampler.returncode == 0, log
    return read(MeterFile, meter_path(folder, 0))


@pytest.mark.parametrize(
    ("faults", "selectors", "status", "words"),
    [
        ("", "0,1", Status.MEASURED, None),
        ("1:no_counter", "0,1", Status.DERIVED, "GPU 1 of .*energy counter: Not Supported; sampled power"),
        ("1:counter_denied", "0,1", Status.DERIVED, "Insufficient Permissions; sampled power"),
        ("1:no_counter;1:no_power", "0,1", Status.UNSUPPORTED, "power: Not Supported"),
        ("1:no_counter;1:power_denied", "0,1", Status.PERMISSION_DENIED, "power: Insufficient Permissions"),
        ("0:lost", "0,1", Status.UNAVAILABLE, "GPU is lost"),
        ("0:mig", "0,1", Status.UNSUPPORTED, "GPU 0 of .* is in MIG mode; NVML meters whole GPUs only"),
        ("0:mig", "1", Status.MEASURED, None),
        ("", "MIG-8a7c", Status.UNSUPPORTED, "MIG-8a7c is a slice of a GPU"),
        ("", "0,0", Status.UNSUPPORTED, "GPU 0 of .* is named twice"),
        ("", "2", Status.UNAVAILABLE, "GPU 2 of .* cannot be opened: Invalid Argument"),
        ("", "GPU-1234", Status.UNAVAILABLE, "GPU GPU-1234 of .* cannot be opened: Not Found"),
        ("", "all", Status.UNAVAILABLE, "GPU 'all': expected an index"),
        ("", "", Status.UNAVAILABLE, "no GPUs named"),
    ],
)
def test_meter_says_what_its_joules_are_worth_and_why(
    library: Path, tmp_path: Path, faults: str, selectors: str, status: Status, words: str | None
) -> None:
    meter = meter_of(simulated(library, POWER="100;100", FAULTS=faults), selectors, tmp_path)
    methods = {Status.MEASURED: Method.NVML_COUNTER, Status.DERIVED: Method.POWER_INTEGRAL}
    assert (meter.status, meter.method) == (status, methods.get(status))
    if words is None:
        assert meter.detail is None
    else:
        assert meter.detail is not None
        assert re.search(words, meter.detail)


def test_library_without_the_counters_symbol_leaves_the_power_integral(
    library_without_counter: Path, tmp_path: Path
) -> None:
    meter = meter_of(simulated(library_without_counter), "0", tmp_path)
    assert (meter.status, meter.method) == (Status.DERIVED, Method.POWER_INTEGRAL)
    assert meter.detail
    assert "energy counter: Function Not Found" in meter.detail


def test_without_the_library_the_meter_is_unavailable_and_says_so(tmp_path: Path) -> None:
    # A folder comes first on the path in which the name is no library.
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "libnvidia-ml.so.1").write_text("no library")
    meter = meter_of(os.environ | {"LD_LIBRARY_PATH": str(tmp_path / "empty")}, "0", tmp_path)
    assert (meter.status, meter.method, meter.devices) == (Status.UNAVAILABLE, None, [])
    assert meter.detail
    assert "NVML Shared Library Not Found" in meter.detail
    reading = load_trace(tmp_path, 1, 1).reading([], Scope.ALL_NODES)
    assert (reading.joules, reading.status, reading.detail) == (None, Status.UNAVAILABLE, meter.detail)
