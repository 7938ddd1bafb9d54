"""A job as Slurm's commands print it, and why one ended.

Only formats and states that Slurm 22.05 to 24.11 share are used.
"""

from __future__ import annotations

import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from shardwatt.errors import Reason
from shardwatt.sitewords import TIME_KEYS

#: Begin of a job and border of its fields in what is printed: no path and no comment holds these.
_RECORD, FIELD = "\x1e", "\x1f"

#: What squeue is to print of each job, for `from_squeue`.
SQUEUE_FORMAT = _RECORD + FIELD.join(("%A", "%T", "%N", "%r", "%S", "%e", "%Z", "%k"))

_SACCT_FIELDS = ("JobIDRaw", "State", "NodeList", "Start", "End", "ExitCode", "WorkDir", "Comment")

#: What sacct is to print of a job, with FIELD between, for `from_sacct`.
SACCT_FORMAT = ",".join(_SACCT_FIELDS)

_STEP_FIELDS = ("JobName", "State", "NNodes", "ElapsedRaw", "ConsumedEnergyRaw")

#: What sacct is to print of a job's steps, with FIELD between, for `steps_from_sacct`.
STEP_FORMAT = ",".join(_STEP_FIELDS)

#: Slurm's numbers for "no value" (NO_VAL of 32 and 64 bits, INFINITE) begin here.
_NO_NUMBERS = ((2**32 - 3, 2**32), (2**64 - 3, 2**64))

#: States of jobs that have ended; any other, of whatever version, is one of a job that goes on.
_OVER = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)

#: What Slurm's words for a reason tell of the state that a job in COMPLETING will end in.
_COMING_STATES = {
    "TimeLimit": "TIMEOUT",
    "NodeDown": "NODE_FAIL",
    "OutOfMemory": "OUT_OF_MEMORY",
    "DeadLine": "DEADLINE",
}

#: The last value of these keys of `scontrol show job` is all that follows on their line.
_WHOLE_LINE = frozenset({"JobName", "Command", "WorkDir", "Comment", "AdminComment", "StdErr", "StdOut"})


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job as Slurm describes it.

    Attributes:
        job_id: its number.
        state: Slurm's word in full, e.g. RUNNING, PENDING, COMPLETING, NODE_FAIL.
        nodes: compact list of its nodes, e.g. `n[0-3]`; empty where it has none.
        comment: as given to sbatch; empty where there is none, or the site drops it.
        work_dir: its working directory; empty where it is not known.
        reason: Slurm's word for why it waits, or ended, e.g. Resources; empty where there is none.
        start_time: begin, local time; None before it.
        end_time: end, local time; of a running job that of its time limit; None where there is none.
        exit_code: of its script, where known.
        signal: that ended its script, where known.
        std_out: Slurm's log of it, where known.
        preempted: whether it is being ended to make room for another.
        cancelled_by: name of who cancelled it, where known.
        has_whole_nodes: whether no other job can share its nodes; None where that is not told.
    """

    job_id: str
    state: str
    nodes: str = ""
    comment: str = ""
    work_dir: str = ""
    reason: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_code: int | None = None
    signal: int | None = None
    std_out: Path | None = None
    preempted: bool = False
    cancelled_by: str | None = None
    has_whole_nodes: bool | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended, with every process of it."""
        return self.state in _OVER

    @property
    def is_pending(self) -> bool:
        """Whether it waits for nodes."""
        return not self.is_over and not self.nodes


@dataclass(frozen=True, slots=True)
class SlurmStep:
    """A step of a job, as the accounting has it.

    Attributes:
        name: as given to srun with --job-name, otherwise its program's.
        is_over: whether it has ended, on every node.
        nodes: how many it had.
        elapsed_s: how long it ran, in whole s.
        energy_j: ConsumedEnergyRaw, joules of its nodes together; None where Slurm has no such number. 0
            where nothing was measured.
    """

    name: str
    is_over: bool
    nodes: int
    elapsed_s: int
    energy_j: int | None


def reason_of(job: SlurmJob) -> tuple[Reason, str] | None:
    """Why a job ended without a word of its own, and what to do; None while it waits or runs."""
    state = job.state
    if state == "COMPLETING":
        state = "PREEMPTED" if job.preempted else _COMING_STATES.get(job.reason, state)
    where = f" on {job.nodes}" if job.nodes else ""
    if state in ("NODE_FAIL", "BOOT_FAIL"):
        return Reason.NODE_FAIL, (
            f"Slurm lost a node of job {job.job_id}{where} ({state}); run the cell again: it gets other "
            "nodes for as long as that one is down"
        )
    if state in ("TIMEOUT", "DEADLINE"):
        return Reason.TIME_LIMIT, (
            f"job {job.job_id} ran into its time limit{where} ({state}); raise the site's {TIME_KEYS}, "
            "or use fewer prompts, a smaller length or larger batches"
        )
    if state == "PREEMPTED":
        return Reason.PREEMPTED, (
            f"Slurm ended job {job.job_id}{where} to make room for another; run the cell again, or use a "
            "partition or qos that is not preempted"
        )
    if state == "OUT_OF_MEMORY":
        return Reason.HOST_OOM, (
            f"job {job.job_id}{where} used more host memory than it had asked for; raise the site's "
            "memory_per_node_gib"
        )
    if state in ("CANCELLED", "REVOKED"):
        return Reason.CANCELLED, (
            f"job {job.job_id}{where} was cancelled by {job.cancelled_by or 'somebody'}; run the cell again"
        )
    if state in ("FAILED", "COMPLETED"):
        return Reason.SUPERVISOR_DIED, (
            f"job {job.job_id}{where} ended {_exit_words(job)} and its supervisor left no outcome; read "
            "Slurm's own log of the job; a supervisor killed with signal 9 mostly ran out of host memory"
        )
    return None


