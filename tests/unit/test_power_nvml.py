"""What the NVML meter says of GPUs when it opens them: what they are worth, whose they are, what they tell.

A process with the simulated library of tests/nvml opens a meter for each case.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import simulated_nvml
from shardwatt.power.sampling.files import meter_path
from shardwatt.power.trace import load_trace
from shardwatt.readings import Method, PowerSource, Status

#: Reads cases, a line each, and writes what a meter says under each.
PROBE = """
import json, os, sys
from shardwatt.power.meters.nvml import NvmlMeter
for line in sys.stdin:
    case = json.loads(line)
    os.environ.update(case["environment"])
    meter = NvmlMeter(case["selectors"], *case["tdp"])
    samples = [{name: getattr(sample, name) for name in sample.__slots__} for sample in meter.sample()]
    meter.close()
    for name in case["environment"]:
        del os.environ[name]
    names = ("method", "status", "detail", "power_sources", "failures")
    said = {name: getattr(meter, name) for name in names}
    uuids = [device.uuid for device in meter.devices]
    print(json.dumps(said | {"samples": samples, "uuids": uuids}), flush=True)
"""

#: A pid that no process can have: above Linux's highest.
NOBODY = 2**22 + 1


class Probe:
    """A process that opens meters on simulated GPUs."""

    def __init__(self, library: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROBE],
            env=simulated_nvml.environment(library),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def open(
        self,
        selectors: str = "0",
        tdp: tuple[float | None, str | None] = (None, None),
        job: str | None = None,
        **values: object,
    ) -> dict[str, Any]:
        """What a meter says that was opened under settings of the library, and its first sample."""
        assert self._process.stdin
        assert self._process.stdout
        environment = {f"SIMULATED_NVML_{name}": str(value) for name, value in values.items()}
        if job is not None:
            environment["SLURM_JOB_ID"] = job
        named = [name for name in selectors.split(",") if name]
        case = {"environment": environment, "selectors": named, "tdp": tdp}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        said: dict[str, Any] = json.loads(self._process.stdout.readline())
        return said

    def close(self) -> None:
        self._process.communicate(timeout=600)


def build(folder: Path, *flags: str) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("no gcc: the simulated NVML library cannot be built")
    return simulated_nvml.build(folder, *flags)


def probe(library: Path) -> Iterator[Probe]:
    opened = Probe(library)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def gpus(library: Path) -> Iterator[Probe]:
    yield from probe(library)


@pytest.fixture(scope="module")
def old_gpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Probe]:
    """Under a driver that lacks what newer ones brought."""
    lacking = ("COUNTER", "FIELDS", "EVENT_REASONS", "PROCESSES_V3")
    flags = (f"-DWITHOUT_{name}" for name in lacking)
    yield from probe(build(tmp_path_factory.mktemp("nvml") / "old", *flags))


@pytest.fixture
def orphan() -> Iterator[Any]:
    """Starts processes that come from nowhere near this one, under a job's number or none."""
    pids: list[int] = []

    def start(job: str | None = None) -> int:
        environment = {**os.environ, **({} if job is None else {"SLURM_JOB_ID": job})}
        words = ["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo $!"]
        started = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        pids.append(int(started.stdout))
        return pids[-1]

    yield start
    for pid in pids:
        os.kill(pid, 9)


