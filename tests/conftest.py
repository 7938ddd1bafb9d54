"""Signals as a shell in the foreground leaves them, also under nohup and in background jobs."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    # What is ignored here would be ignored by every process that a test starts, too.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
