"""Slurm as a whole: whether it answers, and whether the profile's way of following jobs works with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardwatt.checks.findings import Finding, error, note, ok, warning
from shardwatt.errors import SlurmError
from shardwatt.run.launch import ASK_S
from shardwatt.slurmsite import Node, Partition, nodes, partitions, sacct_answers, seconds, settings, version

#: Versions whose words and formats are used: before the first, srun's --overlap shares no GPUs.
OLDEST, NEWEST = (22, 5), (24, 11)

#: What the executor does where the profile does not say (snakemake-executor-plugin-slurm 2.8).
_FIRST_LOOK_S = 40
#: Longest time between two looks of the executor at the queue.
_SLOWEST_LOOK_S = 180


@dataclass(frozen=True, slots=True)
class Cluster:
    """What Slurm says of itself.

    Attributes:
        settings: of the controller, by name.
        partitions: by name.
        nodes: all that are seen.
    """

    settings: dict[str, str]
    partitions: dict[str, Partition]
    nodes: list[Node]

    @property
    def has_accounting(self) -> bool:
        return self.settings.get("AccountingStorageType", "").endswith("slurmdbd")


def ask_cluster() -> Cluster:
    """Ask the controller for everything that is compared.

    Raises:
        SlurmError: it does not answer, or Slurm's commands are not there.
    """
    return Cluster(settings(), partitions(), nodes())


def check_version() -> Finding:
    """Whether this Slurm is one whose words are known.

    Raises:
        SlurmError: Slurm's commands are not there.
    """
    found = version()
    numbers = tuple(int(number) for number in re.findall(r"[0-9]+", found)[:2])
    range_of_it = "{}.{:02} to {}.{:02}".format(*OLDEST, *NEWEST)
    if numbers < OLDEST:
        return error(f"Slurm {found}; expected {range_of_it}: options are used that it does not have")
    if numbers > NEWEST:
        return note(
            f"Slurm {found}, newer than what is known to work, {range_of_it}: try a small study first"
        )
    return ok(f"Slurm {found}")


def check_cluster(cluster: Cluster, profile: dict[str, Any], source: Path) -> Iterator[Finding]:
    """Settings of Slurm, against what the profile needs.

    Args:
        cluster: what Slurm says.
        profile: Snakemake's profile.
        source: its file.
    """
    yield ok(f"the controller answers; {len(cluster.partitions)} partitions, {len(cluster.nodes)} nodes seen")
    yield from _check_status(cluster, profile, source)
    if not profile.get("slurm-requeue"):
        yield warning(
            f"slurm-requeue is not set in {source}: a job that is preempted, or loses its node, is not "
            "started again, and in squeue mode Snakemake waits for a preempted one for ever"
        )
    kill_wait_s = seconds(cluster.settings.get("KillWait", ""))
    if kill_wait_s is not None:
        found = f"KillWait is {kill_wait_s} s: that long a cancelled cell has to end by itself"
        # The supervisor gives its ranks ASK_S to end, and then stops the meters and writes down the outcome.
        yield (
            ok(found)
            if kill_wait_s > 2 * ASK_S
            else warning(
                f"{found}; it may take {2 * ASK_S:g} s, and one that is killed is told from Slurm's records "
                "alone"
            )
        )
    if cluster.settings.get("ProctrackType") == "proctrack/linuxproc":
        yield warning(
            "ProctrackType is proctrack/linuxproc: a process that ignores SIGTERM may outlive its job, and "
            "spoil the next one's watts; ask for proctrack/cgroup"
        )


def _check_status(cluster: Cluster, profile: dict[str, Any], source: Path) -> Iterator[Finding]:
    """How the executor will learn of a job's end (its check_active_jobs)."""
    command = profile.get("slurm-status-command", "sacct")
    first_look_s = int(profile.get("slurm-init-seconds-before-status-checks", _FIRST_LOOK_S))
    age_s = seconds(cluster.settings.get("MinJobAge", ""))
    sacct_problem = _sacct_problem(cluster)
    if command == "sacct":
        if sacct_problem is None:
            yield ok("jobs are followed by sacct, which answers")
        else:
            yield error(
                f"slurm-status-command is sacct in {source}, and {sacct_problem}: Snakemake would wait for "
                "ever; use squeue"
            )
        return
    if age_s is None or age_s < 3 * first_look_s:
        found = (
            f"MinJobAge is {'not known' if age_s is None else f'{age_s} s'}, less than 3 x "
            f"slurm-init-seconds-before-status-checks ({first_look_s} s in {source}): the executor turns "
            "from squeue to sacct by itself"
        )
        if sacct_problem is None:
            yield warning(f"{found}; sacct answers here, so say slurm-status-command: sacct")
        else:
            yield error(f"{found}, and {sacct_problem}: it would wait for ever; lower that setting")
    elif age_s <= _SLOWEST_LOOK_S:
        yield warning(
            f"MinJobAge is {age_s} s, and squeue is asked up to {_SLOWEST_LOOK_S} s apart: the end of a job "
            "may be missed" + ("; use slurm-status-command: sacct" if sacct_problem is None else "")
        )
    else:
        yield ok(f"jobs are followed by squeue, which knows them for {age_s} s after their end (MinJobAge)")
    if sacct_problem is not None:
        yield note(
            f"{sacct_problem}: how a job ended is known for {age_s or 0} s; a cell that was killed and is "
            "not asked about in that time is `lost`"
        )


def _sacct_problem(cluster: Cluster) -> str | None:
    """Why sacct tells nothing; None where it answers."""
    if not cluster.has_accounting:
        return "Slurm has no accounting here"
    try:
        return None if sacct_answers() else "sacct does not answer"
    except SlurmError as problem:
        return str(problem)
