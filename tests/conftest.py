"""Signals as a shell in the foreground leaves them, also under nohup; made-up examples without a clock."""

from __future__ import annotations

import signal

from hypothesis import settings


def pytest_configure() -> None:
    # A busy machine may stall any example for longer than Hypothesis allows.
    settings.register_profile("shardwatt", deadline=None)
    settings.load_profile("shardwatt")
    # What is ignored here would be ignored by every process that a test starts, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
