"""The real sampler on simulated GPUs: joules against analytic values, and sensors that fail on the way.

What the simulated library of tests/nvml can be told stands at the head of its simulated_nvml.c.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import simulated_nvml
from shardwatt.cellfiles import read_table, write_columns
from shardwatt.power.curve import Array, Curve, NoJoulesError, integral_curve
from shardwatt.power.nodetrace import DeviceTrace
from shardwatt.power.sampling.files import (
    MeterFile,
    PowerNow,
    SamplerFile,
    meter_path,
    power_now_path,
    sampler_path,
)
from shardwatt.power.trace import Trace, load_trace
from shardwatt.readings import Method, Scope, Status
from shardwatt.recordfiles import read

CUDA = json.dumps({"kind": "cuda", "per_node": 8, "memory_gib": 80})
#: Times in s after the origin at which a power steps, at which sensors fail, at which one comes back, and
#: that samplers run.
STEP_S, FAULT_S, BACK_S, RUN_S = 1.5, 2.0, 2.8, 3.7
TICK_S = 0.1
#: Longest time in s between two samples of a run that is taken at once, and how many runs there are at most.
LONGEST_GAP_S, RUNS = 0.2, 4

#: Of the node of programmes: what its GPUs draw, and what their sensors see of it.
PROGRAMMES = (
    "200;60,1.2:300,2.3:50;saw:100:300:0.7;pulse:100:300:0.1:0.25;pulse:300:100:0.1:0.25;"
    "pulse:100:300:0.33:0.5;400"
)
PART_TIME = "0.025:0.1"
SENSORS = f";;;{PART_TIME};{PART_TIME};;"
#: Power limit in W that another process sets on the last of them while they run.
LIMIT_W = 250


def sample(environment: dict[str, str], selectors: str, folder: Path, node: int) -> subprocess.Popen[str]:
    """Start the sampler of a node whose GPUs the scheduler names so."""
    ranks = len([name for name in selectors.split(",") if name])
    words = ["--gpu-type", CUDA, "--ranks-per-node", str(ranks), "--folder", str(folder)]
    return subprocess.Popen(
        [sys.executable, "-m", "shardwatt.power.sampling.sampler", *words, "--node-index", str(node)],
        env=environment | {"CUDA_VISIBLE_DEVICES": selectors},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, sampler: subprocess.Popen[str]) -> None:
    until_s = time.monotonic() + 600
    while not path.exists():
        assert time.monotonic() < until_s, f"waited in vain for {path.name}"
        assert sampler.poll() is None, sampler.communicate()[1]
        time.sleep(0.02)


def set_limit(environment: dict[str, str], gpu: int, watts: int) -> None:
    """As another process sets a power limit."""
    words = (
        "import pynvml as nvml, sys; nvml.nvmlInit(); "
        "gpu = nvml.nvmlDeviceGetHandleByIndex(int(sys.argv[1])); "
        "nvml.nvmlDeviceSetPowerManagementLimit(gpu, int(sys.argv[2]) * 1000)"
    )
    subprocess.run([sys.executable, "-c", words, str(gpu), str(watts)], env=environment, check=True)


@dataclass(frozen=True)
class Run:
    """A finished job of two nodes, a node of power programmes, and one on which sensors fail in mid-run.

    Attributes:
        origin_s: monotonic time at which the power programmes began.
        limit_s: time after it at which a power limit was set on the last GPU of the programmes.
        limited_s: time after it by which every process saw that.
        first: what node 0 of the job drew when its meter became ready.
        folders: of the job, the programmes and the failing sensors.
    """

    origin_s: float
    limit_s: float
    limited_s: float
    first: PowerNow
    folders: tuple[Path, Path, Path]
    failing_log: str

    def job(self) -> Trace:
        return load_trace(self.folders[0], 2, 2)

    def programmes(self) -> list[DeviceTrace]:
        return load_trace(self.folders[1], 1, 7).nodes[0].devices

    def failing(self) -> Trace:
        return load_trace(self.folders[2], 1, 6)

    def longest_gap_s(self) -> float:
        """The longest time in s that any of its samplers was held up."""
        nodes = [*self.job().nodes, *load_trace(self.folders[1], 1, 7).nodes, *self.failing().nodes]
        return max(float(np.max(np.diff(node.devices[0].columns["t_s"]))) for node in nodes)

    def window(self, curve: Curve, start_s: float, stop_s: float) -> tuple[float, float]:
        """Times after the origin as an interval, moved on to where a busy machine let samples be close."""
        middles = (curve.t_s[1:] + curve.t_s[:-1])[np.diff(curve.t_s) < 3 * TICK_S] / 2
        start, stop = np.searchsorted(middles, [self.origin_s + start_s, self.origin_s + stop_s])
        return float(middles[start]), float(middles[min(stop, len(middles) - 1)])


@pytest.fixture(scope="module")
def run(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of real samplers for a few seconds, again where a busy machine held them up.

    What comes late after all is in the samples' own times, which every bound below is taken from.
    """
    for _ in range(RUNS):
        done = run_samplers(library, [tmp_path_factory.mktemp(name) for name in FOLDERS])
        if done.longest_gap_s() < LONGEST_GAP_S:
            break
    return done


