"""The sampler's process beside a cell: started before the ranks, stopped after the last one."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from shardwatt.errors import CellFailure, Reason, RecordError
from shardwatt.power.samplefiles import MeterFile, PowerNow, meter_path, power_now_path
from shardwatt.records import read
from shardwatt.site import GpuType

#: Time in s between samples.
PERIOD_S = 0.1

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0


class Sampler:
    """The sampler of this node, writing into a cell's work folder while it is entered.

    Args:
        work: the cell's work folder.
        gpu_type: what is metered.
        selectors: the job's own GPUs here, as CUDA_VISIBLE_DEVICES names them; empty for processors.
        log: where the process's complaints go.

    Attributes:
        info: what the meter is and what its readings are worth; once entered.
    """

    info: MeterFile

    def __init__(self, work: Path, gpu_type: GpuType, selectors: list[str], log: Path) -> None:
        self._work = work
        self._gpu_type = gpu_type
        self._selectors = selectors
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Sampler:
        """Start it and wait for its first sample.

        Raises:
            CellFailure: METER_UNAVAILABLE if the process ends or says nothing while it starts. A meter
                that cannot read anything is no error here: its readings say so.
        """
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._stop()

    def _start(self) -> None:
        with self._log.open("wb") as stream:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "shardwatt.power.sampler",
                    "--gpu-type",
                    self._gpu_type.model_dump_json(),
                    "--selectors",
                    ",".join(self._selectors),
                    "--folder",
                    str(self._work),
                    "--node-index",
                    "0",
                    "--period-s",
                    str(PERIOD_S),
                ],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                # A Ctrl-C at the terminal is the supervisor's to answer; it stops the sampler last.
                start_new_session=True,
            )
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not meter_path(self._work, 0).exists():
            self.check()
            if time.monotonic() > deadline_s:
                raise CellFailure(
                    Reason.METER_UNAVAILABLE,
                    f"the sampler read nothing within {_START_TIMEOUT_S:.0f} s: does nvidia-smi answer on "
                    f"this node? See {self._log}",
                )
            time.sleep(0.02)
        self.info = read(MeterFile, meter_path(self._work, 0))

    def check(self) -> None:
        """Make sure that the sampler still runs.

        Raises:
            CellFailure: METER_UNAVAILABLE if it has ended.
        """
        assert self._process is not None, "before it was entered"
        code = self._process.poll()
        if code is not None:
            said = self._log.read_text(errors="replace").strip()
            raise CellFailure(
                Reason.METER_UNAVAILABLE,
                f"the sampler ended by itself with exit code {code}, and the joules with it; "
                f"see {self._log}" + (f": {said.splitlines()[-1]}" if said else ""),
            )

    def power_w(self) -> float | None:
        """Power of this node's devices about a second ago in W; None where unknown: it is only shown."""
        try:
            return read(PowerNow, power_now_path(self._work, 0)).power_w
        except (FileNotFoundError, RecordError):
            return None

    def _stop(self) -> None:
        """End the process and wait until its files are whole."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
