"""Setting limits back that a killed job has left: by the next cell on its GPUs, or for a whole node."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import pynvml

from shardwatt.power.limits.lease import Found, Lease, Leases
from shardwatt.power.limits.setting import LimitError, Limits, SetLimit, is_near, put_back, read_limits
from shardwatt.power.meters.gpus import Gpu, find_gpus, nvml

_ROOT = 0


def mend_own(gpus: Sequence[Gpu], leases: Leases, set_limit: SetLimit) -> list[str]:
    """Set back what killed jobs have left on the GPUs of this job, before it begins on them.

    Leases of other users are believed by root alone.

    Args:
        gpus: the job's GPUs of this node.
        leases: of this node.
        set_limit: the site's way.

    Returns:
        What was done, a line each.

    Raises:
        LimitError: another job holds a limit on one of them, or what was left cannot be set back.
        LeaseError: the folder cannot be read.
    """
    by_uuid = {gpu.device.uuid: gpu for gpu in gpus}
    own = [
        (found, found.lease, by_uuid[found.lease.gpu])
        for found in leases.of_node(socket.gethostname())
        if found.lease is not None and found.lease.gpu in by_uuid
    ]
    # All of them first: the cap of a cell that runs may be what a dead one has left, too.
    for found, lease, gpu in own:
        if lease.is_held:
            raise LimitError(_holder(found, lease, gpu, leases))
    done: list[str] = []
    for found, lease, gpu in own:
        limits = read_limits(gpu)
        is_left = lease.is_of_this_boot and is_near(limits.set_w, lease.cap_w)
        if lease.uid != os.getuid() and os.getuid() != _ROOT:
            if is_left and not is_near(limits.set_w, limits.default_w):
                raise LimitError(
                    f"{gpu}: job {lease.job_id} of user {lease.uid} was killed and has left a power limit of "
                    f"{lease.cap_w:g} W on it ({limits}); ask the administrator to run `shardwatt "
                    "restore-power-limits --all-dead` on the node"
                )
            continue
        if is_left:
            put_back([gpu], [_as_before(limits, lease)], set_limit)
            done.append(
                f"{gpu}: job {lease.job_id} had left a power limit of {lease.cap_w:g} W; set back to "
                f"{lease.before_w:g} W"
            )
        leases.remove(found.name)
    return done


def _holder(found: Found, lease: Lease, gpu: Gpu, leases: Leases) -> str:
    # Whether a process in another container still runs is not seen from here.
    over = (
        f"; if that job is over, as root there: shardwatt restore-power-limits --job {lease.job_id}"
        if lease.is_elsewhere
        else ""
    )
    return (
        f"{gpu}: job {lease.job_id} of user {lease.uid} holds a power limit of {lease.cap_w:g} W on it "
        f"(process {lease.pid}, lease {leases.folder / found.name}); expected GPUs of this job alone{over}"
    )


@dataclass(frozen=True, slots=True)
class Mending:
    """What is to be set back on a node, and how far leases are believed.

    Attributes:
        job_id: only what this job has left, which is over; None: what any job has that no longer runs.
        owner: only leases of this user, and of root; None: of any.
        job_gpus: the job's GPUs by their numbers in Slurm; None: Slurm has not told.
        limit_w: limit in W for all, whatever leases say; None: each its own.
        dry_run: only say what would be done.
    """

    job_id: str | None
    owner: int | None = None
    job_gpus: Collection[int] | None = None
    limit_w: float | None = None
    dry_run: bool = False


def mend_node(leases: Leases, set_limit: SetLimit, how: Mending) -> Iterator[tuple[bool, str]]:
    """Set back what dead jobs have left on this node's GPUs.

    A GPU is left alone on which a process that runs holds a lease, or whose limit is no longer the one
    that the lease names: then somebody has set it since; leases are looked at again right before it is set.
    What the lease of another user says that the
    limit was before counts only for GPUs that Slurm gave the job; others go to the driver's default. The
    driver is asked only where a limit may have to be set back.

    Args:
        leases: of this node.
        set_limit: as the caller may.
        how: what, and how far leases are believed.

    Yields:
        Whether it is as it should be, and what was done or not, a line each.

    Raises:
        LeaseError: the folder cannot be read.
        GpuError: the driver does not answer.
    """
    all_found = leases.of_node(socket.gethostname())
    held = {
        found.lease.gpu: found.lease
        for found in all_found
        if found.lease is not None and _is_held(found.lease, how)
    }
    dead: list[tuple[Found, Lease]] = []
    for found in all_found:
        lease = found.lease
        if lease is None:
            if how.job_id is None:
                yield True, f"{leases.folder / found.name}: no lease of its owner; left alone"
        elif how.job_id not in (None, lease.job_id):
            continue
        elif how.owner is not None and found.owner not in (how.owner, _ROOT):
            yield False, f"{found.name}: belongs to user {found.owner}, the job to {how.owner}; left alone"
        elif _is_held(lease, how):
            # Well at boot and by cron; a job that is over should hold nothing.
            yield how.job_id is None, f"{found.name}: process {lease.pid} still holds it; left alone"
        elif not lease.is_of_this_boot:
            yield _gone(found, leases, how, "from before the node's last start, which no limit outlives")
        elif lease.gpu in held:
            holder = held[lease.gpu]
            yield True, f"{found.name}: {lease.gpu} is held by job {holder.job_id} now; left alone"
        else:
            dead.append((found, lease))
    if not dead:
        return
    with nvml():
        for found, lease in dead:
            try:
                yield _mend(found, lease, leases, set_limit, how)
            except LimitError as problem:
                yield False, f"{found.name}: {problem}"


def _is_held(lease: Lease, how: Mending) -> bool:
    """Whether a lease's process still runs; one that cannot be seen from here ends with its job."""
    is_over = lease.is_elsewhere and how.job_id == lease.job_id
    return lease.is_held and not is_over