FOLDERS = ("job", "programmes", "failing")


def run_samplers(library: Path, folders: list[Path]) -> Run:
    """Run real samplers for a few seconds."""
    job, programmes, failing = folders
    origin = job / "origin"
    limits = simulated_nvml.environment(
        library, ORIGIN=origin, POWER=PROGRAMMES, SENSOR=SENSORS, STATE=programmes / "limits"
    )

    def start(folder: Path, node: int, selectors: str, **values: object) -> subprocess.Popen[str]:
        environment = simulated_nvml.environment(library, ORIGIN=origin, **values)
        return sample(environment, selectors, folder, node)

    faults = (
        f"0:lost@{FAULT_S};1:backwards@{FAULT_S};2:still;3:power_fails@{FAULT_S}-{BACK_S};"
        f"4:counter_denied@{FAULT_S};5:reset@{FAULT_S}"
    )
    samplers = [
        # GPU 1 belongs to somebody else: it must not be counted.
        start(
            job,
            0,
            "0,GPU-00000000-0000-0000-0000-000000000002",
            POWER=f"100;999;50,{STEP_S}:250",
            TEMPERATURE="80:40:1;99;55",
        ),
        start(job, 1, "0,1", POWER="300;150"),
        sample(limits, "0,1,2,3,4,5,6", programmes, 0),
        start(failing, 0, "0,1,2,3,4,5", POWER="100;100;100;100;100;100", FAULTS=faults),
    ]
    ready = (meter_path(job, 0), meter_path(job, 1), meter_path(programmes, 0), meter_path(failing, 0))
    for sampler, path in zip(samplers, ready, strict=True):
        wait_for(path, sampler)
    first = read(PowerNow, power_now_path(job, 0))
    # The programmes begin when every sampler runs, however long a busy machine took to start them.
    origin_s = simulated_nvml.begin(origin)
    time.sleep(1)
    set_limit(limits, 6, LIMIT_W)
    limited_s = time.monotonic()
    time.sleep(max(max(origin_s + RUN_S, limited_s + 1) - time.monotonic(), 0))
    for sampler in samplers:
        assert sampler.stdin
        sampler.stdin.close()
        sampler.stdin = None
    logs = [sampler.communicate(timeout=600)[1] for sampler in samplers]
    assert [sampler.returncode for sampler in samplers] == [0, 0, 0, 0]
    _, gpu, limit_s, _, _ = (programmes / "limits").read_text().split()
    assert gpu == "6"
    return Run(
        origin_s,
        float(limit_s) - origin_s,
        limited_s - origin_s,
        first,
        (job, programmes, failing),
        logs[-1],
    )


def surely_before(t_s: Array, event_s: float) -> NDArray[np.bool_]:
    """[samples] Which were read whole before an event: the next one was begun by then."""
    return np.append(t_s[1:], np.inf) <= event_s


def surely_after(t_s: Array, event_s: float) -> NDArray[np.bool_]:
    """[samples] Which were begun after an event: the one before was begun no sooner."""
    return np.append(-np.inf, t_s[:-1]) >= event_s


