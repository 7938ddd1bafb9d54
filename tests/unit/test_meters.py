"""`shardwatt meters` on simulated GPUs, made-up power domains, a stand-in for DCGM, and bare machines."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import simulated_dcgm
import simulated_nvml
from powercap import add_domain, set_energy
from shardwatt.checks.idle import CounterSteps, DeviceSamples, read_idle
from shardwatt.power.protocol import Sample
from small_project import site_content

UUIDS = [f"GPU-00000000-0000-0000-0000-{number:012d}" for number in range(4)]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine with nothing: no driver, no power domains, no Slurm, no DCGM, no site."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "libnvidia-ml.so.1").write_text("no library")
    without = ("SLURM_", "SHARDWATT_", "CUDA_", "SIMULATED_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return kept | {
        "PATH": str(tmp_path / "none"),
        "LD_LIBRARY_PATH": str(tmp_path / "none"),
        "SHARDWATT_POWERCAP": str(tmp_path / "none"),
    }


def run(
    environment: dict[str, str], *words: str, cwd: Path = Path("/"), seconds: float = 1
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shardwatt", "meters", "--seconds", str(seconds), *words]
    return subprocess.run(
        command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )


def look(environment: dict[str, str], *words: str, seconds: float = 1) -> dict[str, Any]:
    """What it finds; for longer where a busy machine kept it from looking, and ticks of 0.1 s were missed."""
    while True:
        done = run(environment, "--json", *words, seconds=seconds)
        found: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (0 if any(map(measures, found["rows"])) else 1), done.stderr
        if found["sampling"]["max_gap_s"] < 0.2 or seconds > 8:
            return found
        seconds *= 3


def measures(row: dict[str, Any]) -> bool:
    return row["status"] in ("measured", "derived")


def rows(found: dict[str, Any], meter: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["meter"] == meter]


def steps_of(looks: Sequence[tuple[float, float]]) -> CounterSteps:
    steps = CounterSteps()
    for t_s, counter_j in looks:
        steps.add(t_s, counter_j)
    return steps


def ticking(power_w: float, tick_ms: int, look_ms: int, length_ms: int) -> list[tuple[float, float]]:
    """Looks at a counter that steps every tick."""
    times_ms = range(look_ms, length_ms + 1, look_ms)
    return [(t_ms / 1000, power_w * tick_ms / 1000 * (t_ms // tick_ms)) for t_ms in times_ms]


def samples_of(power_w: float, length_s: float) -> DeviceSamples:
    return DeviceSamples(
        [Sample(t_s=number / 10, device=0, power_w=power_w) for number in range(int(length_s * 10) + 1)]
    )


def test_steps_of_a_counter_give_its_tick_its_step_and_its_power() -> None:
    steps = steps_of(ticking(60.0, 100, 5, 5000))
    assert steps.tick_s == pytest.approx(0.1)
    assert steps.step_j == pytest.approx(6.0)
    assert steps.is_slower_than_looks
    assert steps.spread.mean_w == pytest.approx(60.0)
    assert steps.spread.sd_w == pytest.approx(0.0, abs=1e-6)
    assert steps.over_integral(samples_of(60.0, 5.0)) == pytest.approx(1.0)
    assert steps.over_integral(samples_of(50.0, 5.0)) == pytest.approx(1.2)


def test_a_counter_faster_than_it_is_looked_at_is_told_from_one_with_a_tick() -> None:
    steps = steps_of(ticking(60.0, 1, 5, 5000))
    assert not steps.is_slower_than_looks
    assert steps.spread.mean_w == pytest.approx(60.0)


def test_a_step_that_was_seen_late_spoils_neither_power_nor_ratio() -> None:
    looks = [look for look in ticking(60.0, 100, 5, 5000) if not 4.501 < look[0] < 4.98]
    steps = steps_of(looks[:-3])
    assert steps.spread.mean_w == pytest.approx(60.0)
    assert steps.over_integral(samples_of(60.0, 5.0)) == pytest.approx(1.0)


@pytest.mark.parametrize("values", [[5.0, 5.0, 5.0, 5.0], [5.0, 6.0, 4.0, 8.0], [5.0]])
def test_a_counter_that_stands_or_falls_has_no_power_and_never_zero(values: list[float]) -> None:
    steps = steps_of([(number * 0.005, value) for number, value in enumerate(values)])
    assert (steps.spread.mean_w, steps.spread.sd_w) == (None, None)
    assert steps.over_integral(samples_of(60.0, 5.0)) is None
    assert steps.ran_backwards == (4.0 in values)
    assert steps.moved == (len(set(values)) > 1)


def test_a_busy_machine_that_takes_all_the_time_for_the_first_look_gets_a_second_sample() -> None:
    """Of one alone there is no period, and no power of an estimate."""

    def look_at_leisure() -> list[Sample]:
        time.sleep(0.2)
        return [Sample(t_s=time.monotonic(), device=0, counter_j=1.0)]

    found = read_idle(
        {"power": lambda: [Sample(t_s=time.monotonic(), device=0, power_w=60.0)]},
        {"counter": look_at_leisure},
        seconds=0.1,
        period_s=0.1,
    )
    assert len(found.samples["power", 0].samples) == 2


def test_every_gpu_is_read_with_its_counter_its_power_and_its_limits(
    library: Path, bare: dict[str, str]
) -> None:
    limits = "100:400:350"
    environment = bare | simulated_nvml.settings(library, POWER="60;120", LIMITS=limits)
    found = look(environment, seconds=2.5)
    for row, power_w in zip(rows(found, "NVML energy counter"), (60, 120), strict=True):
        assert row["status"] == "measured"
        assert row["step_j"] == pytest.approx(power_w * 0.1, rel=0.01)
        assert row["tick_s"] > 0.05
        assert row["power_w"] > 0
    powers = rows(found, "NVML power")
    assert [(row["status"], row["power_w"]) for row in powers] == [("derived", 60), ("derived", 120)]
    assert "field 186" in powers[0]["detail"]
    assert [gpu["device"]["uuid"] for gpu in found["gpus"]] == UUIDS[:2]
    for gpu in found["gpus"]:
        assert gpu["counter_over_integral"] is not None
        assert (gpu["limit_least_w"], gpu["limit_most_w"], gpu["limit_default_w"]) == (100, 400, 350)
        assert gpu["limit_set_w"] == gpu["limit_enforced_w"] == 350
    assert found["setting_limits"] == "not tried"
    assert found["sampling"]["samples"] > 5
    assert (found["cell_method"], found["cell_status"]) == ("nvml_counter", "measured")


def test_a_sensor_that_sleeps_part_of_the_time_is_found_out(library: Path, bare: dict[str, str]) -> None:
    environment = bare | simulated_nvml.settings(
        library, POWER="pulse:50:250:0.1:0.25", SENSOR="0.025:0.1", FAULTS="0:no_instant"
    )
    found = look(environment, seconds=2)
    assert "power usage" in rows(found, "NVML power")[0]["detail"]
    # 100 W on average; the sensor sees the 250 W alone.
    assert found["gpus"][0]["counter_over_integral"] < 0.8
    assert any("below the integral of its sampled power" in text for text in found["warnings"])


def test_what_does_not_work_says_why_for_each_gpu(library: Path, bare: dict[str, str]) -> None:
    faults = "0:still;1:no_counter;2:mig;3:counter_denied;3:no_power;3:no_limit"
    environment = bare | simulated_nvml.settings(library, POWER="60;60;60;60", FAULTS=faults)
    found = look(environment)
    (sliced,) = rows(found, "NVML")
    assert (sliced["status"], "MIG mode" in sliced["detail"]) == ("unsupported", True)
    still, missing, denied = rows(found, "NVML energy counter")
    assert (still["status"], still["power_w"]) == ("unavailable", None)
    assert "stood still" in still["detail"]
    assert missing["status"] == "unsupported"
    assert denied["status"] == "permission_denied"
    assert [row["status"] for row in rows(found, "NVML power")] == ["derived", "derived", "unsupported"]
    assert found["gpus"][2]["limit_set_w"] is None
    assert "Not Supported" in found["gpus"][2]["limit_detail"]
    assert found["cell_status"] == "unsupported"


def test_a_counter_that_stands_still_makes_a_cell_unmeasured(library: Path, bare: dict[str, str]) -> None:
    found = look(bare | simulated_nvml.settings(library, POWER="60;60", FAULTS="1:still"))
    assert (found["cell_method"], found["cell_status"]) == (None, "unavailable")
    assert "stood still" in found["cell_detail"]


@pytest.mark.parametrize(("visible", "expected"), [(UUIDS[2], UUIDS[2:3]), ("2,0", [UUIDS[2], UUIDS[0]])])
def test_only_visible_gpus_are_read(
    library: Path, bare: dict[str, str], visible: str, expected: list[str]
) -> None:
    environment = (
        bare | simulated_nvml.settings(library, POWER="60;60;60") | {"CUDA_VISIBLE_DEVICES": visible}
    )
    assert [gpu["device"]["uuid"] for gpu in look(environment)["gpus"]] == expected


@pytest.fixture
def moving(tmp_path: Path) -> Iterator[Path]:
    """A folder of power domains with a package of two sockets, 100 W together, while the test runs."""
    root = tmp_path / "powercap"
    folders = [add_domain(root, f"intel-rapl:{socket}", f"package-{socket}") for socket in (0, 1)]
    stopped = threading.Event()

    def move() -> None:
        begin_s = time.monotonic()
        while not stopped.wait(0.01):
            for folder in folders:
                set_energy(folder, 50 * (time.monotonic() - begin_s))

    mover = threading.Thread(target=move)
    mover.start()
    yield root
    stopped.set()
    mover.join()


def test_processors_are_measured_by_rapl_where_it_can_be_read(bare: dict[str, str], moving: Path) -> None:
    found = look(bare | {"SHARDWATT_POWERCAP": str(moving)}, seconds=2)
    (package,) = rows(found, "RAPL package")
    assert package["status"] == "measured"
    assert package["power_w"] > 0
    assert package["detail"].startswith("RAPL package x 2 (")
    (dram,) = rows(found, "RAPL dram")
    assert (dram["status"], dram["power_w"]) == ("unavailable", None)
    assert "not counted by these processors" in dram["detail"]
    assert (found["cell_method"], found["cell_status"]) == ("rapl", "measured")


def test_a_bare_machine_ends_with_reasons_and_exit_code_1(bare: dict[str, str]) -> None:
    done = run(bare)
    assert done.returncode == 1
    assert "nothing here can be measured" in done.stderr
    for words in (
        "NVML Shared Library Not Found",
        "no package in",
        "no program 'dcgmi'",
        "no Slurm here",
        "no estimate: the site gives no tdp_w",
    ):
        assert words in done.stdout
    assert "0.00 W" not in done.stdout
    assert "\x1b" not in done.stdout


def test_an_estimate_alone_is_no_measurement(bare: dict[str, str], tmp_path: Path) -> None:
    content = site_content(tmp_path)
    name = "processors"
    kind = {"kind": "cpu", "per_node": 1, "memory_gib": 4, "tdp_w": 65, "tdp_source": "data sheet"}
    content["gpus"] = {name: kind}
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump(content))
    found = look(bare, "--site", str(site), "--gpu", name)
    (estimate,) = rows(found, "processor estimate")
    assert estimate["status"] == "estimated"
    assert 0 <= estimate["power_w"] <= 65
    assert found["cell_status"] == "estimated"
    wrong = run(bare, "--site", str(site), "--gpu", f"{name[:-1]}")
    assert wrong.returncode == 1
    assert f"did you mean '{name}'?" in wrong.stderr
    without = run(bare, "--gpu", name)
    assert "pass --site FILE" in without.stderr


def test_dcgm_answers_where_its_host_engine_knows_the_gpus(
    library: Path, bare: dict[str, str], tmp_path: Path
) -> None:
    program = simulated_dcgm.install(tmp_path / "bin")
    gpus = simulated_nvml.settings(library, POWER="60;60")
    state = tmp_path / "dcgm"
    environment = bare | gpus | simulated_dcgm.settings(state) | {"PATH": f"{program.parent}:/usr/bin:/bin"}
    (row,) = rows(look(environment), "DCGM")
    assert (row["status"], row["detail"]) == (None, "its host engine knows 2 GPUs")
    simulated_dcgm.set_faults(state, "no_engine")
    (row,) = rows(look(environment), "DCGM")
    assert row["status"] == "unavailable"
    assert "unable to establish a connection" in row["detail"].lower()


def test_torch_is_never_loaded(bare: dict[str, str]) -> None:
    program = (
        "import sys\nfrom shardwatt.cli import main\nsys.argv[1:] = ['meters', '--seconds', '1']\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'pandas' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=bare, cwd="/", capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "False False"


def on_terminal(environment: dict[str, str], columns: int) -> str:
    """What the command writes to a terminal of so many columns."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    command = [sys.executable, "-m", "shardwatt", "meters", "--seconds", "1"]
    process = subprocess.Popen(command, env=environment, cwd="/", stdout=child, stderr=subprocess.DEVNULL)
    os.close(child)
    shown = b""
    try:
        while part := os.read(parent, 65536):
            shown += part
    except OSError:  # Linux's end of a terminal
        pass
    os.close(parent)
    process.wait(timeout=600)
    return shown.decode()


def test_reasons_fit_the_terminal_and_are_coloured_there(bare: dict[str, str]) -> None:
    shown = on_terminal({key: value for key, value in bare.items() if key != "COLUMNS"}, 90)
    assert "\x1b[31munavailable" in shown
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= 90
    assert "virtual machines" in plain
