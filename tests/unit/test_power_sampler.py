"""The sampler as a process: what it leaves behind however it is ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardwatt.power.samplefiles import MeterFile, PowerNow, meter_path, power_now_path, samples_path
from shardwatt.power.trace import load_trace
from shardwatt.records import Scope, Status, read

CPU = json.dumps({"kind": "cpu", "per_node": 2, "memory_gib": 4, "tdp_w": 100, "tdp_source": "a test"})


def command(folder: Path, *more: str) -> list[str]:
    module = [sys.executable, "-m", "shardwatt.power.sampler"]
    return [*module, "--gpu-type", CPU, "--ranks-per-node", "2", "--folder", str(folder), *more]


def start(folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(folder), stdin=subprocess.PIPE, **options)


def end(sampler: subprocess.Popen[bytes]) -> int:
    """As its supervisor ends it."""
    assert sampler.stdin
    sampler.stdin.close()
    return sampler.wait(timeout=60)


def wait_for(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.02)


def test_the_end_of_its_input_ends_it_with_whole_files_and_a_last_sample(tmp_path: Path) -> None:
    sampler = start(tmp_path)
    wait_for(power_now_path(tmp_path, 0).exists)
    stopped_s = time.monotonic()
    assert end(sampler) == 0
    assert samples_path(tmp_path, 0).read_bytes().endswith(b"\n")
    meter = read(MeterFile, meter_path(tmp_path, 0))
    assert (meter.status, meter.period_s) == (Status.ESTIMATED, 0.1)
    trace = load_trace(tmp_path, 1, 1)
    assert trace.nodes[0].devices[0].columns["t_s"][-1] >= stopped_s
    assert trace.span
    reading = trace.reading([trace.span], Scope.ALL_NODES)
    assert reading.joules
    assert reading.joules <= 100 * (trace.span[1] - trace.span[0])
    assert read(PowerNow, power_now_path(tmp_path, 0)).power_w is not None
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
    assert load_trace(tmp_path, 1, 1).span


def test_the_node_is_the_one_that_slurm_numbers(tmp_path: Path) -> None:
    sampler = start(tmp_path, env={**os.environ, "SLURM_NODEID": "3"})
    wait_for(meter_path(tmp_path, 3).exists)
    assert end(sampler) == 0


def test_too_few_gpus_are_one_line_and_an_exit_code_of_their_own(tmp_path: Path) -> None:
    gpu = json.dumps({"kind": "cuda", "per_node": 2, "memory_gib": 32})
    words = [*command(tmp_path), "--gpu-type", gpu]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 78
    assert ended.stderr.startswith("sampler of node 0: CUDA_VISIBLE_DEVICES names 1 GPUs")


def test_folder_that_cannot_be_written_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    ended = subprocess.run(command(tmp_path / "missing"), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.startswith("sampler of node 0: ")
    assert "Traceback" not in ended.stderr


def test_folder_that_vanishes_ends_it(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    sampler = start(folder, stderr=subprocess.PIPE)
    wait_for(meter_path(folder, 0).exists)
    folder.rename(tmp_path / "gone")
    assert sampler.wait(timeout=60)
    assert sampler.stderr
    errors = sampler.stderr.read()
    assert sampler.returncode == 1
    assert b"No such file" in errors


def test_period_that_is_no_time_is_refused(tmp_path: Path) -> None:
    ended = subprocess.run(command(tmp_path, "--period-s", "0"), capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert "expected a time above 0" in ended.stderr


def test_it_starts_without_torch_and_numpy() -> None:
    code = (
        "import sys, shardwatt.power.sampler as s; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
