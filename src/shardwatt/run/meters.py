"""The samplers beside a cell, one on each node: started before the ranks, stopped after the last one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shardwatt.errors import Reason, RecordError
from shardwatt.power.meters.replay import Replay
from shardwatt.power.sampling.files import MeterFile, PowerNow, meter_path, power_now_path
from shardwatt.recordfiles import read
from shardwatt.run.nodehelpers import Kind, NodeHelpers
from shardwatt.site import GpuType

#: Time in s between samples.
PERIOD_S = 0.1

_SAMPLER = Kind(
    name="sampler",
    purpose="meter",
    lost=Reason.METER_UNAVAILABLE,
    loss="and the joules with it",
    ready=meter_path,
    end_timeout_s=30.0,
)


def sampler_program(
    work: Path, gpu_type: GpuType, ranks_per_node: int, replay: Replay | None = None
) -> list[str]:
    """Python's arguments for the sampler of a node.

    Args:
        work: the cell's work folder.
        gpu_type: the site's.
        ranks_per_node: ranks there.
        replay: what is replayed of a simulated cell in place of reading devices; None: they are read.
    """
    return [
        *("-m", "shardwatt.power.sampling.sampler"),
        *("--gpu-type", gpu_type.model_dump_json(exclude={"environment", "slurm"})),
        *("--ranks-per-node", str(ranks_per_node)),
        *("--folder", str(work)),
        *("--period-s", str(PERIOD_S)),
        *(() if replay is None else ("--replay", replay.model_dump_json())),
    ]


class Samplers(NodeHelpers):
    """The samplers of a cell's nodes, writing into its work folder while this is entered.

    A meter that cannot read anything is no error here: its readings say so.

    Args:
        words: what starts them all.
        work: the cell's work folder.
        nodes: how many there are.
        log: where their complaints go.
        start_timeout_s: longest time in s until each has read something.

    Attributes:
        meters: what each node's meter is and what its readings are worth; once entered.
    """

    meters: list[MeterFile]

    def __init__(
        self, words: Sequence[str], work: Path, nodes: int, log: Path, *, start_timeout_s: float
    ) -> None:
        super().__init__(_SAMPLER, words, work, nodes, log, start_timeout_s=start_timeout_s)

    def _take_up(self) -> None:
        self.meters = [read(MeterFile, meter_path(self._work, index)) for index in range(self._nodes)]

    def power_w(self) -> float | None:
        """Power of all nodes' devices about a second ago in W; None where unknown: it is only shown."""
        powers_w = [None if now is None else now.power_w for now in self._now()]
        known_w = [power_w for power_w in powers_w if power_w is not None]
        return sum(known_w) if len(known_w) == len(powers_w) else None

    def temperature_c(self) -> float | None:
        """The hottest device of all nodes about a second ago, in degrees Celsius; None where unknown."""
        found_c = [None if now is None else now.temperature_c for now in self._now()]
        known_c = [temperature_c for temperature_c in found_c if temperature_c is not None]
        return max(known_c) if len(known_c) == len(found_c) else None

    def _now(self) -> list[PowerNow | None]:
        return [_read_now(power_now_path(self._work, index)) for index in range(self._nodes)]


def _read_now(path: Path) -> PowerNow | None:
    try:
        return read(PowerNow, path)
    except (FileNotFoundError, RecordError):
        return None
