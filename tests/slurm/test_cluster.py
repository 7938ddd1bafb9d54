"""The test cluster itself: what the other tests here rely on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import slurm_cluster
from slurm_cluster import Cluster
from slurm_cluster.daemons import wait_until
from slurm_cluster.layout import fingerprint
from slurm_cluster.network import bridges

#: A task that only SIGKILL ends.
STUBBORN = "trap '' TERM INT HUP; while :; do sleep 1; done"

#: Configuration and logs, for whoever looks into a failed run.
KEPT = {
    *("slurm.conf", "gres.conf", "cgroup.conf", "slurmdbd.conf", "hosts", "log", "munge.key", "munge.seed"),
}

CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 6818), timeout=5).close()"


def submit(cluster: Cluster, *options: str, command: str) -> int:
    words = ["sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={command}"]
    return int(cluster.run(*words))


def job_state(cluster: Cluster, job_id: int) -> str:
    return cluster.run("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T").strip()


def wait_for_state(cluster: Cluster, job_id: int, state: str) -> None:
    wait_until(lambda: job_state(cluster, job_id) == state, f"job {job_id} is {state}")


def runs_on(cluster: Cluster, job_id: int, *nodes: str) -> bool:
    return any(cluster.node(node).job_pids(job_id) for node in nodes)


def reaches(cluster: Cluster, source: str, target: str) -> bool:
    words = cluster.node(source).command([sys.executable, "-c", CONNECT, target])
    return subprocess.run(words, capture_output=True).returncode == 0


def network_namespace(cluster: Cluster, node: str) -> str:
    words = cluster.node(node).command(["readlink", "/proc/self/ns/net"])
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def leftovers(base: Path) -> list[str]:
    """What a stopped cluster must not have left: processes, mounts, cgroups, bridges, devices, sockets."""
    cgroup = f"shardwatt-{fingerprint(base)}"
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    found = [f"mount {mount[1]}" for mount in mounts if mount[1].startswith(f"{base}/")]
    freezers = [
        Path(mount[1]) for mount in mounts if mount[2] == "cgroup" and "freezer" in mount[3].split(",")
    ]
    found += [f"cgroup {freezer / cgroup}" for freezer in freezers if (freezer / cgroup).exists()]
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may just have ended
            if cgroup in (folder / "cgroup").read_text():
                found.append(f"process {folder.name} {(folder / 'comm').read_text().strip()}")
    found += [f"bridge {name}" for name in bridges(base)]
    found += [f"file {path}" for path in base.iterdir() if path.name not in KEPT]
    return found


def test_every_task_is_on_its_node_with_its_gpus(cluster: Cluster) -> None:
    words = ["srun", "--partition=v100", "--nodes=4", "--ntasks-per-node=2", "--gres=gpu:v100:2"]
    printed = cluster.run(*words, "sh", "-c", 'echo "$(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"')
    assert sorted(printed.splitlines()) == [f"v100-{rank // 2} {rank} 0,1" for rank in range(8)]


def test_a_task_is_found_by_its_job_and_rank(cluster: Cluster) -> None:
    options = ("--nodes=2", "--ntasks-per-node=2", "--nodelist=v100-[0-1]")
    job_id = submit(cluster, *options, command="srun --kill-on-bad-exit=1 sleep 600")
    node = cluster.node("v100-1")
    wait_until(lambda: set(node.task_pids(job_id)) == {2, 3}, "ranks 2 and 3 run on the second node")
    assert cluster.node("v100-2").job_pids(job_id) == []
    os.kill(node.task_pids(job_id)[2], signal.SIGKILL)
    wait_for_state(cluster, job_id, "FAILED")
    wait_until(lambda: not runs_on(cluster, job_id, "v100-0", "v100-1"), "the other ranks have ended too")


def test_a_cancelled_job_leaves_no_process_though_its_tasks_ignore_sigterm(cluster: Cluster) -> None:
    job_id = submit(cluster, "--nodes=2", "--nodelist=v100-[2-3]", command=f'srun sh -c "{STUBBORN}"')
    node = cluster.node("v100-3")
    wait_until(lambda: len(node.task_pids(job_id)) == 1, "the second task runs")
    cluster.run("scancel", str(job_id))
    wait_until(lambda: not runs_on(cluster, job_id, "v100-2", "v100-3"), "nothing of the job is left")
    wait_for_state(cluster, job_id, "CANCELLED")


def test_only_jobs_of_the_low_partition_are_preempted(cluster: Cluster) -> None:
    shape = ("--nodes=2", "--exclusive")
    low = submit(cluster, *shape, "--partition=low", "--nodelist=v100-[0-1]", command="sleep 600")
    ordinary = submit(cluster, *shape, "--partition=v100", "--nodelist=v100-[2-3]", command="sleep 600")
    for job_id in (low, ordinary):
        wait_for_state(cluster, job_id, "RUNNING")
    high = submit(cluster, *shape, "--partition=high", command="sleep 600")
    wait_for_state(cluster, high, "RUNNING")
    assert job_state(cluster, low) == "PENDING"
    assert job_state(cluster, ordinary) == "RUNNING"
    cluster.run("scancel", str(low), str(ordinary), str(high))


def test_a_cut_cable_separates_a_node_from_all_others_until_it_is_plugged_in_again(
    own_cluster: Cluster,
) -> None:
    assert reaches(own_cluster, "v100-0", "a100-1")
    assert reaches(own_cluster, "a100-1", "v100-0")
    own_cluster.node("a100-1").cut_off()
    assert not reaches(own_cluster, "v100-0", "a100-1")
    assert not reaches(own_cluster, "a100-1", "v100-0")
    assert reaches(own_cluster, "v100-0", "a100-0")
    own_cluster.node("a100-1").reconnect()
    assert reaches(own_cluster, "v100-0", "a100-1")


def test_jobs_outlive_their_controller_and_their_slurmd(own_cluster: Cluster) -> None:
    job_id = submit(own_cluster, "--nodelist=v100-0", command="srun sleep 600")
    node = own_cluster.node("v100-0")
    wait_until(lambda: len(node.task_pids(job_id)) == 1, "the task runs")
    tasks = node.task_pids(job_id)
    own_cluster.controller.stop()  # killed, it would forget the last seconds, and this job
    node.kill_slurmd()
    assert node.slurmd_pid() is None
    node.start_slurmd()
    own_cluster.controller.start()
    wait_for_state(own_cluster, job_id, "RUNNING")
    assert node.task_pids(job_id) == tasks


def test_a_node_that_lost_its_power_boots_again(own_cluster: Cluster) -> None:
    job_id = submit(own_cluster, "--nodelist=v100-1", command=STUBBORN)
    node = own_cluster.node("v100-1")
    wait_until(lambda: node.job_pids(job_id, "batch") != [], "the job runs")
    node.switch_off()
    assert node.job_pids(job_id) == []
    assert node.slurmd_pid() is None
    node.boot()
    own_cluster.run("scancel", str(job_id))
    wait_until(lambda: own_cluster.state("v100-1") == "idle", "the node serves again")


def test_two_clusters_run_side_by_side_and_a_stopped_one_leaves_nothing(
    cluster: Cluster, new_base: Callable[[], Path]
) -> None:
    second = Cluster(new_base())
    second.start()
    for each in (cluster, second):
        assert each.run("srun", "--nodes=2", "--ntasks-per-node=1", "hostname").split() != []
    assert second.layout.subnet != cluster.layout.subnet
    job_id = submit(second, "--nodes=4", command=f'srun sh -c "{STUBBORN}"')
    wait_until(lambda: len(second.node("v100-3").task_pids(job_id)) == 1, "the job runs everywhere")
    namespaces = {network_namespace(second, node) for node in second.layout.node_names()}
    assert len(namespaces) == 6
    second.stop()
    # Namespaces live as long as a process or a mount holds them; their numbers are given out again at once.
    assert leftovers(second.base) == []
    assert cluster.state("v100-0") == "idle"


def test_what_a_killed_start_left_is_removed_by_stop(new_base: Callable[[], Path]) -> None:
    base = new_base()
    words = [sys.executable, "-m", "slurm_cluster", "run", f"--folder={base}"]
    tests = Path(slurm_cluster.__file__).parents[1]
    starting = subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(tests)}, stdout=subprocess.DEVNULL)
    wait_until((base / "cgroup/freezer/slurmd_v100-1").exists, "the second node starts")
    starting.kill()
    starting.wait()
    assert leftovers(base) != []
    Cluster(base).stop()
    assert leftovers(base) == []


def test_with_accounting_an_ended_job_is_known_to_sacct(accounting_cluster: Cluster) -> None:
    job_id = submit(accounting_cluster, "--comment=the cell", command="exit 3")
    words = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}"]
    answer = [*words, "--format=State,ExitCode,Comment"]
    wait_until(
        lambda: accounting_cluster.run(*answer).strip() == "FAILED|3:0|the cell", "sacct knows the job's end"
    )