def node0_j(start_s: float, stop_s: float) -> float:
    """Analytic energy of node 0's GPUs 0 and 2 between two times after the origin."""
    low_s = max(min(stop_s, STEP_S) - start_s, 0.0)
    return 100 * (stop_s - start_s) + 50 * low_s + 250 * (stop_s - start_s - low_s)


@pytest.mark.parametrize("window_s", [(0.4, 3.3), (0.437, 1.011), (1.9, 3.05)])
def test_joules_of_the_jobs_own_gpus_are_analytic_to_one_tick(
    run: Run, window_s: tuple[float, float]
) -> None:
    job = run.job()
    curve = job.nodes[0].devices[0].curve
    assert curve
    window = run.window(curve, *window_s)
    start_s, stop_s = (border_s - run.origin_s for border_s in window)
    everything = job.reading([window], Scope.ALL_NODES)
    scaled = job.reading([window], Scope.RANK0_NODE_SCALED)
    assert (everything.status, everything.method) == (Status.MEASURED, Method.NVML_COUNTER)
    # One tick of the counters; one gap between samples where a busy machine let them come late.
    assert everything.coverage.max_gap_s
    tick_s = max(TICK_S, everything.coverage.max_gap_s)
    expected_j = node0_j(start_s, stop_s)
    assert everything.joules == pytest.approx(expected_j + 450 * (stop_s - start_s), abs=800 * tick_s)
    # Looking at one node alone is wrong by what the other draws more.
    assert scaled.joules == pytest.approx(2 * expected_j, abs=2 * 350 * tick_s)
    assert everything.uncertainty_j is not None
    assert everything.uncertainty_j >= 600 * TICK_S
    assert [device.index for device in everything.coverage.devices] == [0, 2, 0, 1]


def power_w(gpu: int, t_s: Array, limit_s: float) -> Array:
    """What a GPU of the programmes draws at times after the origin; the definition, apart from the C code."""
    match gpu:
        case 0:
            return np.full_like(t_s, 200.0)
        case 1:
            return np.select([t_s < 1.2, t_s < 2.3], [60.0, 300.0], 50.0)
        case 2:
            return 100 + 200 * (t_s % 0.7) / 0.7
        case 3:
            return np.where(t_s % 0.1 < 0.025, 300.0, 100.0)
        case 4:
            return np.where(t_s % 0.1 < 0.025, 100.0, 300.0)
        case 5:
            return np.where(t_s % 0.33 < 0.165, 300.0, 100.0)
        case _:
            return np.where(t_s < limit_s, 400.0, LIMIT_W)


def analytic_j(run: Run, gpu: int, window: tuple[float, float]) -> float:
    """The joules of a GPU of the programmes, on a grid of 20 us."""
    start_s, stop_s = window[0] - run.origin_s, window[1] - run.origin_s
    points = round((stop_s - start_s) / 2e-5)
    middles_s = start_s + (np.arange(points) + 0.5) * (stop_s - start_s) / points
    return float(power_w(gpu, middles_s, run.limit_s).mean() * (stop_s - start_s))


@pytest.mark.parametrize("window_s", [(0.4, 3.3), (0.93, 2.05)])
@pytest.mark.parametrize("gpu", range(7))
def test_counter_is_exact_to_a_tick_at_each_border_under_every_load(
    run: Run, gpu: int, window_s: tuple[float, float]
) -> None:
    device = run.programmes()[gpu]
    assert device.curve
    window = run.window(device.curve, *window_s)
    joules, uncertainty_j = device.curve.joules([window])
    gap_s = float(np.max(np.diff(device.curve.t_s)))
    most_w = 400 if gpu == 6 else 300
    assert joules == pytest.approx(analytic_j(run, gpu, window), abs=2 * most_w * max(TICK_S, gap_s))
    # And to what the reading says of itself.
    assert joules == pytest.approx(analytic_j(run, gpu, window), abs=uncertainty_j)


def integral(device: DeviceTrace) -> Curve:
    curve = integral_curve(device.columns["t_s"], device.columns["power_w"])
    assert curve
    return curve


