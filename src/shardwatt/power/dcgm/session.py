"""DCGM's job statistics on one node, through `dcgmi`: the paper's way to measure, made to measure well.

    with DcgmSession(site.dcgm, uuids, job_id, horizon_s=7200) as session:
        session.start()   # session.margin_s before the window
        ...
        session.stop()    # session.margin_s after it
        devices = session.read()

DCGM's energy is its last cached sample of NVML's counter less its first one inside the job's time; `start`
and `stop` only note times. docs/energy-method.md says what that means at DCGM's own interval of 30 s.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from shardwatt.power.dcgm import names as dcgmnames
from shardwatt.power.dcgm.activity import FIELDS, Activity
from shardwatt.power.dcgm.program import Dcgmi
from shardwatt.power.dcgm.text import (
    Block,
    DcgmError,
    Value,
    created_group,
    discovered,
    groups,
    job_statistics,
    quote,
)
from shardwatt.readings import DcgmDevice, Status
from shardwatt.sitepower import Dcgm
from shardwatt.units import MILLI

#: What `dcgmi stats -e` takes by itself: time in ms between samples, and time in s for which they are kept.
DEFAULT_INTERVAL_MS, DEFAULT_HORIZON_S = 30_000, 3600

#: Longest time in s that is left between the job's borders and the window's: whoever has DCGM sample more
#: rarely wants to see what it makes of the window alone.
_LONGEST_MARGIN_S = 1.0

#: Longest time in ms between samples of the profiling fields.
_ACTIVITY_MS = 1000

_UUID = re.compile(r"GPU-[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class DcgmSession:
    """A DCGM group of just these GPUs with its samples, from entering to leaving.

    Leaving takes back all that can be taken, in every ending that leaves this process alive; what a killed
    one left behind is removed by the next session on the node.

    Args:
        site: the program, its interval, and whether to sample the profiling fields.
        uuids: the job's own GPUs on this node, in the order in which they are read. DCGM numbers all GPUs of
            the node, and NVML inside a job only some, so nothing but the UUID tells which is which.
        label: what the group is called by, e.g. the job's id.
        horizon_s: longest time in s from entering to reading. DCGM forgets older samples, and the energy in
            them; its memory grows with the time until then.
        timeout_s: longest time in s for one call of `dcgmi`.

    Attributes:
        node: this host.
        margin_s: time in s to leave between `start` and the window, and between the window and `stop`, so
            that a sample lies in between: one interval, at most a second.
        job: the job's id in DCGM, and the group's name.
        start_s: `time.monotonic()` when the job was started, in s: the middle of `start_within_s`.
        stop_s: likewise when it was stopped.
        start_within_s: the times before and after the call that started it; DCGM's own is in between.
        stop_within_s: likewise of the one that stopped it.
        complaints: what could not be cleaned up.
    """

    start_s: float
    stop_s: float
    start_within_s: tuple[float, float]
    stop_within_s: tuple[float, float]

    def __init__(
        self, site: Dcgm, uuids: Sequence[str], label: str, *, horizon_s: float, timeout_s: float = 30.0
    ) -> None:
        self._dcgmi = Dcgmi(site.command, timeout_s)
        self.node = self._dcgmi.node
        self.complaints = self._dcgmi.complaints
        self.margin_s = min(site.interval_ms * MILLI, _LONGEST_MARGIN_S)
        self.job = dcgmnames.take(label)
        self._site = site
        self._uuids = list(uuids)
        self._horizon_s = horizon_s
        self._ids: dict[str, int] = {}
        self._group: int | None = None
        self._is_watched = False
        self._is_job = False
        self._activity: Activity | None = None

    def __enter__(self) -> DcgmSession:
        """Make the group and have it sampled.

        Raises:
            DcgmError: `dcgmi` is missing, finds no host engine or not these GPUs, refuses, or hangs.
        """
        try:
            self._ids = self._find()
            self._remove_left_behind()
            self._group = self._make_group()
            self._watch()
            if self._site.profiling:
                self._activity = self._start_activity()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._clean_up()

    def start(self) -> None:
        """Start the job.

        Raises:
            DcgmError: DCGM refuses, or does not answer.
        """
        before_s = time.monotonic()
        self._is_job = True
        self._dcgmi.ask("stats", "-g", str(self._group), "-s", self.job)
        self.start_within_s = before_s, time.monotonic()
        self.start_s = sum(self.start_within_s) / 2
        if self._activity is not None:
            self._activity.begin()

    def stop(self) -> None:
        """Stop the job.

        Raises:
            DcgmError: DCGM refuses, or does not answer.
        """
        if self._activity is not None:
            self._activity.end()
        before_s = time.monotonic()
        self._dcgmi.ask("stats", "-x", self.job)
        self.stop_within_s = before_s, time.monotonic()
        self.stop_s = sum(self.stop_within_s) / 2

    def read(self) -> list[DcgmDevice]:
        """What DCGM says of each GPU between start and stop, in the order of the UUIDs.

        A GPU of which it says nothing has nulls and the reason.

        Raises:
            DcgmError: DCGM refuses, does not answer, or prints what is not understood.
        """
        text = self._dcgmi.ask("stats", "-v", "-j", self.job)
        blocks = {block.gpu_id: block for block in self._dcgmi.understand(job_statistics, text)}
        return [self._device(uuid, blocks.get(self._ids[uuid])) for uuid in self._uuids]

    def _find(self) -> dict[str, int]:
        """DCGM's number of each GPU."""
        for uuid in self._uuids:
            if not _UUID.fullmatch(uuid):
                raise self._dcgmi.error(
                    Status.UNSUPPORTED,
                    f"DCGM keeps job statistics of whole GPUs (GPU-…) only; found '{uuid}'",
                )
        # It fails where switches cannot be listed, below a whole table of GPUs: what it printed counts.
        text = self._dcgmi.run("discovery", "-l").stdout
        known = self._dcgmi.understand(discovered, text)
        missing = [uuid for uuid in self._uuids if uuid.lower() not in known]
        if missing:
            raise self._dcgmi.error(
                Status.UNAVAILABLE,
                f"{', '.join(missing)} not among the {len(known)} GPUs that DCGM knows: {', '.join(known)}",
            )
        return {uuid: known[uuid.lower()] for uuid in self._uuids}

    def _remove_left_behind(self) -> None:
        """Remove what sessions left behind whose process was killed; other people's groups are left alone."""
        try:
            names = groups(self._dcgmi.ask("group", "-l"))
        except DcgmError as problem:
            self.complaints.append(problem.message)
            return
        for number, name in names.items():
            if dcgmnames.is_left_behind(name):
                self._dcgmi.attempt("stats", "-x", name)
                self._dcgmi.attempt("stats", "-r", name)
                self._dcgmi.attempt("group", "-d", str(number))

    def _make_group(self) -> int:
        ids = ",".join(str(self._ids[uuid]) for uuid in self._uuids)
        run = self._dcgmi.run("group", "-c", self.job, "-a", ids)
        group = created_group(run.stdout)
        # It makes the group before it looks whether the GPUs are there.
        self._group = group
        self._dcgmi.check(run)
        if group is None:
            raise self._dcgmi.error(Status.UNAVAILABLE, f"no group's number in: {quote(run.stdout)}")
        return group

    def _watch(self) -> None:
        self._is_watched = True
        horizon = max(DEFAULT_HORIZON_S, round(self._horizon_s))
        self._dcgmi.ask(
            *("stats", "-g", str(self._group), "-e"),
            *("-u", str(self._site.interval_ms), "-m", str(horizon)),
        )

    def _start_activity(self) -> Activity:
        period_ms = min(self._site.interval_ms, _ACTIVITY_MS)
        fields = ",".join(map(str, FIELDS))
        words = ("dmon", "-g", str(self._group), "-e", fields, "-d", str(period_ms))
        return Activity(self._dcgmi.words(*words), self._dcgmi.environment)

    def _device(self, uuid: str, block: Block | None) -> DcgmDevice:
        if block is None:
            return DcgmDevice(uuid=uuid, energy_j=None, detail="dcgmi printed no statistics of this GPU")
        energy = block.number("Energy Consumed", "Joules")
        power_w = block.part("Power Usage", "Watts", "Avg")
        energy_j = _positive(energy)
        why = [] if energy_j else [self._no_energy(energy, power_w, block)]
        shares: dict[str, float | None] = {}
        if self._activity is not None:
            names = ("sm_active", "tensor_active", "dram_active")
            shares = {
                name: self._activity.mean(block.gpu_id, field)
                for name, field in zip(names, FIELDS, strict=True)
            }
            if failure := self._activity.failure(block.gpu_id):
                why.append(failure)
        return DcgmDevice(
            uuid=uuid,
            energy_j=energy_j,
            power_mean_w=_positive(power_w),
            power_max_w=_positive(block.part("Power Usage", "Watts", "Max")),
            sm_utilisation=_share(block.part("SM Utilization", "%", "Avg")),
            memory_activity=_share(block.part("Memory Utilization", "%", "Avg")),
            **shares,
            detail="; ".join(why) or None,
        )

    def _no_energy(self, energy: Value, power_w: Value, block: Block) -> str:
        """Why there are no joules; 0 J are none either, since no GPU draws nothing."""
        if energy.number is None:
            return f"Energy Consumed: {energy.said}"
        duration_s = block.number("Total Execution Time", "sec").number
        expected = f"power: {power_w.said}"
        if power_w.number and duration_s:
            expected = (
                f"{power_w.number:g} W on average over {duration_s:g} s would be "
                f"{power_w.number * duration_s:.0f} J"
            )
        return (
            f"{energy.said} J is no energy ({expected}): the first and the last sample that DCGM kept from "
            f"that time were one, or no different; it was to take one every {self._site.interval_ms} ms"
        )

    def _clean_up(self) -> None:
        if self._activity is not None:
            self._activity.close()
        if self._is_job:
            if not hasattr(self, "stop_s"):
                self._dcgmi.attempt("stats", "-x", self.job)
            self._dcgmi.attempt("stats", "-r", self.job)
        if self._is_watched and self._site.interval_ms < DEFAULT_INTERVAL_MS:
            # `dcgmi` cannot end its samples: they go on after the group, so they are made rare again.
            self._dcgmi.attempt(
                *("stats", "-g", str(self._group), "-e"),
                *("-u", str(DEFAULT_INTERVAL_MS), "-m", str(DEFAULT_HORIZON_S)),
            )
        if self._group is not None:
            self._dcgmi.attempt("group", "-d", str(self._group))
        dcgmnames.give_back(self.job)


def _positive(value: Value) -> float | None:
    """Joules or W; none where DCGM gave none, or gave what no GPU draws."""
    return value.number if value.number is not None and value.number > 0 else None


def _share(percent: Value) -> float | None:
    """A percentage as a share; None for none, and for what is none."""
    if percent.number is None or not 0 <= percent.number <= 100:
        return None
    return percent.number / 100
