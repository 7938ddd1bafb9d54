"""Slurm's own count of energy: when it is a reading, and why it is none; texts are those of Slurm 22.05.8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from shardwatt.readings import Method, Reading, Scope, Status
from shardwatt.run.allocation import Allocation
from shardwatt.run.slurmenergy import slurm_node_energy
from still_clock import StillClock

CONFIG = """\
Configuration data as of 2026-11-21T16:48:05
AccountingStorageType   = {storage}
AcctGatherEnergyType    = {plugin}
AcctGatherNodeFreq      = {every} sec
JobAcctGatherFrequency  = 30

Account Gather
"""
JOB = """\
JobId=2 JobName=job.sh
   JobState=RUNNING Reason=None Dependency=(null)
   NodeList=v100-[0-1]
   OverSubscribe={sharing} Contiguous=0 Licenses=(null) Network=(null)
   Command=/scratch/job.sh
"""
STEPS = [
    ("job.sh", "RUNNING", "2", "5", ""),
    ("batch", "RUNNING", "1", "5", "0"),
    ("shardwatt-sampler", "RUNNING", "2", "5", "0"),
    ("ranks", "COMPLETED", "2", "40", "22800"),
]


@dataclass
class FakeSlurm:
    """Commands that print what a real Slurm did; there are no others on PATH.

    Attributes:
        folder: where they lie.
    """

    folder: Path

    def command(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def config(
        self, plugin: str = "acct_gather_energy/ipmi", *, every: int = 2, storage: str = "slurmdbd"
    ) -> None:
        text = CONFIG.format(plugin=plugin, every=every, storage=f"accounting_storage/{storage}")
        (self.folder / "config.txt").write_text(text)

    def job(self, sharing: str = "NO") -> None:
        (self.folder / "job.txt").write_text(JOB.format(sharing=sharing))

    def steps(self, *steps: tuple[str, ...]) -> None:
        lines = ("\x1f".join(step) for step in steps)
        (self.folder / "steps.txt").write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm with energy, accounting, and a job of two whole nodes whose ranks have ended."""
    fake = FakeSlurm(tmp_path / "bin")
    fake.folder.mkdir()
    monkeypatch.setenv("PATH", str(fake.folder))
    fake.command("scontrol", f'[ "$2" = job ] && what=job || what=config; /bin/cat {fake.folder}/$what.txt')
    fake.command("sacct", f"/bin/cat {fake.folder}/steps.txt")
    fake.config()
    fake.job()
    fake.steps(*STEPS)
    # Its pauses take no time, where nothing will change; a busy machine's commands get all they need.
    monkeypatch.setattr("shardwatt.run.slurmenergy.time", StillClock(long=40))
    monkeypatch.setattr("shardwatt.run.slurmenergy._PATIENCE_S", 60.0)
    return fake


def read(nodes: int = 2, *, job_id: str | None = "2", is_shared: bool = False) -> Reading:
    names = [f"v100-{number}" for number in range(nodes)]
    return slurm_node_energy(job_id, names, step_name="ranks", is_shared=is_shared)


def test_joules_of_the_ranks_step_are_measured_with_what_counts_them(slurm: FakeSlurm) -> None:
    reading = read()
    assert (reading.joules, reading.method, reading.status) == (22800, Method.SLURM_NODE, Status.MEASURED)
    assert reading.scope is Scope.ALL_NODES
    assert reading.coverage.nodes == ["v100-0", "v100-1"]
    # Two borders, each somewhere in 2 s, at 570 W.
    assert reading.uncertainty_j == pytest.approx(570 * 2 * 2)
    assert reading.detail
    for words in ("acct_gather_energy/ipmi", "the node, by its BMC", "every 2 s", "40 s", "loading included"):
        assert words in reading.detail


def test_what_rapl_counts_is_said_to_be_no_node(slurm: FakeSlurm) -> None:
    slurm.config("acct_gather_energy/rapl,acct_gather_energy/gpu", every=0)
    reading = read()
    assert reading.status is Status.MEASURED
    assert reading.detail
    assert "processors and memory alone" in reading.detail
    assert "every" not in reading.detail
    assert reading.uncertainty_j == pytest.approx(570 * 2)  # Slurm counts whole seconds