def test_integral_of_sampled_power_is_right_within_its_bound(run: Run) -> None:
    """Between samples power is taken to run straight: each jump costs half of its height, a sample long. As
    much again is left for power that is read later than its time says; exact samples have their own test."""
    for gpu, jump_w, jumps in [(0, 0, 0), (1, 250, 2), (2, 200, 5), (6, 150, 1)]:
        curve = integral(run.programmes()[gpu])
        window = run.window(curve, 0.4, 3.3)
        joules, _ = curve.joules([window])
        gap_s = float(np.max(np.diff(curve.t_s)))
        bound_j = jumps * jump_w * gap_s + 1e-3
        assert joules == pytest.approx(analytic_j(run, gpu, window), abs=bound_j), gpu


@pytest.mark.parametrize(("gpu", "seen_w", "mean_w"), [(3, 300, 150), (4, 100, 250)])
def test_sensor_that_looks_a_quarter_of_the_time_misleads_the_integral_and_not_the_counter(
    run: Run, gpu: int, seen_w: float, mean_w: float
) -> None:
    """The pulse falls into the time in which the sensor looks, or into all the other."""
    device = run.programmes()[gpu]
    assert device.curve
    window = run.window(device.curve, 0.4, 3.3)
    length_s = window[1] - window[0]
    gap_s = float(np.max(np.diff(device.curve.t_s)))
    assert integral(device).joules([window])[0] == pytest.approx(seen_w * length_s, rel=1e-3)
    counted_j, _ = device.curve.joules([window])
    assert counted_j == pytest.approx(mean_w * length_s, abs=mean_w * max(TICK_S, gap_s) + 20)
    # What the driver averages over a second is right, a second late.
    late = device.columns["t_s"] > run.origin_s + 1.1
    assert device.columns["power_average_w"][late] == pytest.approx(np.full(late.sum(), mean_w), abs=20)


def test_limit_that_is_reached_is_a_throttle_reason_from_then_on(run: Run) -> None:
    device = run.programmes()[6]
    at_s = device.columns["t_s"] - run.origin_s
    reasons = device.columns["throttle_reasons"]
    assert set(reasons[surely_before(at_s, run.limit_s)]) == {0}
    assert set(reasons[surely_after(at_s, run.limited_s)]) == {4}


def test_every_device_has_its_place_in_the_rows(run: Run, tmp_path: Path) -> None:
    write_columns(tmp_path / "power.parquet", run.job().columns(run.origin_s))
    rows = read_table(tmp_path / "power.parquet").to_pylist()
    assert rows[0]["power_w"] == 100
    assert rows[0]["counter_j"] == pytest.approx(1e6, abs=1e3)
    assert (rows[0]["clock_memory_mhz"], rows[0]["throttle_reasons"]) == (1593, 0)
    assert {row["uuid"][-1] for row in rows} == {"0", "1", "2"}


def test_what_is_drawn_now_is_there_with_the_meter_and_follows(run: Run) -> None:
    assert (run.first.power_w, run.first.temperature_c) == (150, 80)
    last = read(PowerNow, power_now_path(run.folders[0], 0))
    assert last.t_s > run.first.t_s + 1
    # The hottest of the two: the first has cooled down since.
    assert last.temperature_c == 55


def test_sampler_says_how_well_it_kept_its_time(run: Run) -> None:
    kept = read(SamplerFile, sampler_path(run.folders[1], 0))
    times = run.programmes()[0].columns["t_s"]
    # The first sample and the last have no deadline.
    assert kept.samples == len(times) - 2
    assert kept.deadlines == kept.samples + kept.missed
    # Until the last deadline that it came to: then its supervisor ended it.
    assert kept.deadlines == pytest.approx((times[-2] - times[-1] + kept.wall_s) / 0.1, abs=2)
    assert kept.late_median_s is not None
    assert kept.late_p95_s is not None
    assert kept.late_max_s is not None
    assert 0 <= kept.late_median_s <= kept.late_p95_s <= kept.late_max_s
    span_s = times[-1] - times[0]
    assert span_s <= kept.wall_s <= span_s + 2 * max(0.1, np.max(np.diff(times)))
    assert 0 < kept.cpu_s < kept.wall_s
    assert kept.failures == []