@pytest.mark.parametrize(
    ("faults", "selectors", "status", "words"),
    [
        ("", "0,1", Status.MEASURED, None),
        ("1:no_counter", "0,1", Status.DERIVED, r"GPU 1 of .*energy counter: Not Supported; sampled power"),
        ("1:counter_denied", "0,1", Status.DERIVED, r"Insufficient Permissions; sampled power \(instant\)"),
        ("1:no_counter;1:no_power", "0,1", Status.UNSUPPORTED, "power: Not Supported; no estimate: .*tdp_w"),
        ("1:no_counter;1:power_denied", "0,1", Status.PERMISSION_DENIED, "power: Insufficient Permissions"),
        ("0:lost", "0,1", Status.UNAVAILABLE, "GPU is lost"),
        ("0:mig", "0,1", Status.UNSUPPORTED, "GPU 0 of .* is in MIG mode; NVML meters .*whole GPUs only"),
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
    gpus: Probe, faults: str, selectors: str, status: Status, words: str | None
) -> None:
    meter = gpus.open(selectors, POWER="100;100", FAULTS=faults)
    methods = {Status.MEASURED: Method.NVML_COUNTER, Status.DERIVED: Method.POWER_INTEGRAL}
    assert (meter["status"], meter["method"]) == (status, methods.get(status))
    if words is None:
        assert meter["detail"] is None
    else:
        assert re.search(words, meter["detail"])


def test_every_sensor_is_read_in_its_unit(gpus: Probe) -> None:
    (sample,) = gpus.open(POWER="250", THROTTLE="0x60")["samples"]
    assert sample.pop("t_s") > 0
    assert sample.pop("counter_j") > 1e6
    assert sample == {
        "device": 0,
        "power_w": 250,
        "power_average_w": 250,
        "sm_utilisation": 0.75,
        "memory_activity": 0.4,
        "memory_filled": 0.25,
        "cpu_utilisation": None,
        "clock_sm_mhz": 1410,
        "clock_memory_mhz": 1593,
        "temperature_c": 55,
        "throttle_reasons": 0x60,
    }


def test_power_is_the_sensors_latest_where_it_is_told_and_what_it_is_is_said(gpus: Probe) -> None:
    """The sensor sees 300 W in the quarter of the time in which it looks; over a second it is 150 W."""
    told: dict[str, Any] = {"POWER": "pulse:100:300:0.1:0.25", "SENSOR": "0.025:0.1"}
    seen = pytest.approx(300, abs=0.01)
    mean = pytest.approx(150, abs=20)
    for faults, source, power_w, average_w in [
        ("", PowerSource.INSTANT, seen, mean),
        ("0:mean_usage", PowerSource.INSTANT, seen, mean),
        ("0:no_average", PowerSource.INSTANT, seen, None),
        ("0:no_instant", PowerSource.USAGE, seen, mean),
        ("0:no_instant;0:mean_usage", PowerSource.USAGE, mean, mean),
    ]:
        meter = gpus.open(**told, FAULTS=faults)
        (sample,) = meter["samples"]
        assert meter["power_sources"] == [source], faults
        assert (sample["power_w"], sample["power_average_w"]) == (power_w, average_w), faults


def test_no_gpu_draws_0_watts(gpus: Probe) -> None:
    (sample,) = gpus.open(POWER="0")["samples"]
    assert (sample["power_w"], sample["power_average_w"]) == (None, None)


def test_sensors_that_never_worked_are_unknown_and_no_failure_on_the_way(gpus: Probe) -> None:
    names = ("utilisation", "memory", "clock", "throttle", "temperature")
    meter = gpus.open(FAULTS=";".join(f"0:no_{name}" for name in names))
    assert (meter["status"], meter["failures"]) == (Status.MEASURED, [])
    (sample,) = meter["samples"]
    unknown = {name for name, value in sample.items() if value is None}
    assert unknown == {
        *("sm_utilisation", "memory_activity", "memory_filled", "cpu_utilisation"),
        *("clock_sm_mhz", "clock_memory_mhz", "throttle_reasons", "temperature_c"),
    }


def test_driver_of_old_leaves_the_power_integral_and_its_own_name_for_throttle_reasons(
    old_gpus: Probe,
) -> None:
    meter = old_gpus.open(THROTTLE="8")
    assert (meter["status"], meter["method"]) == (Status.DERIVED, Method.POWER_INTEGRAL)
    assert "energy counter: Function Not Found; sampled power (usage)" in meter["detail"]
    assert meter["power_sources"] == [PowerSource.USAGE]
    (sample,) = meter["samples"]
    assert (sample["counter_j"], sample["power_w"], sample["power_average_w"]) == (None, 100, None)
    assert sample["throttle_reasons"] == 8
    assert f"compute on it ({NOBODY})" in old_gpus.open(PROCESSES=f"0:{NOBODY}")["detail"]


def test_gpu_that_tells_only_how_busy_it_is_is_estimated_by_name(gpus: Probe) -> None:
    faults = "1:no_counter;1:power_denied"
    meter = gpus.open("0,1", (400.0, "data sheet"), POWER="100;100", FAULTS=faults)
    # A sum is worth what its worst part is.
    assert (meter["status"], meter["method"]) == (Status.ESTIMATED, Method.ESTIMATE)
    assert meter["power_sources"] == [PowerSource.INSTANT, PowerSource.ESTIMATE]
    assert [sample["power_w"] for sample in meter["samples"]] == [100, 0.75 * 400]
    for words in (
        "Insufficient Permissions",
        "an estimate, not a measurement",
        "400",
        "data sheet",
        "kernel",
    ):
        assert words in meter["detail"]
    blind = gpus.open("0", (400.0, "data sheet"), FAULTS="0:no_counter;0:no_power;0:no_utilisation")
    assert (blind["status"], blind["method"]) == (Status.UNSUPPORTED, None)
    assert blind["samples"][0]["power_w"] is None


def test_somebody_elses_process_on_a_gpu_makes_it_unsupported_and_is_named(gpus: Probe, orphan: Any) -> None:
    stranger, other = orphan(), orphan(job="8")
    processes = f"0:{stranger};1:{other};1:{stranger}"
    for selectors, job, named in [("0", None, [stranger]), ("0,1", "7", [stranger, other])]:
        meter = gpus.open(selectors, job=job, POWER="100;100", PROCESSES=processes)
        assert (meter["status"], meter["method"]) == (Status.UNSUPPORTED, None)
        assert "processes that are not of this job compute on it" in meter["detail"]
        for pid in named:
            assert str(pid) in meter["detail"]
    # What others do on GPUs of theirs is nobody's business.
    assert gpus.open("2", POWER="100;100;100", PROCESSES=processes)["status"] == Status.MEASURED


def test_processes_of_this_job_are_no_strangers(gpus: Probe, orphan: Any) -> None:
    kept = orphan(job="7")
    meter = gpus.open(job="7", PROCESSES=f"0:{kept}")
    assert (meter["status"], meter["detail"]) == (Status.MEASURED, None)
    assert gpus.open(job="8", PROCESSES=f"0:{kept}")["status"] == Status.UNSUPPORTED
    # Without Slurm: whatever comes from the process that has started the meter's.
    with subprocess.Popen(["sleep", "300"]) as sibling:
        meter = gpus.open(PROCESSES=f"0:{sibling.pid}")
        sibling.kill()
    assert (meter["status"], meter["detail"]) == (Status.MEASURED, None)


def test_somebody_who_comes_later_is_named_at_the_end_and_voids_nothing(
    library: Path, tmp_path: Path, orphan: Any
) -> None:
    stranger = orphan()
    origin = tmp_path / "origin"
    with subprocess.Popen(["sleep", "300"]) as own:
        environment = simulated_nvml.environment(
            library,
            ORIGIN=origin,
            POWER="100;200",
            PROCESSES=f"0:{own.pid};1:{own.pid};1:{stranger}",
            # Before this moment nobody is there.
            FAULTS="0:processes_fails@-1-0.1;1:processes_fails@-1-0.1",
        )
        environment.pop("SLURM_JOB_ID", None)
        words = ["--gpu-type", '{"kind": "cuda", "per_node": 2, "memory_gib": 80}', "--ranks-per-node", "2"]
        with subprocess.Popen(
            [sys.executable, "-m", "shardwatt.power.sampling.sampler", *words, "--folder", str(tmp_path)],
            env=environment | {"CUDA_VISIBLE_DEVICES": "0,1"},
            stdin=subprocess.PIPE,
        ) as sampler:
            while not meter_path(tmp_path, 0).exists():
                assert sampler.poll() is None
                time.sleep(0.02)
            begin_s = simulated_nvml.begin(origin)
            time.sleep(max(begin_s + 1 - time.monotonic(), 0))
            assert sampler.stdin
            sampler.stdin.close()
            assert sampler.wait(timeout=600) == 0
        own.kill()
    node = load_trace(tmp_path, 1, 2).nodes[0]
    assert node.status is Status.MEASURED
    assert node.strangers == [f"GPU 1 of {socket.gethostname()}: {stranger}"]


def test_processes_that_cannot_be_seen_from_here_are_said_and_refuse_nothing(gpus: Probe) -> None:
    meter = gpus.open(PROCESSES=f"0:{NOBODY}")
    assert (meter["status"], meter["method"]) == (Status.MEASURED, Method.NVML_COUNTER)
    assert f"cannot be seen from here compute on it ({NOBODY})" in meter["detail"]
    for refusal in ("0:no_processes", "0:processes_denied"):
        assert gpus.open(PROCESSES=f"0:{NOBODY}", FAULTS=refusal)["detail"] is None


def test_nodes_can_have_gpus_of_their_own(gpus: Probe) -> None:
    host = socket.gethostname()
    chosen = gpus.open("1", POWER=f"another-{host}=900|{host}=100;70|500", TEMPERATURE=f"{host}=41|99")
    assert [sample["power_w"] for sample in chosen["samples"]] == [70]
    assert chosen["samples"][0]["temperature_c"] == 41
    assert chosen["uuids"] != gpus.open("1", POWER="100;70")["uuids"]
    general = gpus.open("0", POWER="another-host=900|500")
    assert [sample["power_w"] for sample in general["samples"]] == [500]
