"""The samplers beside a cell, one on each node: started before the ranks, stopped after the last one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from shardwatt.errors import EXIT_CONFIGURATION, CellFailure, Reason, RecordError
from shardwatt.layout import is_there
from shardwatt.power.samplefiles import MeterFile, PowerNow, meter_path, power_now_path
from shardwatt.records import read
from shardwatt.run.step import Step, own_words
from shardwatt.run.workfolder import cannot_write
from shardwatt.site import GpuType

#: Time in s between samples.
PERIOD_S = 0.1

_STOP_TIMEOUT_S = 30.0


def sampler_program(work: Path, gpu_type: GpuType, ranks_per_node: int) -> list[str]:
    """Python's arguments for the sampler of a node."""
    return [
        *("-m", "shardwatt.power.sampler"),
        *("--gpu-type", gpu_type.model_dump_json(exclude={"environment", "slurm"})),
        *("--ranks-per-node", str(ranks_per_node)),
        *("--folder", str(work)),
        *("--period-s", str(PERIOD_S)),
    ]


class Samplers:
    """The samplers of a cell's nodes, writing into its work folder while this is entered.

    Args:
        words: what starts them all.
        work: the cell's work folder.
        nodes: how many there are.
        log: where their complaints go.
        start_timeout_s: longest time in s until each has read something.

    Attributes:
        info: what the meter of node 0 is and what its readings are worth; once entered.
    """

    info: MeterFile

    def __init__(
        self, words: Sequence[str], work: Path, nodes: int, log: Path, *, start_timeout_s: float
    ) -> None:
        self._words = words
        self._work = work
        self._nodes = nodes
        self._log = log
        self._start_timeout_s = start_timeout_s
        self._step: Step | None = None

    def __enter__(self) -> Samplers:
        """Start them and wait for the first sample of each.

        Raises:
            CellFailure: METER_UNAVAILABLE if one ends or says nothing while it starts. A meter that
                cannot read anything is no error here: its readings say so.
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
        self._step = Step(self._words, self._log)
        deadline_s = time.monotonic() + self._start_timeout_s
        while silent := self._silent():
            self.check()
            if time.monotonic() > deadline_s:
                raise CellFailure(
                    Reason.METER_UNAVAILABLE,
                    f"the sampler of node {', '.join(map(str, silent))} of {self._nodes} read nothing within "
                    f"{self._start_timeout_s:g} s: does nvidia-smi answer there? See {self._log}, or raise "
                    "the site's start_timeout_s",
                )
            time.sleep(0.02)
        self.info = read(MeterFile, meter_path(self._work, 0))

    def _silent(self) -> list[int]:
        """Nodes whose meters have read nothing yet."""
        return [index for index in range(self._nodes) if not is_there(meter_path(self._work, index))]

    def check(self) -> None:
        """Make sure that the samplers still run.

        Raises:
            CellFailure: METER_UNAVAILABLE if one has ended; CONFIGURATION if that was for an environment
                line, or too few GPUs; STORAGE if it had no space to write into.
        """
        assert self._step is not None, "before it was entered"
        code = self._step.exit_code
        if code is not None:
            said = own_words(self._step.said())
            if code == EXIT_CONFIGURATION:
                raise CellFailure(Reason.CONFIGURATION, f"a node is not ready for its meter: {said}")
            raise cannot_write(self._work) or CellFailure(
                Reason.METER_UNAVAILABLE,
                f"the sampler ended by itself with exit code {code}, and the joules with it; "
                f"see {self._log}" + (f": {said}" if said else ""),
            )

    def power_w(self) -> float | None:
        """Power of all nodes' devices about a second ago in W; None where unknown: it is only shown."""
        total_w = 0.0
        for index in range(self._nodes):
            try:
                power_w = read(PowerNow, power_now_path(self._work, index)).power_w
            except (FileNotFoundError, RecordError):
                return None
            if power_w is None:
                return None
            total_w += power_w
        return total_w

    def _stop(self) -> None:
        """End them and wait until their files are whole."""
        if self._step is not None:
            self._step.end(_STOP_TIMEOUT_S)
