"""The DCGM session on the stand-in for dcgmi (tests/dcgm), over simulated GPUs below nvidia-ml-py."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

import simulated_dcgm
import simulated_nvml
from sampled_counter import counted_s, shares
from shardwatt.power.dcgm import names as dcgmnames
from shardwatt.power.dcgm.session import DcgmSession
from shardwatt.power.dcgm.text import DcgmError
from shardwatt.readings import DcgmDevice, Status
from shardwatt.sitepower import Dcgm

#: In NVML's order: W a GPU. The one in the middle is somebody else's.
POWER_W = (100, 999, 250)
TICK_S = 0.1
#: Longest time in s that anything is waited for.
PATIENCE_S = 600.0


def uuid(index: int) -> str:
    return f"GPU-00000000-0000-0000-0000-{index:012}"


@pytest.fixture
def node(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node with three GPUs whose DCGM counts from the last one down; returns its host engine's folder."""
    own = simulated_nvml.settings(library, POWER=";".join(map(str, POWER_W)))
    own |= simulated_dcgm.settings(tmp_path, ORDER="reversed")
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    # Each call of the stand-in starts an interpreter, which takes seconds on a busy machine.
    monkeypatch.setattr("shardwatt.power.dcgm.program._CLEAN_UP_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setenv(
        "PATH", os.pathsep.join([str(simulated_dcgm.install(tmp_path / "bin").parent), os.environ["PATH"]])
    )
    yield tmp_path
    simulated_dcgm.stop(tmp_path)


