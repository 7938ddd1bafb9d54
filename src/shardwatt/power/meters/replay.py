"""The watts of a simulated cell, replayed: what its ranks say that they hold, not what devices here draw."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

from shardwatt.layout import listed
from shardwatt.power.draw import Draw, draw_path
from shardwatt.power.protocol import Sample
from shardwatt.readings import Device, DriverLimits, Method, PowerSource, Status
from shardwatt.recordfiles import RecordModel, read


class Replay(RecordModel):
    """What is known of a simulated cell's devices beside what its ranks say."""

    device: str
    """What they are called in readings."""
    idle_w: float | None
    """Power in W of a rank's device while it holds nothing; null where it is not known."""
    detail: str
    """Where the watts come from, or why there are none."""
    has_power: bool
    """Whether the ranks hold any power at all: a plan may know none."""


class ReplayMeter:
    """The devices of a simulated cell on this node.

    Power in W is the mean since the sample before, of all ranks of a device; the first sample knows none,
    and others none for a time about which nobody says anything.

    Args:
        replay: what is known of them.
        folder: the cell's work folder, where ranks leave what they hold.
        ranks: those on this node.
        devices: one a rank, or 1 for processors, which all ranks share.
    """

    def __init__(self, replay: Replay, folder: Path, ranks: range, devices: int) -> None:
        node = socket.gethostname()
        self.devices = [Device(node=node, index=index, name=replay.device) for index in range(devices)]
        self.method: Method | None = Method.ESTIMATE if replay.has_power else None
        self.status = Status.ESTIMATED if replay.has_power else Status.UNAVAILABLE
        self.detail: str | None = replay.detail
        source = PowerSource.ESTIMATE if replay.has_power else None
        self.power_sources: list[PowerSource | None] = [source] * devices
        self.limits: list[DriverLimits | None] = [None] * devices
        self.failures: list[str] = []
        self._replay = replay
        self._folder = folder
        self._ranks = ranks
        self._draws: dict[int, Draw] = {}
        self._before_s: float | None = None

    def sample(self) -> list[Sample]:
        self._look()
        now_s = time.monotonic()
        of_each = len(self._ranks) // len(self.devices)
        samples = [
            Sample(
                t_s=now_s,
                device=device.index,
                power_w=self._power_w(self._ranks[device.index * of_each :][:of_each], now_s),
            )
            for device in self.devices
        ]
        self._before_s = now_s
        return samples

    def _look(self) -> None:
        """Read what ranks of this node have said since."""
        silent = {draw_path(self._folder, rank).name: rank for rank in self._ranks if rank not in self._draws}
        if not silent or not self._replay.has_power:
            return
        for name in silent.keys() & set(listed(self._folder)):
            # A file that is listed may not be seen yet on a network file system.
            with contextlib.suppress(FileNotFoundError):
                self._draws[silent[name]] = read(Draw, self._folder / name)

    def _power_w(self, ranks: range, now_s: float) -> float | None:
        if self._before_s is None or not self._replay.has_power or now_s <= self._before_s:
            return None
        length_s = now_s - self._before_s
        energy_j = 0.0
        for rank in ranks:
            said_j, said_s = 0.0, 0.0
            if rank in self._draws:
                said_j, said_s = self._draws[rank].joules(self._before_s, now_s)
            idle_s = max(length_s - said_s, 0.0)
            if self._replay.idle_w is None and idle_s > 1e-6:
                return None
            energy_j += said_j + (self._replay.idle_w or 0.0) * idle_s
        return energy_j / length_s

    def strangers(self) -> list[str]:
        """Nobody's: no device is used."""
        return []

    def close(self) -> None:
        """Nothing is held open."""
