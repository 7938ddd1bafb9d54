"""Guards power caps on a real Slurm: set on every node before loading, told as enforced, and set back.

The nodes' simulated GPUs draw as much as their limits let them. What the driver remembers of limits is a
file that all nodes share, a line a change, each with its node's name; so is the folder of leases.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from limited_gpus import NVIDIA_SMI, site_script
from shardwatt.errors import Reason
from shardwatt.layout import CellPaths
from shardwatt.recordfiles import read
from shardwatt.records import Record
from simulated_nvml import build, settings
from slurm_cluster import Cluster, NodeGroup
from slurm_project import SlurmProject, await_true
from workflow_project import RECIPE

pytestmark = pytest.mark.slurm

CAP_W = 175
#: Before, and what the GPUs would draw, in W.
FOUND_W, DRAWN_W = 300, 260
#: Splits into four shards.
SHARDS = [2, 4]
MODEL = {**RECIPE, "n_heads": 8, "shards": SHARDS}
GPUS = [(f"v100-{node}", index) for node in (0, 1) for index in (0, 1)]


@dataclass
class CappedCluster:
    """A cluster of two nodes with two GPUs each, and a project on it.

    Attributes:
        folder: of what its nodes share.
        project: on it.
    """

    folder: Path
    project: SlurmProject

    @property
    def nodes(self) -> list[str]:
        return self.project.cluster.layout.node_names()

    def write_site(self, *environment: str, **power_limits: str | list[str]) -> None:
        """Types of GPUs of which a cell takes one or two a node, and who sets their limits."""
        kind = {"kind": "cpu", "meter": "nvml", "memory_gib": 0.5, "environment": environment}
        words = {"partition": "v100", "gres": "gpu:v100", "nodes": 2}
        gpus = {name: {**kind, "per_node": count, "slurm": words} for name, count in (("one", 1), ("two", 2))}
        self.project.write_site(gpus, power_limits=power_limits)

    @contextmanager
    def other_site(self, *environment: str, **power_limits: str | list[str]) -> Iterator[None]:
        """Another site's way to set limits, or lines that nodes run first, for the time of a test."""
        self.write_site(*environment, **power_limits)
        try:
            yield
        finally:
            self.write_site(**self.usual)

    @property
    def usual(self) -> dict[str, str]:
        return {"set_by": "nvml", "leases": str(self.folder / "leases")}

    @contextmanager
    def switched_on(self, name: str) -> Iterator[None]:
        """What a Prolog or an Epilog looks for is there."""
        switch = self.folder / name
        switch.touch()
        try:
            yield
        finally:
            switch.unlink()

    def changes_w(self) -> list[tuple[tuple[str, int], float]]:
        """Every limit that a driver has accepted: node and GPU, and W, in order."""
        state = self.folder / "driver"
        if not state.exists():
            return []
        rows = (line.split() for line in state.read_text().splitlines())
        return [((node, int(gpu)), float(limit_mw) / 1e3) for node, gpu, _, limit_mw, _ in rows]

    def limits_w(self) -> dict[tuple[str, int], float]:
        """The limit of each GPU now."""
        return dict.fromkeys(GPUS, float(FOUND_W)) | dict(self.changes_w())

    def are_all(self, limit_w: float) -> bool:
        return set(self.limits_w().values()) == {limit_w}

    def leases(self) -> list[str]:
        folder = self.folder / "leases"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    def assert_all_as_found(self) -> None:
        await_true(lambda: self.are_all(FOUND_W), "limits as they were", said=lambda: str(self.limits_w()))
        await_true(lambda: self.leases() == [], "no lease", said=lambda: str(self.leases()))

    def cells(self, study: str) -> dict[str, CellPaths]:
        return {paths.cell.cap: paths for paths in self.project.cells(study)}