def _exit_words(job: SlurmJob) -> str:
    if job.signal:
        return f"by signal {job.signal}"
    return "with an unknown exit code" if job.exit_code is None else f"with exit code {job.exit_code}"


def from_squeue(printed: str) -> list[SlurmJob]:
    """Jobs as squeue printed them with SQUEUE_FORMAT."""
    return [_listed(record) for record in printed.split(_RECORD)[1:]]


def _listed(record: str) -> SlurmJob:
    number, state, nodes, reason, start, end, work_dir, comment = record.removesuffix("\n").split(FIELD)
    return SlurmJob(
        job_id=number,
        state=state,
        nodes=known(nodes),
        reason=known(reason),
        start_time=_time(start),
        end_time=_time(end),
        work_dir=work_dir,
        comment=known(comment),
    )


def from_scontrol(text: str) -> SlurmJob:
    """A job as `scontrol show job` printed it: lines of Key=Value, each key once."""
    values = _key_values(text)
    code, ended_by = _exit_status(values.get("ExitCode", ""))
    std_out = known(values.get("StdOut", ""))
    preempted = _time(values.get("PreemptTime", ""))
    start = _time(values.get("StartTime", ""))
    return SlurmJob(
        job_id=values["JobId"],
        state=values["JobState"],
        nodes=known(values.get("NodeList", "")),
        reason=known(values.get("Reason", "")),
        start_time=start,
        end_time=_time(values.get("EndTime", "")),
        work_dir=known(values.get("WorkDir", "")),
        comment=known(values.get("Comment", "")),
        exit_code=code,
        signal=ended_by,
        std_out=Path(std_out) if std_out else None,
        # A job put back into the queue keeps the time at which it was preempted before.
        preempted=preempted is not None and (start is None or preempted >= start),
        # `NO` with --exclusive, or in a partition that hands out whole nodes.
        has_whole_nodes=values["OverSubscribe"] == "NO" if "OverSubscribe" in values else None,
    )


def _key_values(text: str) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for line in text.split("\n"):
        rest = line.strip()
        while rest:
            key, _, after = rest.partition("=")
            value, _, rest = (after, "", "") if key in _WHOLE_LINE else after.partition(" ")
            values.setdefault(key.strip(), value)
    return values


def from_sacct(printed: str) -> SlurmJob:
    """A job as sacct printed it with SACCT_FORMAT."""
    number, state, nodes, start, end, status, work_dir, comment = printed.split(FIELD)[: len(_SACCT_FIELDS)]
    code, ended_by = _exit_status(status)
    state, _, user = state.partition(" by ")
    return SlurmJob(
        job_id=number,
        state=state,
        nodes="" if nodes == "None assigned" else nodes,
        start_time=_time(start),
        end_time=_time(end),
        work_dir=work_dir,
        comment=comment.split("\n")[0],
        exit_code=code,
        signal=ended_by,
        cancelled_by=_user_name(user),
    )


def steps_from_sacct(printed: str) -> list[SlurmStep]:
    """Steps as sacct printed them with STEP_FORMAT, the job itself and its batch step among them."""
    lines = (line.split(FIELD) for line in printed.splitlines())
    return [_step(*fields[: len(_STEP_FIELDS)]) for fields in lines if len(fields) >= len(_STEP_FIELDS)]


def _step(name: str, state: str, nodes: str, elapsed: str, energy: str) -> SlurmStep:
    return SlurmStep(
        name=name,
        is_over=state.partition(" by ")[0] in _OVER,
        nodes=_number(nodes) or 0,
        elapsed_s=_number(elapsed) or 0,
        energy_j=_number(energy),
    )


def _number(text: str) -> int | None:
    """A whole number; None where there is none, or it is Slurm's for that."""
    if not text.isdigit() or any(first <= int(text) < stop for first, stop in _NO_NUMBERS):
        return None
    return int(text)


def _user_name(number: str) -> str | None:
    try:
        return pwd.getpwuid(int(number)).pw_name
    except (KeyError, ValueError):
        return f"user {number}" if number else None


def _exit_status(text: str) -> tuple[int | None, int | None]:
    """`CODE:SIGNAL` as exit code and signal; where there is a signal, the code says nothing."""
    code, _, number = text.partition(":")
    if not code.isdigit() or not number.isdigit():
        return None, None
    return (None, int(number)) if int(number) else (int(code), None)


def known(text: str) -> str:
    """A value, or an empty text for Slurm's words for none."""
    text = text.strip()
    return "" if text in ("(null)", "None", "N/A", "n/a", "Unknown") else text


def _time(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
