"""DCGM's profiling fields, beside its job statistics: `dcgmi dmon` in the background, averaged.

It prints no time stamps, so each line gets the time at which it came; nothing but sums is kept.
"""

from __future__ import annotations

import subprocess
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence

from shardwatt.power.dcgm.text import Stream

#: Fields by id, which no version renamed: share of cycles in which a warp was on a multiprocessor, in which
#: tensor cores worked, and in which device memory moved data; with their names in the stream's header.
FIELDS = {1002: "SMACT", 1004: "TENSO", 1005: "DRAMA"}

_LONGEST_LINE = 4096
_END_TIMEOUT_S = 2.0


class Activity:
    """Profiling fields of some GPUs, averaged between `begin` and `end`; it never raises.

    Args:
        words: the `dcgmi dmon` that prints FIELDS.
        environment: its environment.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self._lock = threading.Lock()
        self._sums: defaultdict[tuple[int, str], float] = defaultdict(float)
        self._counts: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._stream = Stream()
        self._is_counting = False
        self._failure: str | None = None
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                list(words),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as problem:
            self._failure = str(problem)
            return
        self._thread = threading.Thread(target=self._read, name="dcgmi dmon", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(_LONGEST_LINE):
            with self._lock:
                row = self._stream.row(line)
                if row is None or not self._is_counting:
                    continue
                for name, share in row.values.items():
                    if share is not None:
                        self._sums[row.gpu_id, name] += share
                        self._counts[row.gpu_id, name] += 1

    def begin(self) -> None:
        """Count lines from now on."""
        with self._lock:
            self._is_counting = True

    def end(self) -> None:
        """Count no further line."""
        with self._lock:
            self._is_counting = False
            if self._process is not None and (code := self._process.poll()) is not None:
                self._failure = f"it ended by itself with exit code {code}"

    def mean(self, gpu_id: int, field: int) -> float | None:
        """Mean of a field in FIELDS over the lines that were counted; None without one, or if cut short."""
        key = gpu_id, FIELDS[field]
        with self._lock:
            if self._failure is not None or not self._counts[key]:
                return None
            # Shares are rounded to three digits, and a little above 1 occurs.
            return min(self._sums[key] / self._counts[key], 1.0)

    def failure(self, gpu_id: int) -> str | None:
        """Why a GPU has no means, in DCGM's words where it gave some."""
        if all(self.mean(gpu_id, field) is not None for field in FIELDS):
            return None
        with self._lock:
            words = [word for word in (self._failure, self._stream.said) if word]
        return "no profiling fields from dcgmi dmon: " + ("; ".join(words) or "it printed no values in time")

    def close(self) -> None:
        """End the process."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(_END_TIMEOUT_S)
        if self._process.stdout is not None and not self._thread.is_alive():
            self._process.stdout.close()
