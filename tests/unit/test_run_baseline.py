"""Guards the waits before the ranks start: for cool devices, and for idle ones."""

from __future__ import annotations

import time

import pytest

from shardwatt.run.baseline import baseline_times, cool_down, left_alone
from shardwatt.study import Constants


class Cooling:
    """A device that cools by a degree at each look."""

    def __init__(self, from_c: float | None) -> None:
        self.now_c = from_c

    def __call__(self) -> float | None:
        if self.now_c is not None:
            self.now_c -= 1
        return self.now_c


def test_a_cell_waits_until_the_hottest_device_is_at_the_gate() -> None:
    looks: list[None] = []
    done = cool_down(45, 60, Cooling(48), lambda: looks.append(None))
    assert (done.reached, done.hottest_c) == (True, 45)
    assert len(looks) == 3


def test_a_cool_device_is_not_waited_for() -> None:
    looks: list[None] = []
    assert cool_down(45, 60, lambda: 30.0, lambda: looks.append(None)).reached
    assert len(looks) == 1


def test_a_device_that_stays_warm_holds_nobody_up_for_ever_and_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = cool_down(45, 0.3, lambda: 80.0, lambda: None)
    assert (done.reached, done.hottest_c) == (False, 80)
    assert done.waited_s >= 0.3
    assert "not cooled to 45 C: 80 C after" in caplog.text


def test_without_a_thermometer_the_wait_is_short_and_nothing_is_claimed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    done = cool_down(45, 600, lambda: None, lambda: None)
    assert (done.reached, done.hottest_c) == (False, None)
    assert 5 <= done.waited_s < 300
    assert "no meter tells it" in caplog.text


def test_a_thermometer_that_fails_once_does_not_open_the_gate() -> None:
    told = iter([80.0, None, 79.0, None, 45.0])
    done = cool_down(45, 60, lambda: next(told), lambda: None)
    assert (done.reached, done.hottest_c) == (True, 45)


@pytest.mark.parametrize(
    "wait", [lambda look: cool_down(1, 60, lambda: 80.0, look), lambda look: left_alone(60, 1, look)]
)
def test_what_ends_the_cell_ends_the_wait(wait: object) -> None:
    def look() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait(look)  # type: ignore[operator]


def test_idle_is_read_after_the_devices_have_settled() -> None:
    began_s = time.monotonic()
    start_s, stop_s = left_alone(0.3, 0.2, lambda: None)
    assert start_s >= began_s + 0.3
    assert stop_s - start_s == pytest.approx(0.2)
    assert time.monotonic() >= stop_s


def test_a_study_can_go_without_baselines() -> None:
    assert baseline_times(Constants(prompts=1)) == (30, 10)
    assert baseline_times(Constants(prompts=1, idle_read_s=0.0)) is None