def session(*indices: int, timeout_s: float = PATIENCE_S, **site: object) -> DcgmSession:
    return DcgmSession(
        Dcgm.model_validate(site),
        [uuid(index) for index in indices],
        "job 7",
        horizon_s=60,
        timeout_s=timeout_s,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def sample_times_s(node: Path, dcgm_id: int, begin_s: float, end_s: float = math.inf) -> list[float]:
    return [t_s for t_s in simulated_dcgm.sample_times_s(node, dcgm_id) if begin_s <= t_s <= end_s]


def wait_for_samples(node: Path, dcgm_id: int, dcgm: DcgmSession, seconds: float) -> None:
    """Until the samples of a GPU that certainly lie in the job span so many s."""

    def span_s() -> float:
        times_s = sample_times_s(node, dcgm_id, dcgm.start_within_s[1])
        return times_s[-1] - times_s[0] if times_s else 0.0

    wait_for(lambda: span_s() > seconds)


def test_joules_of_the_jobs_own_gpus_are_analytic_to_an_interval(node: Path) -> None:
    with session(2, 0) as dcgm:
        dcgm.start()
        for gpu in (0, 2):
            wait_for_samples(node, gpu, dcgm, 1.5)
        dcgm.stop()
        devices = dcgm.read()
        sampled_s = [simulated_dcgm.sample_times_s(node, gpu) for gpu in (0, 2)]
    assert [device.uuid for device in devices] == [uuid(2), uuid(0)]
    assert dcgm.start_within_s[0] < dcgm.start_s < dcgm.start_within_s[1] < dcgm.stop_s
    called_s = sum(after - before for before, after in (dcgm.start_within_s, dcgm.stop_within_s))
    for device, power_w, times_s in zip(devices, (250, 100), sampled_s, strict=True):
        interval_s = longest_s(times_s)
        # Of the samples, those in mid-call may be the job's or not.
        certain_s, possible_s = (
            [t_s for t_s in times_s if dcgm.start_within_s[inner] <= t_s <= dcgm.stop_within_s[1 - inner]]
            for inner in (1, 0)
        )
        assert device.energy_j is not None
        lost_j = power_w * (dcgm.stop_s - dcgm.start_s) - device.energy_j
        slack_j = power_w * (TICK_S + called_s / 2)
        assert -slack_j <= lost_j <= 2 * power_w * interval_s + slack_j + 1
        least_s, most_s = certain_s[-1] - certain_s[0] - TICK_S, possible_s[-1] - possible_s[0] + TICK_S
        assert power_w * least_s - 1 <= device.energy_j <= power_w * most_s
        assert device.energy_j == int(device.energy_j)
        assert (device.power_mean_w, device.power_max_w) == (power_w, power_w)
        assert (device.sm_utilisation, device.memory_activity) == (0.75, 0.4)
        assert (device.sm_active, device.nvml_j, device.detail) == (None, None, None)


def longest_s(times_s: list[float]) -> float:
    """The longest time in s between two samples; a busy machine takes them late."""
    return max(later - sooner for sooner, later in pairwise(times_s))


def test_samples_lie_before_and_after_a_window_that_keeps_its_margins(node: Path) -> None:
    with session(2) as dcgm:
        dcgm.start()
        time.sleep(dcgm.margin_s)
        begin_s = time.monotonic()
        time.sleep(0.5)
        window_s = begin_s, time.monotonic()
        time.sleep(dcgm.margin_s)
        dcgm.stop()
        wait_for(lambda: bool(sample_times_s(node, 0, dcgm.stop_within_s[1])))
        late_s = max(0.0, longest_s(simulated_dcgm.sample_times_s(node, 0)) - 0.1)
        times_s = sample_times_s(node, 0, dcgm.start_within_s[0], dcgm.stop_within_s[1])
    assert dcgm.margin_s == pytest.approx(0.1)
    assert times_s[0] <= window_s[0] + late_s
    assert times_s[-1] >= window_s[1] - late_s
    assert session(0, interval_ms=30_000).margin_s == 1


def test_group_is_just_the_jobs_gpus_watched_as_asked_and_nothing_of_it_stays(node: Path) -> None:
    with DcgmSession(Dcgm(interval_ms=200), [uuid(2), uuid(0)], "job 7", horizon_s=9000) as dcgm:
        known = simulated_dcgm.memory(node)
        (group,) = known["groups"].values()
        assert group == {"name": dcgm.job, "gpus": [0, 2]}
        assert dcgm.job.startswith("shardwatt-job7-")
        assert len(dcgm.job) <= 63
        watches = {gpu: (watch["interval_ms"], watch["keep_s"]) for gpu, watch in known["watches"].items()}
        assert watches == {"0": (200, 9000), "2": (200, 9000)}
        dcgm.start()
        with pytest.raises(DcgmError, match="This Job Id is in use"):
            dcgm.start()
        assert list(simulated_dcgm.memory(node)["jobs"]) == [dcgm.job]
    known = simulated_dcgm.memory(node)
    assert (known["groups"], known["jobs"], dcgm.complaints) == ({}, {}, [])
    # What dcgmi cannot switch off is left at its own pace.
    assert {watch["interval_ms"] for watch in known["watches"].values()} == {30_000}


def test_an_error_in_mid_session_leaves_nothing_behind(node: Path) -> None:
    dcgm = session(0)

    def interrupted() -> None:
        with dcgm:
            dcgm.start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    known = simulated_dcgm.memory(node)
    assert (known["groups"], known["jobs"], dcgm.complaints) == ({}, {}, [])


def first_after(node: Path, t_s: float) -> float:
    wait_for(lambda: bool(sample_times_s(node, 2, t_s)))
    return sample_times_s(node, 2, t_s)[0]


@dataclass(frozen=True)
class Measured:
    """A window, what DCGM says of it, and the times in s of its samples in it.

    Attributes:
        is_told: whether no sample fell into a call that began or ended the window, so that it is in or out.
    """

    interval_s: float
    dcgm: DcgmSession
    device: DcgmDevice
    times_s: list[float]
    is_told: bool


def measure(node: Path, interval_s: float, start_after: float, window: float) -> Measured:
    """A window that starts so long after a sample, and lasts so long, in intervals."""
    with session(0, interval_ms=round(interval_s * 1000)) as dcgm:
        sample_s = first_after(node, time.monotonic() - interval_s)
        time.sleep(max(0.0, sample_s + start_after * interval_s - time.monotonic()))
        dcgm.start()
        time.sleep(window * interval_s)
        dcgm.stop()
        (device,) = dcgm.read()
        borders = (dcgm.start_within_s, dcgm.stop_within_s)
        is_told = not any(sample_times_s(node, 2, *border_s) for border_s in borders)
        times_s = sample_times_s(node, 2, dcgm.start_s, dcgm.stop_s)
        return Measured(interval_s, dcgm, device, times_s, is_told)


def measure_until(
    node: Path, interval_s: float, start_after: float, window: float, samples: int | None = None
) -> Measured:
    """Such a window with so many samples; on a busy machine, whose calls take long, of longer intervals."""
    while True:
        found = measure(node, interval_s, start_after, window)
        if found.is_told and samples in (None, len(found.times_s)):
            return found
        interval_s *= 2
        assert interval_s < 60, f"{len(found.times_s)} samples in the window, at times that are not certain"


def test_one_sample_in_the_window_is_0_j_and_becomes_null_with_what_it_would_be(node: Path) -> None:
    measured = measure_until(node, 1.0, 0.6, 0.5, samples=1)
    dcgm, device = measured.dcgm, measured.device
    assert (device.energy_j, device.power_mean_w) == (None, 100)
    assert device.detail
    found = re.fullmatch(
        r"0 J is no energy \(100 W on average over [\d.]+ s would be (\d+) J\): .* every (\d+) ms",
        device.detail,
    )
    assert found
    shortest_s = dcgm.stop_within_s[0] - dcgm.start_within_s[1]
    longest_s = dcgm.stop_within_s[1] - dcgm.start_within_s[0]
    assert 100 * shortest_s - 2 <= int(found[1]) <= 100 * longest_s + 1
    assert int(found[2]) == 1000 * measured.interval_s


def test_no_sample_in_the_window_is_null_in_dcgms_words(node: Path) -> None:
    device = measure_until(node, 3.0, 0.1, 0.1, samples=0).device
    assert (device.energy_j, device.power_mean_w) == (None, None)
    assert device.detail == "Energy Consumed: Not Specified"


def test_long_intervals_lose_the_energy_that_the_simulation_says(node: Path) -> None:
    measured = measure_until(node, 1.0, 0.4, 2.5)
    interval_s, times_s = measured.interval_s, measured.times_s
    window_s = measured.dcgm.stop_s - measured.dcgm.start_s
    assert measured.device.energy_j is not None
    share = measured.device.energy_j / (100 * window_s)
    phases_s = [interval_s * tenth / 10 for tenth in range(10)]
    possible = {(counted_s(window_s, interval_s, phase_s) or 0) / window_s for phase_s in phases_s}
    assert max(possible) < 1
    # A busy machine takes samples late.
    late_s = abs(times_s[-1] - times_s[0] - interval_s * (len(times_s) - 1))
    assert min(abs(share - one) for one in possible) <= (TICK_S + late_s + 0.01) / window_s


def test_samples_older_than_the_horizon_are_forgotten_with_their_energy(node: Path) -> None:
    def dcgmi(*words: str) -> str:
        return subprocess.run(["dcgmi", *words], capture_output=True, text=True, check=True).stdout

    dcgmi("group", "-c", "mine", "-a", "2")
    dcgmi("stats", "-g", "2", "-e", "-u", "100", "-m", "1")
    dcgmi("stats", "-g", "2", "-s", "mine")
    begin_s = time.monotonic()
    wait_for(lambda: bool(sample_times_s(node, 2, begin_s + 3)))
    stop_s = time.monotonic()
    dcgmi("stats", "-x", "mine")
    joules = next(line for line in dcgmi("stats", "-v", "-j", "mine").splitlines() if "Energy" in line)
    took_s = time.monotonic() - stop_s
    told = joules.split("|")[2].strip()
    # 300 J, of which the last second is left; or nothing, where it takes as long to ask.
    assert took_s > 0.8 if told == "Not Specified" else int(told) <= 100 * (1 + TICK_S)


@pytest.mark.parametrize(
    ("window_s", "interval_s", "mean", "nothing"),
    [
        (600, 30, 0.95, 0),
        (600, 0.1, 1 - 0.1 / 600, 0),
        (45, 30, 1 / 3, 0.5),
        (30.01, 30, 0.00033, 0.9997),
        (10, 30, 0, 1),
        (60, 30, 0.5, 0),
    ],
)
def test_shares_follow_their_closed_form(
    window_s: float, interval_s: float, mean: float, nothing: float
) -> None:
    """On average 1 - interval / window; nothing in 2 - window / interval of the windows between 1 and 2."""
    found = shares(window_s, interval_s)
    assert found.mean == pytest.approx(max(0.0, 1 - interval_s / window_s), abs=2e-4)
    assert found.mean == pytest.approx(mean, abs=2e-4)
    assert found.nothing == pytest.approx(nothing, abs=2e-4)
    assert 0 <= found.low <= found.median <= found.high < 1


def test_profiling_fields_are_averaged_between_start_and_stop(node: Path) -> None:
    idle, busy = "0:0:0", "0.8:0.4:0.3;0.1:0.1:0.1;0.6:0:0.25"
    simulated_dcgm.set_activity(node, idle)
    with session(0, 2, profiling=True) as dcgm:
        wait_for_lines(node, idle)
        simulated_dcgm.set_activity(node, busy)
        wait_for_lines(node, busy)
        dcgm.start()
        wait_for_lines(node, busy)
        dcgm.stop()
        simulated_dcgm.set_activity(node, idle)
        wait_for_lines(node, idle)
        first, second = dcgm.read()
    assert (first.sm_active, first.tensor_active, first.dram_active) == pytest.approx((0.8, 0.4, 0.3))
    assert (second.sm_active, second.tensor_active, second.dram_active) == pytest.approx((0.6, 0, 0.25))
    assert (first.detail, second.detail) == (None, None)
    assert streams() == []


def wait_for_lines(node: Path, activity: str) -> None:
    """Until the stream has printed three more sets of lines, all with these values."""
    before = len(simulated_dcgm.streamed(node) or [])

    def is_streamed() -> bool:
        lines = (simulated_dcgm.streamed(node) or [])[before:]
        return len(lines) > 3 and set(lines[-3:]) == {activity}

    wait_for(is_streamed)


def streams() -> list[int]:
    """Processes that stream fields from this test's host engine."""
    return calls("dmon")


def calls(command: str) -> list[int]:
    """Processes of this test that are such a call of dcgmi."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_text().split("\0")
            environment = (path.parent / "environ").read_text(errors="replace")
        except OSError:
            continue
        if words[2:4] == ["dcgm", command] and os.environ["SIMULATED_DCGM_STATE"] in environment:
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "no_profiling",
            "no profiling fields from dcgmi dmon: .*Result: -33: This request is serviced by a module",
        ),
        ("profiling_ends", "it ended by itself with exit code 219; .*third-party Profiling module"),
    ],
)
def test_joules_outlive_the_profiling_fields(node: Path, fault: str, words: str) -> None:
    simulated_dcgm.set_faults(node, fault)
    with session(0, profiling=True) as dcgm:
        dcgm.start()
        wait_for_samples(node, 2, dcgm, 1.2)
        wait_for(lambda: simulated_dcgm.streamed(node) is not None and streams() == [])
        dcgm.stop()
        (device,) = dcgm.read()
    assert device.energy_j is not None
    assert device.energy_j > 100
    assert (device.sm_active, device.tensor_active, device.dram_active) == (None, None, None)
    assert device.detail
    assert re.search(words, device.detail)
    assert dcgm.complaints == []


def test_sliced_gpus_have_no_joules_and_no_fields(node: Path) -> None:
    simulated_dcgm.set_faults(node, "mig")
    with session(0, profiling=True) as dcgm:
        dcgm.start()
        wait_for(lambda: len(simulated_dcgm.streamed(node) or []) > 2)
        dcgm.stop()
        (device,) = dcgm.read()
    assert (device.energy_j, device.power_mean_w, device.sm_active) == (None, None, None)
    assert device.detail
    assert device.detail.startswith("Energy Consumed: Not Specified; no profiling fields from dcgmi dmon: ")
    assert "is of a slice of a GPU (MIG)" in device.detail


def test_gpus_are_found_though_switches_cannot_be_listed(node: Path) -> None:
    simulated_dcgm.set_faults(node, "no_switches")
    with session(0):
        assert [group["gpus"] for group in simulated_dcgm.memory(node)["groups"].values()] == [[2]]


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("no_engine", Status.UNAVAILABLE, "unable to establish a connection to the specified host"),
        ("non_root", Status.PERMISSION_DENIED, "stats -g 2 -e .*: .*Host engine is running as non-root"),
        (
            "forgets",
            Status.UNAVAILABLE,
            "The Group is not found.; without a host engine .* forgets everything",
        ),
        ("no_group", Status.UNAVAILABLE, "Unable to perform add of GPU 0 into group 2"),
        (
            "hang:discovery",
            Status.UNAVAILABLE,
            "dcgmi discovery -l: no answer within 0.5 s; does its host engine",
        ),
    ],
)
def test_what_cannot_be_begun_is_told_and_leaves_nothing(
    node: Path, fault: str, status: Status, words: str
) -> None:
    simulated_dcgm.set_faults(node, fault)
    timeout_s = 0.5 if fault.startswith("hang") else PATIENCE_S
    with pytest.raises(DcgmError, match=words) as refused, session(2, timeout_s=timeout_s):
        pass
    assert refused.value.status is status
    assert refused.value.message.startswith(f"{os.uname().nodename}: ")
    if fault in ("non_root", "no_group"):
        assert simulated_dcgm.memory(node)["groups"] == {}


@pytest.mark.parametrize(
    ("uuids", "command", "status", "words"),
    [
        ([uuid(7)], "dcgmi", Status.UNAVAILABLE, "000000000007 not among the 3 GPUs that DCGM knows: gpu-"),
        (["MIG-8a7c"], "dcgmi", Status.UNSUPPORTED, r"whole GPUs \(GPU-…\) only; found 'MIG-8a7c'"),
        ([uuid(0)], "dcgmi-of-nowhere", Status.UNAVAILABLE, "no program 'dcgmi-of-nowhere'; install DCGM"),
        ([uuid(0)], "/proc/self/stat", Status.UNAVAILABLE, "/proc/self/stat: Permission denied"),
    ],
)
def test_what_is_not_there_is_named(
    node: Path, uuids: list[str], command: str, status: Status, words: str
) -> None:
    with (
        pytest.raises(DcgmError, match=words) as refused,
        DcgmSession(Dcgm(command=command), uuids, "7", horizon_s=60),
    ):
        pass
    assert refused.value.status is status


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("summary", "'Summary' of all GPUs; expected a block for each"),
        ("other_layout", "no statistics: 0,123"),
    ],
)
def test_statistics_of_another_layout_are_refused(node: Path, fault: str, words: str) -> None:
    with session(0) as dcgm:
        dcgm.start()
        dcgm.stop()
        simulated_dcgm.set_faults(node, fault)
        with pytest.raises(DcgmError, match=words):
            dcgm.read()


def test_a_hanging_dcgmi_is_left_after_its_time_and_asked_no_more(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with session(0) as dcgm:
        dcgm.start()
        simulated_dcgm.set_faults(node, "hang:stats", "hang:group")
        # Now only: what comes before it answers when the machine lets it.
        monkeypatch.setattr(dcgm._dcgmi, "_timeout_s", 1.0)
        with pytest.raises(DcgmError, match=r"stats -x .*: no answer within 1 s"):
            dcgm.stop()
    assert len(dcgm.complaints) == 4
    assert all(complaint.startswith("not run, since dcgmi hangs: ") for complaint in dcgm.complaints)
    simulated_dcgm.set_faults(node)
    # The next session of this process takes away what that one could not.
    with session(0) as after:
        known = simulated_dcgm.memory(node)
        assert [group["name"] for group in known["groups"].values()] == [after.job]
        assert known["jobs"] == {}


HOLD = """
import sys, time
from shardwatt.power.dcgm.session import DcgmSession
from shardwatt.sitepower import Dcgm
with DcgmSession(Dcgm(profiling=True), [sys.argv[1]], "held", horizon_s=60) as session:
    session.start()
    print(session.job, flush=True)
    time.sleep(600)
"""


def hold(index: int) -> tuple[subprocess.Popen[str], str]:
    """A process that holds a session on a GPU, and the session's name."""
    holder = subprocess.Popen([sys.executable, "-c", HOLD, uuid(index)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    return holder, holder.stdout.readline().strip()


def test_what_a_killed_process_left_behind_is_removed_and_nobody_elses(node: Path) -> None:
    killed, dead_name = hold(0)
    alive, living_name = hold(1)
    try:
        assert dead_name
        assert living_name
        subprocess.run(["dcgmi", "group", "-c", "somebody's own", "-a", "0"], check=True, capture_output=True)
        killed.kill()  # not waited for yet: it stays in the list of processes
        wait_for(lambda: dcgmnames.is_left_behind(dead_name))
        with session(0) as dcgm:
            known = simulated_dcgm.memory(node)
            names = {group["name"] for group in known["groups"].values()}
            assert names == {living_name, "somebody's own", dcgm.job}
            assert list(known["jobs"]) == [living_name]
            assert dcgm.complaints == []
    finally:
        for holder in (killed, alive):
            holder.kill()
            holder.communicate()
    # Its stream ended with it: nobody reads what it prints.
    wait_for(lambda: streams() == [])


def test_only_a_name_whose_process_is_gone_for_certain_is_taken_for_dead() -> None:
    own = dcgmnames.take("12.batch/1")
    assert own.startswith("shardwatt-12batch1-")
    assert not dcgmnames.is_left_behind(own)
    first, label, space, pid, start, number = own.split("-")
    assert (first, label, int(pid)) == ("shardwatt", "12batch1", os.getpid())

    def name(space: str = space, pid: str = pid, start: str = start) -> str:
        return "-".join([first, label, space, pid, start, number])

    assert not dcgmnames.is_left_behind(name(space="17"))  # a container's
    assert dcgmnames.is_left_behind(name(start="1"))  # the number was given out again
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert dcgmnames.is_left_behind(name(pid=str(ended.pid)))
    for foreign in ("", "DCGM_ALL_SUPPORTED_GPUS", "shardwatt", f"x{own}", f"{own}-1"):
        assert not dcgmnames.is_left_behind(foreign)
    dcgmnames.give_back(own)
    assert dcgmnames.is_left_behind(own)


def test_a_signal_for_the_terminal_does_not_reach_dcgmi(node: Path) -> None:
    with session(0, profiling=True):
        wait_for(lambda: bool(streams()))
        assert {os.getsid(pid) for pid in streams()}.isdisjoint({os.getsid(0)})
    simulated_dcgm.set_faults(node, "hang:discovery")
    refusals: list[DcgmError] = []

    def enter() -> None:
        try:
            session(0, timeout_s=10).__enter__()
        except DcgmError as refusal:
            refusals.append(refusal)

    entering = threading.Thread(target=enter)
    entering.start()
    sessions: set[int] = set()

    def is_seen() -> bool:
        sessions.update(map(os.getsid, calls("discovery")))
        return bool(sessions) or not entering.is_alive()

    wait_for(is_seen)
    entering.join()
    assert len(sessions) == 1
    assert sessions.isdisjoint({os.getsid(0)})
    assert len(refusals) == 1
    assert calls("discovery") == []
