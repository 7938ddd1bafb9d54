"""Guards what simulated cells draw: on simulated GPUs of analytic joules, and replayed as an estimate."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import simulated_nvml
from shardwatt.power.draw import Draw, draw_path, simulated_gpus, tell_simulated_gpu
from shardwatt.power.meters.replay import Replay, ReplayMeter
from shardwatt.readings import Method, Status
from shardwatt.recordfiles import write
from shardwatt.site import GpuType

HOST = socket.gethostname()
#: W of the GPUs' programmes, and the highest limit.
OWN_W, LIMIT_W = 50.0, 400.0
GPUS = 4

#: Time in s between a look at the clock and one at a counter, at most.
_BESIDE_S = 0.05
#: Time in s between steps of the counters.
_TICK_S = 0.001

#: Prints times, counters, powers and throttle reasons, whenever it is asked; what a busy machine held up in
#: the middle is read again.
_READ = f"""
import json, sys, time
import pynvml as nvml
nvml.nvmlInit()
def read(gpu):
    while True:
        before_s = time.monotonic()
        counter_j = nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3
        after_s = time.monotonic()
        if after_s - before_s < {_BESIDE_S}:
            break
    return [
        after_s,
        counter_j,
        nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3,
        nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
    ]
gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range({GPUS})]
for line in sys.stdin:
    print(json.dumps(list(map(read, gpus))), flush=True)
"""


@dataclass
class Reader:
    """A process that has the simulated library open.

    Attributes:
        origin_s: monotonic time at which the GPUs' programmes began.
        file: where they are told what they draw.
    """

    origin_s: float
    file: Path
    process: subprocess.Popen[str]

    def tell(self, *lines: tuple[str, object, float, float]) -> None:
        """Add lines: host, GPU, time in s after the origin, W."""
        with self.file.open("a") as stream:
            for host, gpu, after_s, power_w in lines:
                stream.write(f"{host} {gpu} {self.origin_s + after_s:.6f} {power_w}\n")

    def read(self) -> list[tuple[float, float, float, int]]:
        """For each GPU: time in s after the origin, J since then, W, throttle reasons."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = []
        for gpu, (t_s, counter_j, power_w, reasons) in enumerate(json.loads(self.process.stdout.readline())):
            found.append((t_s - self.origin_s, counter_j - 1e6 * (gpu + 1), power_w, reasons))
        return found


