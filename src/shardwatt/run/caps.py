"""The power limits around a cell: a guard on each node sets them before anything is loaded, and back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from shardwatt.cell import Cell
from shardwatt.devices import has_gpus
from shardwatt.errors import CellFailure, Reason, RecordError
from shardwatt.jobshape import JobShape
from shardwatt.layout import is_there
from shardwatt.power.limits.files import LimitEndFile, LimitFile, limit_end_path, limit_path
from shardwatt.power.limits.setting import is_near
from shardwatt.readings import LimitOfDevice, PowerCap
from shardwatt.recordfiles import read
from shardwatt.run.nodehelpers import Kind, NodeHelpers, helper_words
from shardwatt.site import Site
from shardwatt.sitepower import PowerLimits

#: Longest time in s from the end of the run until all limits are back: a site's command may take its time.
_END_TIMEOUT_S = 150.0

#: What becomes of limits that nobody has set back.
_MENDED = (
    "this user's next cell on these GPUs sets the limits back; before that, as root there: shardwatt "
    "restore-power-limits --all-dead"
)

_GUARD = Kind(
    name="guard of power limits",
    purpose="power limits",
    lost=Reason.POWER_CAP_LOST,
    loss=f"and nobody keeps the limits there; {_MENDED}",
    ready=limit_path,
    end_timeout_s=_END_TIMEOUT_S,
)

log = logging.getLogger(__name__)


class PowerLimiting(NodeHelpers):
    """The power limits of a cell's GPUs, as the cell wants them while this is entered.

    Args:
        words: what starts the guards of all nodes; none: this does nothing.
        work: the cell's work folder.
        nodes: how many there are.
        log: where the guards' complaints go.
        cap_w: limit of each GPU in W; None only sets back what killed jobs have left on them.
        set_by: the site's way, as PowerLimits names it.
        start_timeout_s: longest time in s until all limits are set.
    """

    def __init__(
        self,
        words: Sequence[str],
        work: Path,
        nodes: int,
        log: Path,
        *,
        cap_w: int | None,
        set_by: str,
        start_timeout_s: float,
    ) -> None:
        super().__init__(_GUARD, words, work, nodes, log, start_timeout_s=start_timeout_s)
        self._cap_w = cap_w
        self._set_by = set_by
        self._set: list[LimitFile] = []

    def _take_up(self) -> None:
        """See that all limits are as they have to be.

        Raises:
            CellFailure: POWER_CAP_REFUSED, with the numbers, if a limit is out of range, refused or not
                enforced: all are as they were found.
        """
        self._set = [read(LimitFile, limit_path(self._work, k)) for k in range(self._nodes)]
        for file in self._set:
            for note in file.notes:
                log.info("%s", note)
        refused = [file for file in self._set if file.refusal is not None]
        if refused:
            raise CellFailure(
                Reason.POWER_CAP_REFUSED,
                "; ".join(f"{file.node}: {file.refusal}" for file in refused),
                node=refused[0].node,
            )
        if self._cap_w is not None:
            gpus = sum(len(file.limits) for file in self._set)
            log.info("power limit: %d W on %d GPUs", self._cap_w, gpus)

    def check(self) -> None:
        """Make sure that the guards are still there.

        Raises:
            CellFailure: POWER_CAP_LOST if one has ended; otherwise as for any node's helper.
        """
        if self._cap_w is not None:
            super().check()

    def record(self) -> PowerCap | None:
        """What the driver said of the cap, before, during and after the run; once this is left.

        Returns:
            None for a cell without a cap.

        Raises:
            CellFailure: POWER_CAP_LOST, a limit was not enforced to the end, or that is not known.
        """
        cap_w = self._cap_w
        if cap_w is None:
            return None
        devices: list[LimitOfDevice] = []
        for index, begin in enumerate(self._set):
            end = self._end_of(index, begin)
            left = {limit.uuid: limit for limit in end.limits}
            if end.signal is not None:
                raise CellFailure(
                    Reason.POWER_CAP_LOST,
                    f"{end.signal} had the guard on {begin.node} set the power limits back before the run "
                    "was over; expected it to be signalled with the whole job only",
                    node=begin.node,
                )
            devices += [
                LimitOfDevice(
                    device=limit.device,
                    # What a prolog has found is not known here.
                    before_w=None if self._set_by == "prolog" else limit.before_w,
                    enforced_w=limit.enforced_w,
                    after_w=left[str(limit.device.uuid)].after_w,
                    restored_w=left[str(limit.device.uuid)].restored_w,
                )
                for limit in begin.limits
            ]
        lost = [
            f"GPU {found.device.index} of {found.device.node}: "
            + ("unknown" if found.after_w is None else f"{found.after_w:g} W")
            for found in devices
            if found.after_w is None or not is_near(found.after_w, cap_w)
        ]
        if lost:
            raise CellFailure(
                Reason.POWER_CAP_LOST,
                f"a limit of {cap_w} W was enforced when the cell began, and after the run it was not: "
                f"{'; '.join(lost)}; somebody else sets limits on these GPUs, or the driver was loaded again",
            )
        return PowerCap(asked_w=cap_w, set_by=self._set_by, devices=devices)

    def _end_of(self, index: int, begin: LimitFile) -> LimitEndFile:
        end = self._find_end(index)
        if end is None:
            raise CellFailure(
                Reason.POWER_CAP_LOST,
                f"the guard of power limits on {begin.node} did not say how it left them: whether the cap "
                f"held is not known; {_MENDED}; see {self._log}",
                node=begin.node,
            )
        return end

    def _find_end(self, index: int) -> LimitEndFile | None:
        path = limit_end_path(self._work, index)
        try:
            return read(LimitEndFile, path) if is_there(path) else None
        except (FileNotFoundError, RecordError):
            return None

    def _stop(self) -> bool:
        """End the guards, and wait until the limits are back."""
        if self._step is None:
            return True
        ended = super()._stop()
        if not ended:
            log.error(
                "the guards of power limits did not end in %g s and were killed; %s", _END_TIMEOUT_S, _MENDED
            )
        for index in range(self._nodes):
            end = self._find_end(index)
            if end is not None and end.problem is not None:
                log.error("POWER LIMITS ARE NOT AS THEY WERE: %s", end.problem)
        return ended


def power_limiting(
    site: Site, cell: Cell, shape: JobShape, *, work: Path, logs: Path, job_id: str
) -> PowerLimiting:
    """The power limits of a cell; at a site without `power_limits`, or without GPUs, it does nothing.

    Args:
        site: where it runs.
        cell: which.
        shape: nodes, and ranks on each with a GPU each.
        work: its work folder.
        logs: folder for the guards' complaints.
        job_id: the attempt's, which leases are to carry.
    """
    words: list[str] = []
    set_by = "nobody"
    if site.power_limits is not None and has_gpus(site.gpus[cell.gpu]):
        set_by = site.power_limits.set_by
        words = _guard_words(site, site.power_limits, cell, shape, work.absolute(), job_id)
    return PowerLimiting(
        words,
        work,
        shape.nodes,
        logs / "power-limits.log",
        cap_w=cell.cap_w,
        set_by=set_by,
        start_timeout_s=site.start_timeout_s,
    )


def _guard_words(
    site: Site, power_limits: PowerLimits, cell: Cell, shape: JobShape, work: Path, job_id: str
) -> list[str]:
    """What starts the guards of a cell's nodes, each writing into its work folder."""
    gpu_type = site.gpus[cell.gpu]
    program = [
        *("-m", "shardwatt.power.limits.guard"),
        *("--gpu-type", gpu_type.model_dump_json(exclude={"environment", "slurm"})),
        *("--ranks-per-node", str(shape.ranks_per_node)),
        *("--folder", str(work)),
        *("--power-limits", power_limits.model_dump_json()),
        *("--job-id", job_id),
        *(() if cell.cap_w is None else ("--cap-w", str(cell.cap_w))),
    ]
    return helper_words(site, cell.gpu, shape, work / "guard.sh", program)
