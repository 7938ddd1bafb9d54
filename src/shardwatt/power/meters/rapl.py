"""Processors and memory through RAPL: the energy counters of Intel's and AMD's processors, as Linux gives
them (https://docs.kernel.org/power/powercap/powercap.html).

`/sys/class/powercap/intel-rapl:0` and so on are packages, also of AMD; `intel-rapl:0:1` is a part of one,
such as its memory. `psys` holds the packages and more, and `intel-rapl-mmio` is the same packages again:
both are left alone.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from shardwatt.power.meters.processors import BESIDE_S, Processors, processor_name
from shardwatt.power.protocol import Sample
from shardwatt.readings import Device, DriverLimits, Method, PowerSource, Status
from shardwatt.units import MICRO

Kind = Literal["package", "dram"]

POWERCAP = Path("/sys/class/powercap")

#: Index of each kind as a device of its node.
INDEX: dict[Kind, int] = {"package": 0, "dram": 1}

#: Power in W that no domain reaches: what needs more is no energy but a reset, or a wrap too many. With it
#: a counter can be left alone for range / 1 kW: 262 s of Intel's usual 262 kJ, 65 s of AMD's 65.5 kJ. At
#: 250 W they wrap around every 17 and 4 minutes.
MOST_W = 1000.0
#: Shortest time in s over which that is asked: counters move by leaps of about a millisecond.
_LEAST_S = 1.0

_PACKAGE = re.compile(r"package-(?P<socket>[0-9]+)(?:-die-[0-9]+)?")
_ZONE = re.compile(r"intel-rapl:[0-9]+(?::[0-9]+)?")

#: What every joule of RAPL is of.
WHOLE_NODE = "RAPL counts the whole node, other processes included"

_PERMISSION = (
    "only root may read it here; an administrator can allow all: "
    "chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj, again after each boot"
)
_ABSENT = (
    "virtual machines mostly have no RAPL; on a real one the kernel's module intel_rapl_msr (AMD too) "
    "must be loaded"
)


class _LostError(Exception):
    """A domain does not tell its energy any more; the message says why."""


class _Domain:
    """One energy counter, which wraps around; opened once, so that a read is a system call.

    Raises:
        OSError, ValueError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._where = folder.name
        self._range_uj = int((folder / "max_energy_range_uj").read_text())
        self._file = os.open(folder / "energy_uj", os.O_RDONLY | os.O_CLOEXEC)
        self._total_uj = 0
        try:
            self._last_uj, self._last_s = self._read(), time.monotonic()
        except BaseException:
            self.close()
            raise
        #: Longest time in s between two reads after which at most one wrap can lie between them.
        self._bound_s = self._range_uj * MICRO / MOST_W

    def energy_j(self) -> float:
        """Joules since it was opened.

        Raises:
            _LostError: it cannot be read, or what it says is not sure any more.
        """
        try:
            now_uj, now_s = self._read(), time.monotonic()
        except (OSError, ValueError) as problem:
            raise _LostError(f"{self._where}: {_words(problem)}") from None
        passed_s = now_s - self._last_s
        if passed_s > self._bound_s:
            raise _LostError(
                f"{self._where}: not read for {passed_s:.3g} s, in which its counter may have wrapped around "
                f"more than once (after {self._bound_s:.3g} s)"
            )
        risen_uj = now_uj - self._last_uj
        if risen_uj < 0:
            risen_uj += self._range_uj
        if not 0 <= risen_uj * MICRO <= MOST_W * max(passed_s, _LEAST_S):
            raise _LostError(
                f"{self._where}: its counter went from {self._last_uj * MICRO:.6g} to {now_uj * MICRO:.6g} J "
                f"in {passed_s:.3g} s, which is no power: it was set back"
            )
        self._total_uj += risen_uj
        self._last_uj, self._last_s = now_uj, now_s
        return self._total_uj * MICRO

    def _read(self) -> int:
        return int(os.pread(self._file, 32, 0))

    def close(self) -> None:
        os.close(self._file)


@dataclass(slots=True)
class _Sum:
    """The domains of one kind on this node, as one device; without domains once it is lost."""

    kind: Kind
    device: Device
    domains: list[_Domain]
    #: Time in s and joules of the sample before.
    before: tuple[float, float] | None = None

    def power_w(self, t_s: float, counter_j: float | None) -> float | None:
        """Mean power in W since the sample before; None for the first, and for a counter that is lost, which
        it stays."""
        if counter_j is None:
            return None
        before, self.before = self.before, (t_s, counter_j)
        if before is None or t_s <= before[0]:
            return None
        return (counter_j - before[1]) / (t_s - before[0])

    def close(self) -> None:
        for domain in self.domains:
            domain.close()
        self.domains = []


