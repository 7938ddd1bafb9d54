"""Asking Slurm about the cluster: settings, partitions, nodes, accounts, and whether it would take a job.

Only words, formats and keys that Slurm 22.05 to 24.11 share are used.
"""

from __future__ import annotations

import getpass
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardwatt.slurm import ask, run

#: A node with one of these in its state takes no new job.
_OUT_OF_USE = frozenset(
    {"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "INVAL", "MAINT", "UNKNOWN"}
)
#: States worth counting apart; the first that a node has names it.
_SHOWN_STATES = ("DOWN", "DRAIN", "FAIL", "INVAL", "MAINT", "RESERVED", "IDLE", "MIXED", "ALLOCATED")

_GPUS = re.compile(r"(?:^|,)gpu(?::(?P<type>[^:,()]+))?:(?P<count>[0-9]+)")


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, as `scontrol show partition` has it.

    Attributes:
        name: its name.
        state: UP, DOWN, DRAIN or INACTIVE.
        is_default: whether jobs that name none go there.
        max_time_min: longest time limit in minutes; None: no limit.
        preempt_mode: OFF, REQUEUE, CANCEL, SUSPEND, …
        oversubscribe: NO, EXCLUSIVE, YES:n or FORCE:n.
        allow_groups, allow_accounts, deny_accounts, allow_qos: names; None: all, of `deny_accounts` none.
        max_nodes: most nodes of a job; None: no limit.
        max_cpus_per_node: most CPUs of a node for jobs of this partition; None: no limit.
        max_memory_mib: most memory of a node for a job in MiB; None: no limit.
    """

    name: str
    state: str
    is_default: bool
    max_time_min: int | None
    preempt_mode: str
    oversubscribe: str
    allow_groups: frozenset[str] | None
    allow_accounts: frozenset[str] | None
    deny_accounts: frozenset[str] | None
    allow_qos: frozenset[str] | None
    max_nodes: int | None
    max_cpus_per_node: int | None
    max_memory_mib: int | None


@dataclass(frozen=True, slots=True)
class Node:
    """A node, as `scontrol show node` has it.

    Attributes:
        name: its name.
        states: words of its state, e.g. IDLE and DRAIN.
        partitions: those that it belongs to.
        features: what a constraint can name.
        gpus: GPUs of each type; those without a type under an empty text.
        cpus: CPUs that jobs can have.
        memory_mib: memory that jobs can have, in MiB.
    """

    name: str
    states: frozenset[str]
    partitions: frozenset[str]
    features: frozenset[str]
    gpus: Mapping[str, int]
    cpus: int
    memory_mib: int

    @property
    def is_usable(self) -> bool:
        """Whether it runs jobs, or will when others end."""
        return not self.states & _OUT_OF_USE

    @property
    def state(self) -> str:
        """One word for its state, in lower case."""
        return next((word for word in _SHOWN_STATES if word in self.states), min(self.states)).lower()


def version() -> str:
    """Slurm's version, e.g. 22.05.8.

    Raises:
        SlurmError: Slurm's commands are not there.
    """
    return ask(["scontrol", "--version"]).split()[-1]


def settings() -> dict[str, str]:
    """The controller's settings by name, e.g. KillWait: `30 sec`.

    Raises:
        SlurmError: the controller does not answer.
    """
    pairs = (line.partition("=") for line in ask(["scontrol", "show", "config"]).splitlines())
    return {name.strip(): _known(value) for name, equals, value in pairs if equals}


def partitions() -> dict[str, Partition]:
    """All partitions by name, hidden ones too.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    lines = ask(["scontrol", "--all", "--oneliner", "show", "partition"]).splitlines()
    found = [_partition(line) for line in lines if "PartitionName=" in line]
    return {partition.name: partition for partition in found}


def nodes() -> list[Node]:
    """All nodes that this user may see.

    Raises:
        SlurmError: Slurm cannot be asked.
    """
    lines = ask(["scontrol", "--all", "--oneliner", "show", "node"]).splitlines()
    return [_node(line) for line in lines if "NodeName=" in line]


def states_in_words(of: Sequence[Node]) -> str:
    """How many nodes are in which state, e.g. `3 idle, 1 drain`."""
    counts = Counter(node.state for node in of)
    return ", ".join(f"{count} {state}" for state, count in counts.most_common()) or "none"


def own_accounts() -> list[str] | None:
    """Accounts of this user, as the accounting has them; None where it cannot be asked."""
    return _managed(["-s", "list", "user", getpass.getuser(), "format=account%256"])


def qos_names() -> list[str] | None:
    """All qualities of service; None where the accounting cannot be asked."""
    return _managed(["list", "qos", "format=name%256"])


def sacct_answers() -> bool:
    """Whether `sacct` tells of jobs, which it does with accounting alone.

    Raises:
        SlurmError: it is not there, or gives no answer in time.
    """
    done = run(["sacct", "-X", "-n", "-P", "--format=JobIDRaw,State"])
    return done.returncode == 0 and "disabled" not in done.stdout + done.stderr


def would_take(words: Sequence[str]) -> tuple[bool, str]:
    """Ask sbatch what would become of a job; none is submitted.

    Args:
        words: `sbatch` and its options.

    Returns:
        Whether Slurm would take it, and what it said.

    Raises:
        SlurmError: sbatch is not there, or gives no answer in time.
    """
    done = run([*words, "--test-only"], "#!/bin/sh\n")
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines()]
    return done.returncode == 0, "; ".join(filter(None, lines)) or f"nothing (exit code {done.returncode})"


