"""Guards the way from real to planned time: joules by as much as seconds, power and the rest unchanged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shardwatt.cellfiles import Column
from shardwatt.readings import Energy, Mean, Part, Violation
from shardwatt.records import Record
from shardwatt.run.exchange import BatchRun, PhaseTime, RunReport
from shardwatt.run.stretch import Stretch
from synthetic_cells import Numbers, make_cell, write_ok

#: A window of 50 real s that stands for 500.
STRETCH = Stretch(lapse=10.0, window_s=50.0)
PHASES = ("prefill", "walk", "decode", "between")


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return write_ok(tmp_path, make_cell(shards=2), Numbers(idle_unloaded_w=40.0, idle_loaded_w=60.0))


def energy_of(record: Record) -> Energy:
    assert record.energy is not None
    return record.energy


def joules_of(energy: Energy, name: str) -> float:
    joules = getattr(energy, name).joules
    assert joules is not None
    return float(joules)


def test_the_window_lasts_as_planned_and_the_rest_of_the_job_as_it_did(record: Record) -> None:
    before = record.timings
    assert before is not None
    after = STRETCH.timings(before)
    assert after.duration_s == pytest.approx(10 * before.duration_s)
    for phase in PHASES:
        assert getattr(after, f"{phase}_s") == pytest.approx(10 * getattr(before, f"{phase}_s"))
    assert after.job_duration_s - after.duration_s == pytest.approx(before.job_duration_s - before.duration_s)
    kept = ("started_at", "ended_at", "rendezvous_s", "load_s", "warmup_s")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]


def test_joules_are_stretched_like_seconds(record: Record) -> None:
    before = energy_of(record)
    after = STRETCH.energy(before)
    for name in ("window", "window_rank0_scaled", *PHASES):
        assert joules_of(after, name) == pytest.approx(10 * joules_of(before, name)), name
    gained_j = joules_of(after, "window") - joules_of(before, "window")
    assert joules_of(after, "job") == pytest.approx(joules_of(before, "job") + gained_j)
    assert after.scope_ratio == before.scope_ratio
    # What is net of idle power: the power stays.
    idle = after.idle_loaded
    assert idle.power_w == before.idle_loaded.power_w
    assert idle.net_j is not None
    assert before.idle_loaded.net_j is not None
    assert idle.net_j == pytest.approx(10 * before.idle_loaded.net_j)
    devices_j = [device.window.joules for device in after.devices]
    assert sum(filter(None, devices_j)) == pytest.approx(joules_of(after, "window"))
    # Still what a record accepts.
    Record.model_validate_json(record.model_copy(update={"energy": after}).model_dump_json())


def test_a_devices_job_gains_what_its_window_does(record: Record) -> None:
    before = energy_of(record)
    for old, new in zip(before.devices, STRETCH.energy(before).devices, strict=True):
        assert old.window.joules is not None
        assert new.window.joules is not None
        assert old.job.joules is not None
        assert new.job.joules == pytest.approx(old.job.joules + new.window.joules - old.window.joules)


def test_unknown_joules_stay_unknown(record: Record) -> None:
    before = energy_of(record)
    unknown = Part(joules=None, detail="too short")
    device = before.devices[0].model_copy(update={"walk": unknown, "integral_j": None})
    after = STRETCH.energy(before.model_copy(update={"devices": [device]})).devices[0]
    assert (after.walk, after.integral_j) == (unknown, None)


def test_a_real_window_that_is_short_is_no_fault_of_a_planned_one(record: Record) -> None:
    found = [Violation(code=code, message="found") for code in ("short_window", "gap")]
    before = energy_of(record).model_copy(update={"violations": found})
    assert [one.code for one in STRETCH.energy(before).violations] == ["gap"]


def test_devices_that_computed_nothing_say_nothing_of_how_busy_they_were(record: Record) -> None:
    assert record.utilisation is not None
    after = STRETCH.utilisation(record.utilisation)
    nothing = Mean(mean=None, max=None)
    assert {after.sm_utilisation.mean, after.memory_activity.mean, after.memory_filled.mean} == {None}
    assert after.cpu_utilisation == nothing
    planned = {"sm_utilisation": Mean(mean=0.9, max=1.0)}
    told = Stretch(10.0, 50.0, planned).utilisation(record.utilisation)
    assert (told.sm_utilisation, told.memory_activity) == (planned["sm_utilisation"], nothing)
    assert after.temperature_c == record.utilisation.temperature_c


def test_batches_are_stretched_from_the_windows_begin() -> None:
    phase = PhaseTime(name="decode", start_s=102.0, stop_s=104.0, steps=3, tokens=6, attended=30)
    run = BatchRun(
        start_s=101.0, stop_s=105.0, phases=[phase], tokens=[[1]], finish=["eos"], generated_tokens=3
    )
    report = RunReport(
        window_start_s=100.0,
        window_stop_s=150.0,
        rendezvous_s=1.0,
        load_s=2.0,
        warmup_s=0.0,
        idle_loaded=(90.0, 95.0),
        batches=[run],
        versions={},
        engine_notes={},
    )
    after = STRETCH.report(report)
    assert (after.window_start_s, after.window_stop_s, after.idle_loaded) == (100.0, 600.0, (90.0, 95.0))
    (moved,) = after.batches
    assert (moved.start_s, moved.stop_s) == (110.0, 150.0)
    assert (moved.phases[0].start_s, moved.phases[0].stop_s, moved.phases[0].steps) == (120.0, 140.0, 3)
    rows = STRETCH.batches([{"batch": 0, "start_s": 1.0, "stop_s": 5.0, "energy_j": None, "walk_j": 2.0}])
    assert rows == [{"batch": 0, "start_s": 10.0, "stop_s": 50.0, "energy_j": None, "walk_j": 20.0}]


def test_samples_of_the_window_are_stretched_and_power_stays_the_counters_rise() -> None:
    """100 W before, 300 W in the window of 50 s, 80 W after it."""
    times_s = np.arange(-20.0, 70.5, 0.5)
    power_w = np.select([times_s < 0, times_s < 50], [100.0, 300.0], 80.0)
    counter_j = 5e5 + np.concatenate([[0.0], np.cumsum(power_w[:-1] * np.diff(times_s))])
    full = np.full(len(times_s), 0.75)
    part: dict[str, Column] = {
        "t_s": times_s,
        "power_w": power_w,
        "counter_j": counter_j,
        "sm_utilisation": full,
        "temperature_c": 50 + full,
        "node": "host0",
    }
    (after,) = STRETCH.samples([part])
    stretched_s, stretched_j = after["t_s"], after["counter_j"]
    assert isinstance(stretched_s, np.ndarray)
    assert isinstance(stretched_j, np.ndarray)
    assert stretched_s[times_s <= 0] == pytest.approx(times_s[times_s <= 0])
    assert stretched_s[-1] == pytest.approx(500 + 20)
    assert np.diff(stretched_j) / np.diff(stretched_s) == pytest.approx(power_w[:-1])
    assert (after["power_w"] == power_w).all()  # type: ignore[union-attr]
    assert np.isnan(after["sm_utilisation"]).all()  # type: ignore[arg-type]
    assert after["node"] == "host0"
    unknown = np.full(len(times_s), np.nan)
    (after,) = STRETCH.samples([{**part, "counter_j": unknown}])
    assert np.isnan(after["counter_j"]).all()  # type: ignore[arg-type]