@pytest.fixture
def reader(library: Path, tmp_path: Path) -> Iterator[Reader]:
    origin_s = time.monotonic() - 20
    (tmp_path / "origin").write_text(f"{origin_s:.6f}")
    environment = simulated_nvml.environment(
        library,
        ORIGIN=tmp_path / "origin",
        POWER=";".join([f"{OWN_W}"] * GPUS),
        LIMITS=f"100:{LIMIT_W}:{LIMIT_W}",
        TICK_S=_TICK_S,
        DRAW=tmp_path / "draw",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", _READ],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Reader(origin_s, tmp_path / "draw", process)
    assert process.stdin
    process.stdin.close()
    process.wait(timeout=600)


def open_j(power_w: float) -> float:
    """What a tick, and the time between the looks at the counter and at the clock, leave open, in J."""
    return power_w * (_BESIDE_S + _TICK_S) + 0.01


def test_gpus_draw_what_they_are_told_from_when_they_are_told(reader: Reader) -> None:
    """The programme's 50 W for 5 s, then what the lines say, to the last tick; by index and by UUID."""
    uuid = "GPU-00000000-0000-0000-0000-000000000001"
    reader.tell(
        (HOST, 0, 5, 300),
        ("elsewhere", 0, 6, 999),
        (HOST, 0, 10, 120),
        (HOST, 0, 12, -1),
        (HOST, uuid, 5, 500),
        (HOST, 1, 15, 200),
        (HOST, 1, 3600, 350),
    )
    told, limited, own, other = reader.read()
    at_s, joules, power_w, _ = told
    assert joules == pytest.approx(5 * OWN_W + 5 * 300 + 2 * 120 + (at_s - 12) * OWN_W, abs=open_j(OWN_W))
    assert power_w == OWN_W
    at_s, joules, power_w, reasons = limited
    # Held down by the limit while more was wanted; what lies ahead is not drawn yet.
    assert joules == pytest.approx(5 * OWN_W + 10 * LIMIT_W + (at_s - 15) * 200, abs=open_j(200))
    assert (power_w, reasons) == (200, 0)
    for at_s, joules, power_w, _ in (own, other):
        assert joules == pytest.approx(at_s * OWN_W, abs=open_j(OWN_W))
        assert power_w == OWN_W


def test_a_later_line_voids_what_an_earlier_one_planned(reader: Reader) -> None:
    """As a cell's that follows a killed one. A line that is not whole yet waits for its end."""
    reader.tell((HOST, 2, 5, 300), (HOST, 2, 9, 250), (HOST, 2, 11, -1))
    at_s, joules, power_w, _ = reader.read()[2]
    assert joules == pytest.approx(5 * OWN_W + 4 * 300 + 2 * 250 + (at_s - 11) * OWN_W, abs=open_j(OWN_W))
    assert power_w == OWN_W
    reader.tell((HOST, 2, 7, 80))
    with reader.file.open("a") as stream:
        stream.write(f"{HOST} 2 {reader.origin_s + 8:.6f} 45")
    at_s, joules, power_w, _ = reader.read()[2]
    assert joules == pytest.approx(5 * OWN_W + 2 * 300 + (at_s - 7) * 80, abs=open_j(80))
    assert power_w == 80
    with reader.file.open("a") as stream:
        stream.write("0\n")
    at_s, joules, power_w, reasons = reader.read()[2]
    assert (power_w, reasons) == (LIMIT_W, 4)
    assert joules == pytest.approx(5 * OWN_W + 2 * 300 + 80 + (at_s - 8) * LIMIT_W, abs=open_j(LIMIT_W))


def test_what_a_rank_tells_is_what_its_gpu_draws(reader: Reader) -> None:
    steps = [(reader.origin_s + 5, 210.0), (reader.origin_s + 8, 330.0)]
    tell_simulated_gpu(reader.file, HOST, "3", Draw(steps=steps, stop_s=reader.origin_s + 10))
    at_s, joules, power_w, _ = reader.read()[3]
    assert joules == pytest.approx(5 * OWN_W + 3 * 210 + 2 * 330 + (at_s - 10) * OWN_W, abs=open_j(OWN_W))
    assert power_w == OWN_W


def test_only_gpus_that_nvml_meters_are_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = GpuType(kind="cuda", per_node=2, memory_gib=80)
    metered = GpuType(kind="cpu", meter="nvml", per_node=2, memory_gib=1)
    cpu = GpuType(kind="cpu", per_node=2, memory_gib=1)
    monkeypatch.delenv("SIMULATED_NVML_DRAW", raising=False)
    assert simulated_gpus(cuda) is None
    monkeypatch.setenv("SIMULATED_NVML_DRAW", "/somewhere/draw")
    assert [simulated_gpus(one) for one in (cuda, metered, cpu)] == [*[Path("/somewhere/draw")] * 2, None]


def test_joules_of_a_draw_are_those_of_its_steps() -> None:
    draw = Draw(steps=[(10.0, 100.0), (12.0, 300.0)], stop_s=15.0)
    assert draw.joules(10, 15) == (2 * 100 + 3 * 300, 5)
    assert draw.joules(11, 12.5) == (100 + 0.5 * 300, 1.5)
    assert draw.joules(0, 11) == (100, 1)
    assert draw.joules(16, 20) == (0, 0)


@pytest.mark.parametrize("window_s", [2.0, 0.5, 0.1])
@pytest.mark.parametrize("late_s", [-0.1, -0.03, 0.0, 0.07, 0.1])
def test_a_meter_that_is_early_or_late_at_both_borders_misses_nothing(window_s: float, late_s: float) -> None:
    steps = [(0.0, 380.0), (0.1 * window_s, 220.0), (0.7 * window_s, 290.0)]
    whole_j = window_s * (0.1 * 380 + 0.6 * 220 + 0.3 * 290)
    draw = Draw.of_window(steps, 50.0, window_s, 0.4)
    assert draw.joules(50, 50 + window_s) == pytest.approx((whole_j, window_s))
    assert draw.joules(50 + late_s, 50 + window_s + late_s) == pytest.approx((whole_j, window_s))
    margin_s = min(0.4, window_s)
    assert (draw.steps[0][0], draw.stop_s) == pytest.approx((50 - margin_s, 50 + window_s + margin_s))
    assert draw.steps == sorted(draw.steps)


def a_meter(folder: Path, ranks: range, devices: int, **changes: Any) -> ReplayMeter:
    usual = {"device": "a100 (simulated)", "idle_w": 60.0, "detail": "the plan's", "has_power": True}
    return ReplayMeter(Replay.model_validate({**usual, **changes}), folder, ranks, devices)


def holds(folder: Path, rank: int, *steps: tuple[float, float], for_s: float = 1000.0) -> Draw:
    """Let a rank hold powers in W from times in s from now on."""
    now_s = time.monotonic()
    draw = Draw(steps=[(now_s + after_s, power_w) for after_s, power_w in steps], stop_s=now_s + for_s)
    write(draw, draw_path(folder, rank))
    return draw


def test_watts_of_ranks_are_replayed_device_by_device_as_an_estimate(tmp_path: Path) -> None:
    """The second node's ranks; those of the first are none of its."""
    holds(tmp_path, 0, (-1000, 999))
    holds(tmp_path, 2, (-1000, 250))
    holds(tmp_path, 3, (-1000, 310))
    meter = a_meter(tmp_path, range(2, 4), 2)
    assert (meter.method, meter.status, meter.detail) == (Method.ESTIMATE, Status.ESTIMATED, "the plan's")
    assert [(device.index, device.name) for device in meter.devices] == [
        (0, "a100 (simulated)"),
        (1, "a100 (simulated)"),
    ]
    assert [sample.power_w for sample in meter.sample()] == [None, None]
    assert [sample.power_w for sample in meter.sample()] == pytest.approx([250, 310])


def test_a_sample_is_the_mean_since_the_one_before(tmp_path: Path) -> None:
    meter = a_meter(tmp_path, range(1), 1)
    (before,) = meter.sample()
    # Said while the meter runs already: so the step lies between the two samples for certain.
    draw = holds(tmp_path, 0, (-1000, 100), (0.05, 300))
    time.sleep(0.1)
    (after,) = meter.sample()
    joules, said_s = draw.joules(before.t_s, after.t_s)
    assert said_s == pytest.approx(after.t_s - before.t_s)
    assert after.power_w == pytest.approx(joules / said_s)
    assert after.power_w is not None
    assert 100 < after.power_w < 300


def test_processors_are_one_device_of_all_ranks_on_the_node(tmp_path: Path) -> None:
    for rank, power_w in enumerate((20.0, 30.0, 40.0)):
        holds(tmp_path, rank, (-1000, power_w))
    meter = a_meter(tmp_path, range(3), 1)
    meter.sample()
    assert [sample.power_w for sample in meter.sample()] == pytest.approx([90])


def test_around_what_is_held_devices_idle_and_without_idle_watts_nothing_is_known(tmp_path: Path) -> None:
    for folder, idle_w in (("known", 60.0), ("unknown", None)):
        (tmp_path / folder).mkdir()
        meter = a_meter(tmp_path / folder, range(1), 1, idle_w=idle_w)
        meter.sample()
        assert [sample.power_w for sample in meter.sample()] == [idle_w]
        # Said while the meter runs already.
        holds(tmp_path / folder, 0, (-1000, 200))
        assert [sample.power_w for sample in meter.sample()] == pytest.approx([200])


def test_a_plan_without_watts_is_no_estimate(tmp_path: Path) -> None:
    meter = a_meter(tmp_path, range(2), 2, has_power=False)
    assert (meter.method, meter.status, meter.power_sources) == (None, Status.UNAVAILABLE, [None, None])
    meter.sample()
    assert [sample.power_w for sample in meter.sample()] == [None, None]
