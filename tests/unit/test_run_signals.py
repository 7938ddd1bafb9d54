"""Guards the clean end by a signal: it comes through, once, and does not cut the clean-up short."""

from __future__ import annotations

import contextlib
import logging
import os
import signal

import pytest

from shardwatt.run.signals import Ended, EndingSignals

ALL = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ALL)
def test_the_first_signal_raises_and_later_ones_wait_for_the_clean_up(number: signal.Signals) -> None:
    cleaned = []

    def work() -> None:
        with EndingSignals():
            try:
                send(number)
            finally:
                for again in ALL:
                    send(again)
                cleaned.append(True)

    with pytest.raises(Ended, match=number.name):
        work()
    assert cleaned == [True]


def test_what_was_ignored_stays_ignored_and_handlers_come_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handlers = [signal.getsignal(number) for number in ALL]
    try:
        with EndingSignals():
            send(signal.SIGHUP)
        assert [signal.getsignal(number) for number in ALL] == handlers
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_the_point_of_no_return_nothing_interrupts() -> None:
    with EndingSignals() as signals:
        signals.hold()
        for number in ALL:
            send(number)
        signals.check()


def test_a_signal_that_came_while_held_ends_what_would_follow() -> None:
    with EndingSignals() as signals:
        signals.hold()
        send(signal.SIGTERM)
        with pytest.raises(Ended, match="SIGTERM"):
            signals.release()


def test_a_library_that_drops_exceptions_does_not_drop_a_signal() -> None:
    """logging drops every `Exception` that is raised while it writes a line."""

    class Interrupted(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                send(signal.SIGTERM)
            except Exception:
                self.handleError(record)

    logger = logging.Logger("test")
    logger.addHandler(Interrupted())
    with pytest.raises(Ended, match="SIGTERM"), EndingSignals():
        logger.info("a line")


def test_a_signal_that_could_not_be_passed_on_is_raised_at_the_next_check() -> None:
    with EndingSignals() as signals:
        with contextlib.suppress(Ended):  # as a destructor does
            send(signal.SIGTERM)
        with pytest.raises(Ended, match="SIGTERM"):
            signals.check()
