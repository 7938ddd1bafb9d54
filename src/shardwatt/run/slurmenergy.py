"""Slurm's own count of energy, for whole nodes: ConsumedEnergyRaw of the ranks' step.

What it counts is the site's choice (AcctGatherEnergyType, https://slurm.schedmd.com/slurm.conf.html), and it
counts nodes: the figure is a job's only where the job has its nodes to itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from shardwatt.errors import SlurmError
from shardwatt.readings import Coverage, Method, Reading, Scope, Status
from shardwatt.slurm import find_job, steps_of
from shardwatt.slurmjob import SlurmStep
from shardwatt.slurmsite import seconds, settings

#: What each of Slurm's plugins counts on a node.
_COUNTED = {
    "rapl": "processors and memory alone, by RAPL",
    "ipmi": "the node, by its BMC",
    "xcc": "the node, by its BMC",
    "ibmaem": "the node, by its firmware",
    "pm_counters": "the node, by its BMC",
}
_PREFIX = "acct_gather_energy/"

#: Longest time in s to wait until the accounting knows the end of a step, and between two looks.
_PATIENCE_S = 5.0
_LOOK_S = 0.5

#: Power in W that no node reaches: Slurm has been seen to count nonsense.
_MOST_W = 20_000.0


class NoEnergyError(Exception):
    """Slurm tells no energy; the message says why.

    Attributes:
        status: what that makes of a reading: unsupported where Slurm counts none, otherwise unavailable.
    """

    def __init__(self, message: str, status: Status = Status.UNAVAILABLE) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class EnergyPlugin:
    """How this Slurm counts energy.

    Attributes:
        name: its plugin or plugins, e.g. `ipmi`.
        counts: what they count, in words.
        period_s: time in s between two readings of a node; 0 where steps read it themselves.
    """

    name: str
    counts: str
    period_s: float

    def __str__(self) -> str:
        every = f", read every {self.period_s:g} s" if self.period_s else ""
        return f"{_PREFIX}{self.name}: {self.counts}{every}"


def energy_plugin() -> EnergyPlugin:
    """How this Slurm counts energy.

    Raises:
        NoEnergyError: it does not, or keeps no account of it.
        SlurmError: Slurm cannot be asked.
    """
    found = settings()
    names = [name.strip().removeprefix(_PREFIX) for name in found.get("AcctGatherEnergyType", "").split(",")]
    counted = [_COUNTED[name] for name in names if name in _COUNTED]
    if not counted:
        words = f"Slurm counts no energy here: AcctGatherEnergyType is {', '.join(names) or 'not set'}"
        if "gpu" in names:
            words += ", which reads AMD's GPUs alone; for NVIDIA's it is an empty stub (up to 26.05)"
        raise NoEnergyError(words, Status.UNSUPPORTED)
    if not found.get("AccountingStorageType", "").endswith("slurmdbd"):
        raise NoEnergyError("Slurm has no accounting here, which is what keeps the energy of steps")
    periods_s = [seconds(found.get(name, "")) for name in ("AcctGatherNodeFreq", "EnergyIPMIFrequency")]
    period_s = max(filter(None, periods_s), default=0)
    return EnergyPlugin(",".join(names), "; ".join(dict.fromkeys(counted)), period_s)


def slurm_node_energy(
    job_id: str | None, nodes: Sequence[str], *, step_name: str, is_shared: bool
) -> Reading:
    """Slurm's energy of the step of the ranks, which has ended: start, loading and warm-up are in it.

    It never raises for what Slurm does not tell: the reading says why. It waits a few seconds at most for
    the accounting to know the step's end.

    Args:
        job_id: the Slurm job; None where there is none.
        nodes: host names of the nodes of the ranks.
        step_name: what the ranks' srun was given as --job-name.
        is_shared: whether the step runs other cells too.

    Returns:
        joules of all nodes together; their uncertainty is what the time between two readings of a node
        leaves open at both ends, at the mean power.
    """
    try:
        plugin, step, joules = _energy(job_id, nodes, step_name, is_shared=is_shared)
    except NoEnergyError as problem:
        return _without(nodes, problem.status, str(problem))
    except SlurmError as problem:
        return _without(nodes, Status.UNAVAILABLE, str(problem))
    # Both ends of the step lie somewhere between two readings, or in the whole second that Slurm counts.
    open_s = 2 * max(plugin.period_s, 1.0)
    return Reading(
        joules=joules,
        method=Method.SLURM_NODE,
        status=Status.MEASURED,
        scope=Scope.ALL_NODES,
        coverage=_coverage(nodes, expected=len(nodes)),
        uncertainty_j=joules * min(open_s / max(step.elapsed_s, 1), 1.0),
        detail=f"{plugin}; over the ranks' step of {step.elapsed_s} s, start and loading included",
    )


def not_asked(nodes: Sequence[str], why: str) -> Reading:
    """What stands in place of Slurm's energy where it is not asked.

    Args:
        nodes: host names of the nodes of the ranks.
        why: in words.
    """
    return _without(nodes, Status.UNAVAILABLE, why)


def _energy(
    job_id: str | None, nodes: Sequence[str], step_name: str, *, is_shared: bool
) -> tuple[EnergyPlugin, SlurmStep, float]:
    if job_id is None:
        raise NoEnergyError("no Slurm job")
    plugin = energy_plugin()
    if is_shared:
        raise NoEnergyError("the ranks of this cell ran others too, in one step: Slurm counts steps")
    job = find_job(job_id)
    if job is None or job.has_whole_nodes is not True:
        raise NoEnergyError(
            f"right only for whole nodes, and job {job_id} may share its own with others; ask for "
            "exclusive: true in the site file"
        )
    step = _ended_step(job_id, step_name)
    if step.nodes != len(nodes):
        raise NoEnergyError(f"the ranks' step had {step.nodes} nodes in Slurm; expected {len(nodes)}")
    if not step.energy_j:
        found = "no energy" if step.energy_j is None else "0 J, which no node draws,"
        raise NoEnergyError(
            f"Slurm has {found} for the ranks' step ({plugin}); slurmd's log on the nodes may say why"
        )
    most_j = _MOST_W * step.nodes * (step.elapsed_s + 1)
    if step.energy_j > most_j:
        raise NoEnergyError(
            f"Slurm has {step.energy_j} J for {step.elapsed_s} s on {step.nodes} nodes, more than nodes can "
            f"draw ({plugin})"
        )
    return plugin, step, float(step.energy_j)


def _ended_step(job_id: str, name: str) -> SlurmStep:
    """The step of the ranks, once the accounting knows its end."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        left_s = deadline_s - time.monotonic()
        steps = [step for step in steps_of(job_id, max(left_s, 1.0)) if step.name == name]
        if len(steps) == 1 and steps[0].is_over:
            return steps[0]
        if left_s <= _LOOK_S:
            break
        time.sleep(_LOOK_S)
    if len(steps) > 1:
        words = f"the accounting has {len(steps)} steps {name} of job {job_id}; expected one"
    elif steps:
        words = f"the accounting did not know the end of step {name} within {_PATIENCE_S:g} s"
    else:
        words = f"the accounting does not know step {name} of job {job_id}"
    raise NoEnergyError(words)


def _without(nodes: Sequence[str], status: Status, detail: str) -> Reading:
    return Reading(
        joules=None,
        method=None,
        status=status,
        scope=Scope.ALL_NODES,
        coverage=_coverage([], expected=len(nodes)),
        detail=detail,
    )


def _coverage(nodes: Sequence[str], *, expected: int) -> Coverage:
    """Nodes are what is read: no devices of theirs, and no samples."""
    return Coverage(nodes=list(nodes), nodes_expected=expected, devices=[], devices_expected=0, samples=0)