class RaplMeter:
    """Processor packages, memory or both of this node; each kind is one device, the sum over all sockets.

    A counter counts from 0 J at the meter's opening, wrap-around taken out. One domain that fails, or was
    not read for so long that it may have wrapped around twice, ends the counter of its kind: never is a
    part given for the sum. Power is the counter's rise since the sample before; the first knows none. With
    the packages comes how busy the node's processors and how full its memory are.

    Args:
        kinds: what to read: `package` is cores, caches and memory controllers, `dram` the memory modules,
            which only some server processors count.
        root: the kernel's folder of power domains.

    What cannot be read leaves a meter without devices, whose `status` and `detail` say why. Of several
    kinds, those that can be read are; `detail` names the others. Otherwise it says whose joules they are.
    """

    def __init__(self, kinds: Sequence[Kind], root: Path = POWERCAP) -> None:
        self.method: Method | None = None
        self.status = Status.UNAVAILABLE
        self.devices: list[Device] = []
        self.failures: list[str] = []
        self._sums: list[_Sum] = []
        missing: list[tuple[Status, str]] = []
        zones = _zones(root)
        for kind in kinds:
            opened = _open(kind, zones, root)
            if isinstance(opened, _Sum):
                self._sums.append(opened)
                self.devices.append(opened.device)
            else:
                missing.append(opened)
        if self._sums:
            self.method, self.status = Method.RAPL, Status.MEASURED
        elif missing:
            self.status = missing[0][0]
        self.power_sources: list[PowerSource | None] = [PowerSource.COUNTER] * len(self.devices)
        self.limits: list[DriverLimits | None] = [None] * len(self.devices)
        self.detail: str | None = "; ".join(dict.fromkeys(words for _, words in missing)) or WHOLE_NODE
        self._processors = Processors(BESIDE_S)

    def sample(self) -> list[Sample]:
        samples = []
        for part in self._sums:
            before_s = time.monotonic()
            counter_j = self._counter_j(part)
            after_s = time.monotonic()
            t_s = (before_s + after_s) / 2
            busy, memory_filled = self._processors.read() if part.kind == "package" else (None, None)
            samples.append(
                Sample(
                    t_s=t_s,
                    device=part.device.index,
                    power_w=part.power_w(t_s, counter_j),
                    counter_j=counter_j,
                    memory_filled=memory_filled,
                    cpu_utilisation=busy,
                )
            )
        return samples

    def strangers(self) -> list[str]:
        """Nobody's: RAPL never counts for a job alone."""
        return []

    def _counter_j(self, part: _Sum) -> float | None:
        if not part.domains:
            return None
        try:
            return sum(domain.energy_j() for domain in part.domains)
        except _LostError as problem:
            part.close()
            self.failures.append(f"RAPL {part.kind} of {part.device.node}: {problem}")
            return None

    def close(self) -> None:
        for part in self._sums:
            part.close()


def _zones(root: Path) -> dict[Kind, list[tuple[int, Path]]]:
    """Socket and folder of every domain of each kind, in the kernel's order; unreadable names are none."""
    found: dict[Kind, list[tuple[int, Path]]] = {"package": [], "dram": []}
    try:
        folders = sorted(folder for folder in root.iterdir() if _ZONE.fullmatch(folder.name))
    except OSError:
        return found
    names = {folder.name: _name(folder) for folder in folders}
    for folder in folders:
        # Part N of package M is intel-rapl:M:N.
        package, _, part = folder.name.removeprefix("intel-rapl:").partition(":")
        socket_ = _PACKAGE.fullmatch(names.get(f"intel-rapl:{package}", ""))
        if socket_ is None:
            continue
        if not part:
            found["package"].append((int(socket_["socket"]), folder))
        elif names[folder.name] == "dram":
            found["dram"].append((int(socket_["socket"]), folder))
    return found


def _name(folder: Path) -> str:
    try:
        return (folder / "name").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _open(kind: Kind, zones: dict[Kind, list[tuple[int, Path]]], root: Path) -> _Sum | tuple[Status, str]:
    """All domains of a kind, or why they cannot be read."""
    node = socket.gethostname()
    if not zones["package"]:
        return Status.UNAVAILABLE, f"RAPL of {node}: no package in {root}: {_ABSENT}"
    sockets = {number for number, _ in zones["package"]}
    counted = {number for number, _ in zones[kind]}
    if counted != sockets:
        words = f"counted for {len(counted)} of {len(sockets)} sockets" if counted else "not counted"
        return Status.UNAVAILABLE, f"RAPL {kind} of {node}: {words} by these processors"
    name = f"RAPL {kind} x {len(sockets)}" if len(sockets) > 1 else f"RAPL {kind}"
    if kind == "package":
        name += f" ({processor_name()})"
    part = _Sum(kind, Device(node=node, index=INDEX[kind], name=name), [])
    for _, folder in zones[kind]:
        try:
            part.domains.append(_Domain(folder))
        except (OSError, ValueError) as problem:
            part.close()
            is_denied = isinstance(problem, PermissionError)
            status = Status.PERMISSION_DENIED if is_denied else Status.UNAVAILABLE
            where = getattr(problem, "filename", None) or folder
            return status, f"RAPL {kind} of {node}: {where}: {_PERMISSION if is_denied else _words(problem)}"
    return part


def _words(problem: OSError | ValueError) -> str:
    if isinstance(problem, OSError):
        return problem.strerror or errno.errorcode.get(problem.errno or 0, "unreadable")
    return f"no number: {problem}"