def seconds(text: str) -> int | None:
    """A setting in s, e.g. `300 sec`; None where it is none."""
    match = re.match(r"([0-9]+)", text)
    return int(match[1]) if match else None


def minutes(text: str) -> int | None:
    """A time limit, [D-][HH:]MM:SS, in minutes; None for no limit."""
    match = re.fullmatch(r"(?:([0-9]+)-)?(?:([0-9]+):)?([0-9]+):([0-9]+)", text)
    if match is None:
        return None
    days, hours, whole_minutes = (int(part or 0) for part in match.groups()[:3])
    return (days * 24 + hours) * 60 + whole_minutes


def _managed(words: Sequence[str]) -> list[str] | None:
    """What sacctmgr prints, a name a line."""
    done = run(["sacctmgr", "-n", *words])
    return (
        sorted({name.strip() for name in done.stdout.splitlines()} - {""}) if done.returncode == 0 else None
    )


def _partition(line: str) -> Partition:
    values = _values(line)
    return Partition(
        name=values["PartitionName"],
        state=values.get("State", ""),
        is_default=values.get("Default") == "YES",
        max_time_min=minutes(values.get("MaxTime", "")),
        preempt_mode=values.get("PreemptMode", "OFF"),
        oversubscribe=values.get("OverSubscribe", "NO"),
        allow_groups=_names(values.get("AllowGroups", "ALL")),
        allow_accounts=_names(values.get("AllowAccounts", "ALL")),
        deny_accounts=_names(values.get("DenyAccounts", "ALL")),
        allow_qos=_names(values.get("AllowQos", "ALL")),
        max_nodes=_number(values.get("MaxNodes", "")),
        max_cpus_per_node=_number(values.get("MaxCPUsPerNode", "")),
        max_memory_mib=_number(values.get("MaxMemPerNode", "")),
    )


def _node(line: str) -> Node:
    values = _values(line)
    gpus: Counter[str] = Counter()
    for match in _GPUS.finditer(_known(values.get("Gres", ""))):
        gpus[match["type"] or ""] += int(match["count"])
    # CPUEfctv, without those that Slurm keeps for itself, is known since 22.05.
    cpus = _number(values.get("CPUEfctv", "")) or _number(values.get("CPUTot", "")) or 0
    memory_mib = (_number(values.get("RealMemory", "")) or 0) - (_number(values.get("MemSpecLimit", "")) or 0)
    return Node(
        name=values["NodeName"],
        states=frozenset(word.rstrip("*~#!%$@^-+") for word in values.get("State", "UNKNOWN").split("+")),
        partitions=_names(values.get("Partitions", "")) or frozenset(),
        features=_names(_known(values.get("AvailableFeatures", ""))) or frozenset(),
        gpus=dict(gpus),
        cpus=cpus,
        memory_mib=memory_mib,
    )


def _values(line: str) -> dict[str, str]:
    """Key=Value pairs of a line; of a key that comes again, as in a comment's text, the first."""
    values: dict[str, str] = {}
    for key, value in re.findall(r"(?:^|\s)([A-Za-z]+)=(\S*)", line):
        values.setdefault(key, value)
    return values


def _names(text: str) -> frozenset[str] | None:
    """A list of names; None for ALL."""
    return None if text == "ALL" else frozenset(name for name in text.split(",") if name)


def _known(text: str) -> str:
    """A value, or an empty text for Slurm's words for none."""
    text = text.strip()
    return "" if text in ("(null)", "N/A", "n/a") else text


def _number(text: str) -> int | None:
    return int(text) if text.isdigit() else None
