"""Texts of Slurm's configuration files."""

from __future__ import annotations

from collections.abc import Sequence

from slurm_cluster.layout import CPUS_PER_NODE, MEMORY_PER_NODE_MB, Layout, NodeGroup

#: Lines for slurm.conf, in the place of patient ones. A dead node is down after some 30 s: pings come in
#: rounds, and each has its own time-out.
LOSES_NODES_SOON = ("SlurmdTimeout=10", "MessageTimeout=10", "TCPTimeout=2")
#: Whoever asks a controller that is away gives up after 20 s; Slurm's own default is 10.
ANSWERS_SOON = ("MessageTimeout=20",)
#: What ignores SIGTERM is gone after some 7 s.
KILLS_SOON = ("KillWait=2",)

CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint={mountpoint}
CgroupAutomount=no
"""

SLURM_CONF = """\
ClusterName={layout.cluster_name}
SlurmctldHost={layout.login_name}({layout.login_address})
SlurmctldPort={layout.controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits until its credential has expired: 120 s by default.
AuthInfo=socket={layout.munge_socket},cred_expire=20
CredType=cred/munge
MpiDefault=none
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/pid/slurmctld.pid
SlurmdPidFile={base}/pid/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
SlurmctldDebug=info
SlurmdDebug=info

# Every process of a job is found by its cgroup, also one that ignores SIGTERM.
ProctrackType=proctrack/cgroup
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
# More processors and memory than this machine has.
SlurmdParameters=config_overrides

# A machine that is busy with the ranks of many nodes answers late, and no node is dead.
SlurmdTimeout=600
MessageTimeout=60
TCPTimeout=30
BatchStartTimeout=300
KillWait=30
# A job that has ended stays visible to squeue, however late the look.
MinJobAge=3600
# A node that comes back serves again, whatever it was set down for.
ReturnToService=2
OverTimeLimit=0
InactiveLimit=0
# Slurm's default, and most sites': a job that lost its node, or was preempted, is queued again
# unless it was submitted with --no-requeue.
JobRequeue=1

SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=1,sched_min_interval=100000,defer_batch
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory_per_cpu_mb}
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{accounting}
PartitionName=DEFAULT State=UP MaxTime=INFINITE DefaultTime=10 PriorityTier=10 PreemptMode=OFF
"""

WITH_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={layout.login_address}
AccountingStoragePort={layout.database_port}
# With munge this is no password but munged's socket, for sacct and slurmctld.
AccountingStoragePass={layout.munge_socket}
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
"""

SLURMDBD_CONF = """\
DbdHost={layout.login_name}
DbdAddr={layout.login_address}
DbdPort={layout.database_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
StorageType=accounting_storage/mysql
StorageUser=root
StorageLoc=slurm_acct_db
PidFile={base}/pid/slurmdbd.pid
LogFile={base}/log/slurmdbd.log
DebugLevel=info
CommitDelay=0
"""


def write_config(layout: Layout, more: Sequence[str] = ()) -> None:
    """Write every configuration file into the base folder.

    Args:
        layout: the cluster's.
        more: lines for slurm.conf, e.g. `Epilog=/path`; they replace those of the same key.
    """
    base = layout.base
    own = {line.partition("=")[0] for line in more}
    usual = [line for line in _slurm_conf(layout).splitlines() if line.partition("=")[0] not in own]
    layout.slurm_conf.write_text("".join(f"{line}\n" for line in [*more, *usual]))
    (base / "gres.conf").write_text(_gres_conf(layout))
    (base / "cgroup.conf").write_text(CGROUP_CONF.format(mountpoint=layout.folder("cgroup")))
    (base / "hosts").write_text(_hosts(layout))
    if layout.accounting:
        dbd = base / "slurmdbd.conf"
        dbd.write_text(SLURMDBD_CONF.format(layout=layout, base=base))
        dbd.chmod(0o600)  # slurmdbd refuses to start otherwise


def _slurm_conf(layout: Layout) -> str:
    lines = [
        SLURM_CONF.format(
            layout=layout,
            base=layout.base,
            memory_per_cpu_mb=MEMORY_PER_NODE_MB // CPUS_PER_NODE,
            accounting=WITH_ACCOUNTING.format(layout=layout) if layout.accounting else "",
        )
    ]
    for group in layout.groups:
        lines += _node_lines(layout, group)
    for number, group in enumerate(layout.groups):
        default = " Default=YES" if number == 0 else ""
        lines.append(f"PartitionName={group.name} Nodes={_node_range(group)}{default}")
    # Jobs of `high` push those of `low` off the same nodes; no other job is ever pushed.
    first = _node_range(layout.groups[0])
    lines.append(f"PartitionName=low Nodes={first} PriorityTier=1 PreemptMode=REQUEUE")
    lines.append(f"PartitionName=high Nodes={first} PriorityTier=20")
    return "\n".join(lines) + "\n"


def _node_lines(layout: Layout, group: NodeGroup) -> list[str]:
    shape = f"CPUs={CPUS_PER_NODE} Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS_PER_NODE} ThreadsPerCore=1"
    gres = f" Gres=gpu:{group.name}:{group.gpus_per_node}" if group.gpus_per_node else ""
    return [
        f"NodeName={name} NodeAddr={layout.address(name)} {shape} RealMemory={MEMORY_PER_NODE_MB}"
        f" Feature={group.name}{gres}"
        for name in group.node_names()
    ]


def _node_range(group: NodeGroup) -> str:
    return f"{group.name}-[0-{group.nodes - 1}]" if group.nodes > 1 else f"{group.name}-0"


def _gres_conf(layout: Layout) -> str:
    lines = ["AutoDetect=off"]
    for group in layout.groups:
        lines += [
            f"NodeName={_node_range(group)} Name=gpu Type={group.name} File={layout.base}/dev/nvidia{number}"
            for number in range(group.gpus_per_node)
        ]
    return "\n".join(lines) + "\n"


def _hosts(layout: Layout) -> str:
    lines = ["127.0.0.1 localhost", f"{layout.login_address} {layout.login_name}"]
    lines += [f"{layout.address(name)} {name}" for name in layout.node_names()]
    return "\n".join(lines) + "\n"
