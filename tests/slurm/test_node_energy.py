"""Slurm's own count of energy on a real Slurm: its plugin for Cray's counters, on counters that are made up.

The plugin reads /sys/cray/pm_counters, and each node has mounts of its own: there a program lets one grow.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

import pytest

from shardwatt.readings import Method, Reading, Status
from shardwatt.run.slurmenergy import slurm_node_energy
from slurm_cluster import Cluster, NodeGroup
from slurm_cluster.daemons import wait_until
from slurm_cluster.nodes import Node

pytestmark = pytest.mark.slurm

#: Power of each node in W, time in s that ranks work, and how often counters grow.
POWER_W, RUN_S, EVERY_S = 300, 4, 0.05

COUNTERS = "/sys/cray/pm_counters"

#: A node's energy counter, in whole J as Cray has it.
GROW = f"""
import os, time
begin_s = time.monotonic()
while True:
    with open("{COUNTERS}/.energy", "w") as stream:
        stream.write(f"{{1000 + int({POWER_W} * (time.monotonic() - begin_s))}} J 0 us\\n")
    os.rename("{COUNTERS}/.energy", "{COUNTERS}/energy")
    time.sleep({EVERY_S})
"""

#: As in a cell: a helper on each node, and the ranks beside it, each step under a name of its own.
JOB = f"""\
srun --overlap --mem=0 --job-name=helper sleep {RUN_S + 2} &
srun --overlap --mem=0 --job-name=ranks sleep {RUN_S}
wait
"""


def has_counter(node: Node) -> bool:
    return subprocess.run(node.command(["test", "-e", f"{COUNTERS}/energy"])).returncode == 0


@pytest.fixture(scope="module")
def counting(
    slurm_machine: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cluster, list[str]]]:
    """A cluster of two nodes with accounting that counts their energy, and the nodes' names."""
    cluster = Cluster(
        tmp_path_factory.mktemp("slurm"), accounting=True, groups=[NodeGroup("v100", 2, gpus_per_node=0)]
    )
    growing: list[subprocess.Popen[bytes]] = []
    with cluster:
        cluster.controller.stop()
        with (cluster.base / "slurm.conf").open("a") as stream:
            stream.write("AcctGatherEnergyType=acct_gather_energy/pm_counters\nAcctGatherNodeFreq=1\n")
        names = cluster.layout.node_names()
        for name in names:
            node = cluster.node(name)
            node.kill_slurmd()
            made = (
                f"mount -t tmpfs counters /sys && mkdir -p {COUNTERS} && echo 300 W 0 us > {COUNTERS}/power"
            )
            subprocess.run(node.command(["sh", "-c", made]), check=True)
            program = node.command([sys.executable, "-c", GROW])
            growing.append(subprocess.Popen(program, stderr=subprocess.DEVNULL))
            wait_until(partial(has_counter, node), f"the counter of {name} grows")
            node.start_slurmd()
        cluster.controller.start()
        wait_until(lambda: all(cluster.state(name) == "idle" for name in names), "all nodes are idle")
        try:
            yield cluster, names
        finally:
            for process in growing:
                process.kill()
                process.wait()


def run_job(cluster: Cluster, *options: str) -> tuple[str, float]:
    """Run the job to its end; returns its number, and how long it took in s at most."""
    begin_s = time.monotonic()
    words = ["sbatch", "--parsable", "--wait", "--output=/dev/null", "--nodes=2", *options, f"--wrap={JOB}"]
    return cluster.run(*words).strip(), time.monotonic() - begin_s


def energy(job_id: str, nodes: list[str], step_name: str = "ranks") -> Reading:
    return slurm_node_energy(job_id, nodes, step_name=step_name, is_shared=False)


def test_the_ranks_step_has_the_joules_of_its_nodes_and_the_helpers_step_is_not_added(
    counting: tuple[Cluster, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, nodes = counting
    monkeypatch.setenv("SLURM_CONF", cluster.environment()["SLURM_CONF"])
    job_id, took_s = run_job(cluster, "--exclusive")
    reading = energy(job_id, nodes)
    assert (reading.status, reading.method) == (Status.MEASURED, Method.SLURM_NODE), reading.detail
    assert reading.joules is not None
    # Not less than while the ranks worked, but for a reading before and one after; not more than the job.
    least_j = 2 * POWER_W * (RUN_S - 2 * EVERY_S) - 4
    assert least_j <= reading.joules <= 2 * POWER_W * took_s
    helper = energy(job_id, nodes, "helper").joules
    assert helper is not None
    assert helper > reading.joules
    assert reading.detail
    assert "acct_gather_energy/pm_counters" in reading.detail
    shared_id, _ = run_job(cluster, "--ntasks=2")
    shared = energy(shared_id, nodes)
    assert (shared.joules, shared.status) == (None, Status.UNAVAILABLE)
    assert shared.detail
    assert "right only for whole nodes" in shared.detail


def test_a_node_without_a_counter_takes_the_joules_of_all(
    counting: tuple[Cluster, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, nodes = counting
    monkeypatch.setenv("SLURM_CONF", cluster.environment()["SLURM_CONF"])
    node = cluster.node(nodes[1])
    subprocess.run(node.command(["mv", "/sys/cray", "/sys/away"]), check=True)
    job_id, _ = run_job(cluster, "--exclusive")
    reading = energy(job_id, nodes)
    assert (reading.joules, reading.status) == (None, Status.UNAVAILABLE)
    assert reading.detail
    assert "Slurm has no energy for the ranks' step" in reading.detail
