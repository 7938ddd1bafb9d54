"""Guards what is shown of a running cell: every number it should hold, dashes for what is not known."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from shardwatt.run import progress
from shardwatt.run.exchange import PROGRESS_FILE, Progress, Stage, write_progress
from shardwatt.run.progress import HEARTBEAT_S, ProgressDisplay, describe_speed
from still_clock import StillClock

CELL = "engine=reference/model=tiny"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StillClock:
    clock = StillClock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def display(work: Path, power_w: float | None = 71.6, *, estimated: bool = False) -> ProgressDisplay:
    return ProgressDisplay(work, name=CELL, prompts=64, power_w=lambda: power_w, estimated=estimated)


def tell(work: Path, stage: Stage, since_s: float, *, tokens: int = 0, prompts: int = 0) -> None:
    write_progress(
        work, Progress(stage=stage, generated_tokens=tokens, prompts_done=prompts, since_s=since_s)
    )


def test_the_line_holds_counts_rate_power_and_time_to_go() -> None:
    line = describe_speed(
        prompts_done=16,
        prompts=64,
        generated_tokens=500,
        elapsed_s=40.0,
        power_w=312.4,
        estimated=False,
    )
    assert line == "16/64 prompts, 500 tokens generated, 12.5 tokens/s, 312 W, ETA 120 s"


def test_what_is_not_known_is_a_dash_and_an_estimate_is_named() -> None:
    start = describe_speed(
        prompts_done=0, prompts=64, generated_tokens=0, elapsed_s=3.0, power_w=None, estimated=False
    )
    assert start == "0/64 prompts, 0 tokens generated, - tokens/s, - W, ETA -"
    estimated = describe_speed(
        prompts_done=0, prompts=64, generated_tokens=8, elapsed_s=0.0, power_w=20.0, estimated=True
    )
    assert estimated == "0/64 prompts, 8 tokens generated, - tokens/s, 20 (estimated) W, ETA -"


def test_a_heartbeat_comes_every_thirty_seconds_and_not_sooner(
    tmp_path: Path, clock: StillClock, caplog: pytest.LogCaptureFixture
) -> None:
    assert HEARTBEAT_S == 30
    caplog.set_level(logging.INFO, logger="shardwatt")
    tell(tmp_path, "run", clock.now_s, tokens=300, prompts=32)
    with display(tmp_path) as shown:
        for _ in range(605):
            clock.now_s += 0.1
            shown.look()
    assert len(caplog.messages) == 2
    assert caplog.messages[0].startswith(f"heartbeat: {CELL}: run: 32/64 prompts, 300 tokens generated, ")
    assert caplog.messages[0].endswith("tokens/s, 72 W, ETA 30 s")


def test_heartbeats_name_the_stage_before_the_run(
    tmp_path: Path, clock: StillClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="shardwatt")
    with display(tmp_path, None) as shown:
        clock.now_s += HEARTBEAT_S
        shown.look()
        tell(tmp_path, "load", clock.now_s)
        clock.now_s += HEARTBEAT_S
        shown.look()
    assert [message.split(": ")[2] for message in caplog.messages] == ["start", "load"]
    assert all(message.endswith("- tokens/s, - W, ETA -") for message in caplog.messages)


def test_a_torn_progress_file_ends_no_cell(
    tmp_path: Path, clock: StillClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="shardwatt")
    (tmp_path / PROGRESS_FILE).write_text('{"stage": "ru')
    with display(tmp_path) as shown:
        clock.now_s += HEARTBEAT_S
        shown.look()
    assert ": start: " in caplog.messages[0]