@pytest.mark.parametrize(
    ("plugin", "words"),
    [
        ("acct_gather_energy/none", "AcctGatherEnergyType is none"),
        ("(null)", "AcctGatherEnergyType is not set"),
        ("acct_gather_energy/gpu", "AMD's GPUs alone; for NVIDIA's it is an empty stub"),
        ("acct_gather_energy/new", "AcctGatherEnergyType is new"),
    ],
)
def test_without_a_plugin_that_counts_energy_is_unsupported(
    slurm: FakeSlurm, plugin: str, words: str
) -> None:
    slurm.config(plugin)
    reading = read()
    assert (reading.joules, reading.method, reading.status) == (None, None, Status.UNSUPPORTED)
    assert reading.coverage.nodes == []
    assert reading.coverage.nodes_expected == 2
    assert reading.detail
    assert words in reading.detail


@pytest.mark.parametrize("sharing", ["OK", "YES", "USER"])
def test_nodes_that_others_may_share_have_no_energy_of_this_job(slurm: FakeSlurm, sharing: str) -> None:
    slurm.job(sharing)
    assert_unavailable("right only for whole nodes")


def assert_unavailable(words: str, nodes: int = 2) -> None:
    reading = read(nodes)
    assert (reading.joules, reading.method, reading.status) == (None, None, Status.UNAVAILABLE)
    assert reading.detail
    assert words in reading.detail


def test_without_accounting_it_is_unavailable(slurm: FakeSlurm) -> None:
    slurm.config(storage="none")
    assert_unavailable("Slurm has no accounting here")


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        ("0", "0 J, which no node draws"),
        ("", "no energy"),
        ("18446744073709551614", "no energy"),
        ("4294967294", "no energy"),
        ("99000000", "more than nodes can draw"),
    ],
)
def test_what_cannot_be_joules_is_never_written_as_such(slurm: FakeSlurm, energy: str, words: str) -> None:
    slurm.steps(*STEPS[:-1], ("ranks", "COMPLETED", "2", "40", energy))
    assert_unavailable(words)


@pytest.mark.parametrize(
    ("steps", "nodes", "words"),
    [
        (STEPS[:-1], 2, "does not know step ranks of job 2"),
        ([*STEPS, STEPS[-1]], 2, "2 steps ranks"),
        ([("ranks", "RUNNING", "2", "40", "22800")], 2, "did not know the end of step ranks"),
        (STEPS, 3, "had 2 nodes in Slurm; expected 3"),
    ],
)
def test_another_step_than_the_ended_one_of_all_ranks_is_refused(
    slurm: FakeSlurm, steps: list[tuple[str, ...]], nodes: int, words: str
) -> None:
    slurm.steps(*steps)
    assert_unavailable(words, nodes)


def test_the_accounting_may_lag_a_moment(slurm: FakeSlurm) -> None:
    folder = slurm.folder
    slurm.steps(*STEPS[:-1], ("ranks", "RUNNING", "2", "39", "0"))
    (folder / "later.txt").write_text("\x1f".join(STEPS[-1]) + "\n")
    slurm.command("sacct", f"/bin/cat {folder}/steps.txt; /bin/cp {folder}/later.txt {folder}/steps.txt")
    assert read().joules == 22800


def test_sacct_that_fails_is_a_reason_and_no_error(slurm: FakeSlurm) -> None:
    slurm.command("sacct", "echo 'sacct: error: Problem talking to the database' >&2; exit 1")
    assert_unavailable("Problem talking to the database")


def test_sacct_that_hangs_is_given_up(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardwatt.run.slurmenergy._PATIENCE_S", 0.6)
    slurm.command("sacct", "exec /bin/sleep 60")
    assert_unavailable("no answer in 1 s")


def test_a_step_of_several_cells_and_no_job_at_all_have_no_energy(slurm: FakeSlurm) -> None:
    shared = read(is_shared=True)
    assert (shared.joules, shared.status) == (None, Status.UNAVAILABLE)
    assert shared.detail
    assert "ran others too" in shared.detail
    for path in slurm.folder.iterdir():
        path.unlink()
    alone = read(job_id=None)
    assert (alone.joules, alone.status, alone.detail) == (None, Status.UNAVAILABLE, "no Slurm job")


def test_the_job_of_a_cell_knows_whether_others_may_be_on_its_nodes(slurm: FakeSlurm) -> None:
    for sharing, expected in [("NO", True), ("OK", False), ("USER", False)]:
        slurm.job(sharing)
        assert Allocation("2", 60.0).has_whole_nodes is expected
    slurm.command("scontrol", "exit 1")
    assert Allocation("2", 60.0).has_whole_nodes is None