def make_scripts(folder: Path, environment: dict[str, str]) -> list[str]:
    """The scripts for sites as the cluster's Prolog and Epilog: those for comments while a file `comments`
    is there, that for leases while a file `leases-too` is; the lines of slurm.conf that name them."""
    programs = folder / "bin"
    programs.mkdir()
    variables = " ".join(f"{name}='{value}'" for name, value in environment.items())
    (folder / "nvidia-smi.py").write_text(NVIDIA_SMI)
    for name, line in {
        "shardwatt": f'exec env {variables} "{sys.executable}" -m shardwatt "$@"',
        "nvidia-smi": f"exec env {variables} '{sys.executable}' '{folder}/nvidia-smi.py' \"$@\"",
        "logger": f"cat >>'{folder}/epilog.log'",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    path = f"{programs}:/usr/sbin:/usr/bin:/sbin:/bin"
    # The nodes share this machine's files: each has notes of its own.
    notes = folder / "notes"
    for node in ("v100-0", "v100-1"):
        (folder / node).mkdir()
        for name in ("comment-prolog.sh", "comment-epilog.sh"):
            site_script(name, folder / node, PATH=path, notes=notes / node)
    leases = site_script(
        "leases-epilog.sh", folder, PATH=path, leases=folder / "leases", shardwatt=programs / "shardwatt"
    )
    also = f"[ ! -e '{folder}/leases-too' ] || '{leases}'\n"
    lines = []
    for when, more in (("Prolog", ""), ("Epilog", also)):
        script = folder / when
        own = f"'{folder}'/\"$(uname -n)\"/comment-{when.lower()}.sh"
        script.write_text(f"#!/bin/sh\n[ ! -e '{folder}/comments' ] || {own}\n{more}exit 0\n")
        script.chmod(0o755)
        lines.append(f"{when}={script}")
    return lines


@pytest.fixture(scope="module")
def capped(
    slurm_machine: None,
    new_project: Callable[[Path, Cluster, Path], SlurmProject],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[CappedCluster]:
    folder = tmp_path_factory.mktemp("caps")
    library = build(folder / "library")
    environment = settings(
        library,
        POWER="|".join(f"{node}={DRAWN_W};{DRAWN_W}" for node in ("v100-0", "v100-1")),
        LIMITS=f"100:{FOUND_W}:{FOUND_W}",
        STATE=folder / "driver",
    )
    # Steps one of whose tasks has ended are ended by Slurm, unless they say otherwise.
    conf = [*make_scripts(folder, environment), "WaitTime=2", "KillOnBadExit=1"]
    groups = [NodeGroup("v100", 2, gpus_per_node=2)]
    with Cluster(tmp_path_factory.mktemp("slurm"), groups=groups, conf=conf) as cluster:
        project = new_project(folder / "a project", cluster, tmp_path_factory.mktemp("models"))
        project.environment |= environment
        (project.root / "config" / "models" / "tiny.yaml").write_text(yaml.safe_dump(MODEL))
        made = CappedCluster(folder, project)
        made.write_site(**made.usual)
        for shards in SHARDS:
            done = project.shardwatt("make-model", "tiny", str(shards))
            assert done.returncode == 0, done.stderr
        try:
            yield made
        finally:
            project.stop()


def write_study(capped: CappedCluster, name: str, **axes: Any) -> None:
    project = capped.project
    words = {"idle_read_s": 0, **axes.pop("words", {})}
    project.write_study(name, **words, matrix=project.block(**axes))


def powers_w(paths: CellPaths) -> set[float]:
    """Every power in W that was sampled on any GPU."""
    return set(pq.read_table(paths.results / "power.parquet")["power_w"].to_pylist())


def submit(capped: CappedCluster, study: str) -> str:
    """Submit a study's cells as one job, and return its number."""
    done = capped.project.shardwatt("run-together", study)
    assert done.returncode == 0, done.stderr
    (number,) = re.findall(r"^job ([0-9]+): ", done.stdout, re.MULTILINE)
    return str(number)


def await_no_job(capped: CappedCluster) -> None:
    queue = ("squeue", "--noheader")
    await_true(lambda: not capped.project.cluster.run(*queue).strip(), "an empty queue")


def test_caps_hold_on_every_gpu_of_every_node_one_after_the_other_in_one_job(capped: CappedCluster) -> None:
    caps_w = [CAP_W, 200]
    write_study(capped, "capped", gpu="two", shards=4, cap=[*caps_w, "none"], length=4)
    submit(capped, "capped")
    await_no_job(capped)
    cells = capped.cells("capped")
    for cap_w in caps_w:
        record = read(Record, cells[str(cap_w)].record)
        assert record.power_cap is not None
        assert (record.power_cap.asked_w, record.power_cap.set_by) == (cap_w, "nvml")
        assert [(one.device.node, one.device.index) for one in record.power_cap.devices] == GPUS
        for one in record.power_cap.devices:
            limits_w = (one.before_w, one.enforced_w, one.after_w, one.restored_w)
            assert limits_w == (FOUND_W, cap_w, cap_w, FOUND_W)
        # From before the meters were on, and to the end.
        assert powers_w(cells[str(cap_w)]) == {cap_w}
    free = read(Record, cells["none"].record)
    assert free.power_cap is None
    assert powers_w(cells["none"]) == {DRAWN_W}
    # On each GPU, once for each cap: the limit that was found, to see that it can be set; the cap; and back.
    for gpu in GPUS:
        own_w = [limit_w for changed, limit_w in capped.changes_w() if changed == gpu]
        assert own_w[::3] == own_w[2::3] == [FOUND_W] * len(caps_w)
        assert sorted(own_w[1::3]) == caps_w
    assert capped.leases() == []
    capped.project.assert_nothing_left()


def test_a_refused_cap_fails_with_its_numbers_and_is_not_tried_again(capped: CappedCluster) -> None:
    project = capped.project
    write_study(capped, "refused", gpu="two", shards=4, cap=999, length=4)
    (paths,) = capped.cells("refused").values()
    changes = capped.changes_w()
    run = project.start("--retries", "1", paths.target)
    assert run.ended() != 0, run.output
    failure = project.failure(paths)
    assert failure.reason is Reason.POWER_CAP_REFUSED
    assert failure.node in capped.nodes
    for node in capped.nodes:
        assert f"{node}: a limit of 999 W is outside of what the driver takes" in failure.message
    assert f"found at {FOUND_W} W, takes 100 to {FOUND_W} W, default {FOUND_W} W" in failure.message
    assert "attempt 2: not tried again" in failure.message
    # No rank was ever started, and no limit changed.
    assert not list(paths.logs.glob("rank-*.log"))
    assert capped.changes_w() == changes
    assert capped.leases() == []
    project.assert_nothing_left()


def test_a_node_that_cannot_start_its_guard_is_told_at_once_and_by_name(capped: CappedCluster) -> None:
    project = capped.project
    write_study(capped, "half", engine="simulated", gpu="one", shards=2, cap=CAP_W, length=4)
    (paths,) = capped.cells("half").values()
    broken = '[ "$(uname -n)" != v100-1 ]'
    with capped.other_site(broken, **capped.usual):
        submit(capped, "half")
        await_no_job(capped)
    failure = project.failure(paths)
    assert (failure.reason, failure.node) == (Reason.CONFIGURATION, "v100-1")
    assert "not ready for its power limits: environment line 1 failed" in failure.message
    capped.assert_all_as_found()
    project.assert_nothing_left()


def test_a_slow_node_has_time_to_set_its_limits_back(capped: CappedCluster) -> None:
    """Its neighbour has long ended: Slurm would kill it after WaitTime."""
    command = capped.folder / "set-slowly"
    command.write_text(
        f'#!/bin/sh\n[ "$(uname -n) $1" != "v100-1 {FOUND_W}" ] || sleep 4\n'
        f'exec "{capped.folder}/bin/nvidia-smi" -i "$2" -pl "$1"\n'
    )
    command.chmod(0o755)
    words = [str(command), "{watts}", "{gpus}"]
    write_study(capped, "slow", engine="simulated", gpu="one", shards=2, cap=CAP_W, length=4)
    (paths,) = capped.cells("slow").values()
    with capped.other_site(set_by="command", command=words, leases=str(capped.folder / "leases")):
        submit(capped, "slow")
        await_no_job(capped)
    record = read(Record, paths.record)
    assert record.power_cap is not None
    assert [one.restored_w for one in record.power_cap.devices] == [FOUND_W, FOUND_W]
    capped.assert_all_as_found()
    capped.project.assert_nothing_left()


def start_slow(capped: CappedCluster, study: str) -> tuple[CellPaths, str]:
    """Start a cell with a cap that goes on for minutes; and its job, once it has begun."""
    project = capped.project
    # No model runs: the guards are the same.
    axes = {"engine": "simulated", "gpu": "one", "shards": 2, "cap": CAP_W}
    write_study(capped, study, words={"simulated_window_s": 300.0}, **axes)
    (paths,) = capped.cells(study).values()
    number = submit(capped, study)
    project.await_run(paths)
    # The job has a GPU of each node; the other one is not its to limit.
    assert sorted(capped.limits_w().values()) == [CAP_W, CAP_W, FOUND_W, FOUND_W]
    assert len(capped.leases()) == 2
    return paths, number


def test_a_cancelled_job_sets_its_limits_back(capped: CappedCluster) -> None:
    paths, number = start_slow(capped, "cancelled")
    capped.project.cluster.run("scancel", number)
    capped.assert_all_as_found()
    await_no_job(capped)
    assert capped.project.failure(paths).reason is Reason.CANCELLED
    capped.project.assert_nothing_left()


def words_of(pid: int) -> list[str]:
    """A process's command line."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def start_and_kill_guards(capped: CappedCluster, study: str) -> None:
    """Kill the guards of a running cell on all nodes, and with them all that would set its limits back."""
    paths, number = start_slow(capped, study)
    nodes = [capped.project.cluster.node(name) for name in capped.nodes]
    pids = [pid for node in nodes for pid in node.job_pids(int(number))]
    # srun has the same words further on.
    guards = [pid for pid in pids if words_of(pid)[1:3] == ["-m", "shardwatt.power.limits.guard"]]
    assert len(guards) == len(nodes)
    for pid in guards:
        os.kill(pid, signal.SIGKILL)
    await_no_job(capped)
    failure = capped.project.failure(paths)
    assert failure.reason is Reason.POWER_CAP_LOST
    assert "ended" in failure.message


def test_what_killed_guards_leave_is_mended_by_the_next_cell_that_has_no_cap(capped: CappedCluster) -> None:
    start_and_kill_guards(capped, "killed")
    assert sorted(capped.limits_w().values()) == [CAP_W, CAP_W, FOUND_W, FOUND_W]
    assert len(capped.leases()) == 2

    write_study(capped, "next", gpu="one", shards=2, length=4)
    (free,) = capped.cells("next").values()
    submit(capped, "next")
    await_no_job(capped)
    capped.assert_all_as_found()
    assert powers_w(free) == {DRAWN_W}
    said = free.supervisor_log.read_text()
    assert said.count(f"had left a power limit of {CAP_W} W; set back to {FOUND_W} W") == 2
    capped.project.assert_nothing_left()


def test_what_killed_guards_leave_is_mended_by_an_epilog(capped: CappedCluster) -> None:
    with capped.switched_on("leases-too"):
        start_and_kill_guards(capped, "mended")
        capped.assert_all_as_found()
    log = capped.folder / "epilog.log"
    await_true(
        lambda: log.exists() and log.read_text().count(f"from {CAP_W} W back to {FOUND_W} W") == 2, "logs"
    )
    for node in capped.nodes:
        assert f"of {node}: from" in log.read_text()
    capped.project.assert_nothing_left()


def test_a_prolog_sets_the_cap_that_a_jobs_comment_names_and_an_epilog_sets_it_back(
    capped: CappedCluster,
) -> None:
    write_study(capped, "by-prolog", gpu="one", shards=2, cap=CAP_W, length=4)
    (paths,) = capped.cells("by-prolog").values()
    with capped.other_site(set_by="prolog"), capped.switched_on("comments"):
        run = capped.project.start(paths.target)
        assert run.ended() == 0, run.output
        capped.project.assert_nothing_left()
        capped.assert_all_as_found()
    record = read(Record, paths.record)
    assert record.power_cap is not None
    assert record.power_cap.set_by == "prolog"
    assert [one.device.node for one in record.power_cap.devices] == capped.nodes
    for one in record.power_cap.devices:
        limits_w = (one.before_w, one.enforced_w, one.after_w, one.restored_w)
        assert limits_w == (None, CAP_W, CAP_W, None)
    assert powers_w(paths) == {CAP_W}