def _gone(found: Found, leases: Leases, how: Mending, why: str) -> tuple[bool, str]:
    if not how.dry_run:
        leases.remove(found.name)
    return True, f"{found.name}: {why}; the lease {'would be' if how.dry_run else 'is'} removed"


def _mend(found: Found, lease: Lease, leases: Leases, set_limit: SetLimit, how: Mending) -> tuple[bool, str]:
    gpus, refused = find_gpus([lease.gpu])
    if refused:
        return False, f"{found.name}: {refused[0]}"
    (gpu,) = gpus
    limits = read_limits(gpu)
    # The driver may have taken seconds: a cell that began meanwhile has mended this itself.
    if since := _since(found, lease, leases, how):
        return True, f"{found.name}: {since}; left alone"
    if not is_near(limits.set_w, lease.cap_w):
        why = f"{gpu} stands at {limits.set_w:g} W, not at the job's {lease.cap_w:g} W"
        return _gone(found, leases, how, why)
    is_jobs = how.job_gpus is not None and _number(gpu) in how.job_gpus
    if how.limit_w is not None:
        wanted = replace(limits, set_w=how.limit_w, enforced_w=how.limit_w)
    elif is_jobs or found.owner == os.getuid():
        wanted = _as_before(limits, lease)
    else:
        wanted = replace(limits, set_w=limits.default_w, enforced_w=limits.default_w)
    if not limits.least_w <= wanted.set_w <= limits.most_w:
        return False, f"{found.name}: {wanted.set_w:g} W is no limit for {gpu} ({limits}); left alone"
    said = f"{gpu}: from {limits.set_w:g} W back to {wanted.set_w:g} W"
    if how.dry_run:
        return True, f"{said} (would be)"
    put_back([gpu], [wanted], set_limit)
    leases.remove(found.name)
    return True, said


def _since(found: Found, lease: Lease, leases: Leases, how: Mending) -> str | None:
    """What has become of a dead lease, or of its GPU, since it was found; None: nothing."""
    now = leases.of_node(socket.gethostname())
    if found not in now:
        return "gone, or another's by now"
    others = (other.lease for other in now if other.lease is not None and other.lease.gpu == lease.gpu)
    holder = next((other for other in others if _is_held(other, how)), None)
    return None if holder is None else f"{lease.gpu} is held by job {holder.job_id} now"


def _as_before(limits: Limits, lease: Lease) -> Limits:
    return replace(limits, set_w=lease.before_w, enforced_w=lease.before_enforced_w)


def _number(gpu: Gpu) -> int:
    """The number by which Slurm knows a GPU: its place in gres.conf.

    It is that of its device file (/dev/nvidia0) where gres.conf lists all GPUs of the node in their order.
    """
    try:
        number: int = pynvml.nvmlDeviceGetMinorNumber(gpu.handle)
    except pynvml.NVMLError:
        return gpu.device.index
    return number
