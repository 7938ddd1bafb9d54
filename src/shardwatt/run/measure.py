"""One cell measured: limits set, meters on, devices cool and idle, ranks run, and all of it taken back."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from shardwatt.devices import own_devices
from shardwatt.errors import CellFailure, Reason
from shardwatt.power.host import HostTrace, load_host
from shardwatt.power.meters.choose import metered_devices
from shardwatt.power.trace import load_trace
from shardwatt.readings import METERED, PowerCap, Reading, Status
from shardwatt.recordfiles import read
from shardwatt.run.allocation import Allocation
from shardwatt.run.assemble import assemble, keep_partial
from shardwatt.run.attempt import OpenAttempt
from shardwatt.run.baseline import CoolDown, baseline_times, cool_down, left_alone
from shardwatt.run.caps import power_limiting
from shardwatt.run.clocks import node_clocks
from shardwatt.run.crew import Crew, sampler_words
from shardwatt.run.dcgmwindow import DcgmWindow
from shardwatt.run.exchange import RUN_FILE, RankEnd, RunReport
from shardwatt.run.job import Job
from shardwatt.run.measured import Baseline, DcgmMissing, Measured
from shardwatt.run.meters import Samplers
from shardwatt.run.progress import ProgressDisplay
from shardwatt.run.signals import Ended, EndingSignals
from shardwatt.run.slurmenergy import not_asked, slurm_node_energy
from shardwatt.run.srun import RANKS_STEP
from shardwatt.run.watch import attend

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Carried:
    """What the cells of one job hand on.

    Attributes:
        unloaded: the devices' idle power before any rank touched them; None where it was not read.
        dcgm: why DCGM need not be asked again; None where it gave no trouble.
    """

    unloaded: Baseline | None = None
    dcgm: DcgmMissing | None = None


@dataclass(frozen=True, slots=True)
class _Course:
    """How the run went.

    Attributes:
        ends: how each rank ended.
        span: from before the ranks were started to after the last one ended, in s of `time.monotonic()`.
        cool_down: the wait for cool devices; None where the study has no gate.
        unloaded: from when to when the devices were idle before; None where that was not read.
    """

    ends: list[RankEnd]
    span: tuple[float, float]
    cool_down: CoolDown | None
    unloaded: tuple[float, float] | None


class Measurement:
    """The measuring of one cell, in an attempt's work folder.

    Args:
        job: the cell.
        attempt: where to write.
        crew: its ranks.
        signals: what may end it.
        allocation: the Slurm job around it, if there is one.
        carried: what earlier cells of the same job hand on; brought up to date.
        more: whether other cells of the same job may follow.
    """

    def __init__(
        self,
        job: Job,
        attempt: OpenAttempt,
        crew: Crew,
        signals: EndingSignals,
        allocation: Allocation | None,
        carried: Carried,
        *,
        more: bool,
    ) -> None:
        self._job = job
        self._attempt = attempt
        self._crew = crew
        self._signals = signals
        self._allocation = allocation
        self._carried = carried
        self._more = more
        self._was_loaded = crew.is_loaded
        self._limits = power_limiting(
            job.site,
            job.cell,
            job.shape,
            work=attempt.work,
            logs=attempt.paths.logs,
            job_id=attempt.job_id,
        )

    def power_cap(self) -> PowerCap | None:
        """The cell's power cap, and what the driver said of it, once `run` has come to its end.

        Raises:
            CellFailure: POWER_CAP_LOST, it did not hold.
        """
        return self._limits.record()

    def run(self) -> None:
        """Run the ranks beside the meters, and write the four files into the work folder.

        Raises:
            CellFailure, DoesNotFit: how it ended otherwise.
        """
        job, work = self._job, self._attempt.work
        # Too few GPUs are told before anything starts.
        own_devices(job.gpu_type, job.shape.ranks_per_node, os.environ)
        sampler_log = self._attempt.paths.sampler_log
        words = sampler_words(job, work)
        left_s = self._allocation.left_s() if self._allocation is not None else None
        with (
            self._limits,
            Samplers(
                words, work, job.shape.nodes, sampler_log, start_timeout_s=job.site.start_timeout_s
            ) as samplers,
        ):
            self._refuse_estimates(samplers)
            job_id, trouble = self._attempt.job_id, self._carried.dcgm
            with DcgmWindow(job, job_id, samplers.meters[0], left_s, trouble) as dcgm:
                course = self._course(samplers, dcgm)
            self._carried.dcgm = dcgm.given_up
        self._assemble(course, dcgm)

    def _refuse_estimates(self, samplers: Samplers) -> None:
        """For a study with `energy: measured`."""
        for meter in samplers.meters:
            if self._job.measured_only and meter.status not in METERED:
                raise CellFailure(
                    Reason.NOT_MEASURED,
                    f"the study asks for `energy: measured`, and on {meter.node} energy is {meter.status}: "
                    f"{meter.detail}; `shardwatt meters` on that node says what works there",
                    node=meter.node,
                )

    def _course(self, samplers: Samplers, dcgm: DcgmWindow) -> _Course:
        job, work = self._job, self._attempt.work
        try:

            def look() -> None:
                self._signals.check()
                self._limits.check()
                samplers.check()
                if self._allocation is not None:
                    self._allocation.check()

            cooled = self._cool_down(samplers, look)
            unloaded = None
            times = baseline_times(job.constants) if _has_idle(samplers) else None
            if times is not None and self._carried.unloaded is None and not self._was_loaded:
                log.info("idle for %g s, to read the devices' power before anything is loaded", sum(times))
                unloaded = left_alone(*times, look=look)
            start_s = time.monotonic()
            ends = self._ranks(samplers, dcgm, look, times)
            return _Course(ends, (start_s, time.monotonic()), cooled, unloaded)
        except BaseException as problem:
            if isinstance(problem, Ended):
                # Of a job that is cancelled Slurm kills the batch step about a second later.
                self._attempt.write_down(problem)
            self._crew.end()
            self._attempt.partial = keep_partial(job, work, self._attempt.paths.partial(self._attempt.job_id))
            raise

    def _cool_down(self, samplers: Samplers, look: Callable[[], None]) -> CoolDown | None:
        constants = self._job.constants
        if constants.cool_down_c is None:
            return None
        log.info("waiting until every device is at %g C or below", constants.cool_down_c)
        return cool_down(constants.cool_down_c, constants.cool_down_max_s, samplers.temperature_c, look)

    def _ranks(
        self,
        samplers: Samplers,
        dcgm: DcgmWindow,
        look: Callable[[], None],
        idle: tuple[float, float] | None,
    ) -> list[RankEnd]:
        job, attempt = self._job, self._attempt
        spec = job.spec(
            job_id=attempt.job_id,
            log_folder=attempt.paths.logs,
            launched_at_s=time.time(),
            more=self._more,
            idle=idle,
            gated=dcgm.is_open,
        )
        display = ProgressDisplay(
            attempt.work,
            name=job.cell.path,
            prompts=job.prompts,
            power_w=samplers.power_w,
            estimated=samplers.meters[0].status is Status.ESTIMATED,
        )
        gates = dcgm.gates(attempt.work)

        def each_look() -> None:
            look()
            gates.look()
            display.look()

        with display:
            return attend(
                self._crew.start(job, attempt.work, spec, attempt.paths.logs / "srun.log"),
                attempt.work,
                attempt.paths.logs,
                ranks=job.shape.ranks,
                start_timeout_s=job.site.start_timeout_s,
                each_look=each_look,
            )

    def _assemble(self, course: _Course, dcgm: DcgmWindow) -> None:
        job, attempt = self._job, self._attempt
        power_cap = self.power_cap()
        clocks = node_clocks(course.ends, job.shape.ranks_per_node)
        devices_per_node = metered_devices(job.gpu_type, job.shape.ranks_per_node)
        report = read(RunReport, attempt.work / RUN_FILE)
        simulation = job.simulation
        baseline = assemble(
            job,
            attempt.work,
            job_id=attempt.job_id,
            node=attempt.node,
            started_at=attempt.works_since,
            report=report if simulation is None else simulation.report(report),
            ends=course.ends,
            measured=Measured(
                trace=load_trace(attempt.work, job.shape.nodes, devices_per_node, clocks),
                # Processors of nodes that compute nothing are not the cell's.
                host=HostTrace([]) if simulation else load_host(attempt.work, job.shape.nodes, clocks),
                job_span=course.span,
                unloaded=self._carried.unloaded or course.unloaded,
                cool_down=course.cool_down,
                power_cap=power_cap,
                dcgm=dcgm.outcome,
                slurm_node=self._slurm_node(sorted({end.node for end in course.ends})),
                has_whole_nodes=self._allocation.has_whole_nodes if self._allocation is not None else None,
            ),
            was_loaded=self._was_loaded,
        )
        self._carried.unloaded = baseline or self._carried.unloaded

    def _slurm_node(self, nodes: list[str]) -> Reading:
        if self._job.simulation is not None:
            return not_asked(nodes, "not asked: the cell is simulated")
        return slurm_node_energy(
            self._allocation.job_id if self._allocation is not None else None,
            nodes,
            step_name=RANKS_STEP,
            is_shared=self._more,
        )


def _has_idle(samplers: Samplers) -> bool:
    """Whether idle power is something that the meters of all nodes read: an estimate has none."""
    return all(meter.status in METERED for meter in samplers.meters)