def test_window_after_a_sensor_failed_has_no_joules_and_never_zero(run: Run) -> None:
    failing = run.failing()
    lost, backwards, still, dark, denied, reset = failing.nodes[0].devices
    assert still.curve
    window = run.window(still.curve, 0.4, 3.3)
    reading = failing.reading([window], Scope.ALL_NODES)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail
    assert reading.detail.startswith("device 0 of ")
    for device in (lost, denied):
        assert device.curve
        before = run.window(device.curve, 0.4, 1.6)
        gap_s = float(np.max(np.diff(device.curve.t_s)))
        expected = pytest.approx(100 * (before[1] - before[0]), abs=100 * max(TICK_S, gap_s))
        assert device.curve.joules([before])[0] == expected
        with pytest.raises(NoJoulesError, match="end before"):
            device.curve.joules([window])
    # Samples go on, with nothing in place of what could not be read.
    late = surely_after(lost.columns["t_s"], run.origin_s + FAULT_S)
    assert late.any()
    for name, values in lost.columns.items():
        assert name == "t_s" or np.isnan(values[late]).all(), name
    assert np.isnan(denied.columns["counter_j"][late]).all()
    assert (denied.columns["power_w"][late] == 100).all()
    with pytest.raises(NoJoulesError, match="stood still"):
        still.curve.joules([window])
    for device in (backwards, reset):
        assert device.curve
        with pytest.raises(NoJoulesError, match="ran backwards"):
            device.curve.joules([window])
    assert reset.curve
    after = run.window(reset.curve, FAULT_S + 0.3, 3.3)
    open_j = 100 * 2 * max(TICK_S, run.longest_gap_s())
    assert reset.curve.joules([after])[0] == pytest.approx(100 * (after[1] - after[0]), abs=open_j)
    assert dark.curve
    assert dark.curve.joules([window])[0] == pytest.approx(100 * (window[1] - window[0]), abs=open_j)


def test_sensor_that_comes_back_is_read_again(run: Run) -> None:
    dark = run.failing().nodes[0].devices[3].columns
    at_s = dark["t_s"] - run.origin_s
    before, after = surely_before(at_s, FAULT_S), surely_after(at_s, BACK_S)
    gone = surely_after(at_s, FAULT_S) & surely_before(at_s, BACK_S)
    assert gone.any()
    assert np.isnan(dark["power_w"][gone]).all()
    assert set(dark["power_w"][before]) == set(dark["power_w"][after]) == {100}


def test_first_reason_of_each_sensor_that_failed_is_kept(run: Run) -> None:
    failures = read(SamplerFile, sampler_path(run.folders[2], 0)).failures
    node = run.failing().nodes[0].name
    assert set(failures) == {
        *(
            f"GPU 0 of {node}: {sensor}: GPU is lost"
            for sensor in (
                *("energy counter", "field values", "utilisation", "memory", "clock", "memory clock"),
                *("temperature", "throttle reasons"),
            )
        ),
        f"GPU 3 of {node}: instant power: Unknown Error",
        f"GPU 3 of {node}: average power: Unknown Error",
        f"GPU 4 of {node}: energy counter: Insufficient Permissions",
    }
    assert len(failures) == len(set(failures))
    for failure in failures:
        assert failure in run.failing_log


def meter_of(environment: dict[str, str], folder: Path) -> MeterFile:
    """What the sampler says of its meter under an environment."""
    sampler = sample(environment, "0", folder, 0)
    wait_for(meter_path(folder, 0), sampler)
    # It ends with its standard input, which this closes.
    _, log = sampler.communicate(timeout=600)
    assert sampler.returncode == 0, log
    return read(MeterFile, meter_path(folder, 0))


def test_without_the_library_the_meter_is_unavailable_and_says_so(tmp_path: Path) -> None:
    # A folder comes first on the path in which the name is no library.
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / simulated_nvml.LIBRARY).write_text("no library")
    meter = meter_of(os.environ | {"LD_LIBRARY_PATH": str(tmp_path / "empty")}, tmp_path)
    assert (meter.status, meter.method, meter.devices) == (Status.UNAVAILABLE, None, [])
    assert meter.detail
    assert "NVML Shared Library Not Found" in meter.detail
    reading = load_trace(tmp_path, 1, 1).reading([], Scope.ALL_NODES)
    assert (reading.joules, reading.status, reading.detail) == (None, Status.UNAVAILABLE, meter.detail)
    assert read(PowerNow, power_now_path(tmp_path, 0)).power_w is None
