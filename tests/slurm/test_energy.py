"""Guards the joules of cells over several nodes on a real Slurm, against simulated GPUs whose power is known.

Each node's GPUs draw a power of their own, so that looking at one node and multiplying must come out wrong by
a known amount. The nodes' monotonic clocks are a thousand seconds apart, as those of real machines are.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

import simulated_dcgm
from shardwatt.attempts import Failure
from shardwatt.errors import INCURABLE, Reason
from shardwatt.layout import CellPaths
from shardwatt.readings import DeviceEnergy, Energy, Method, Status
from shardwatt.recordfiles import read
from shardwatt.records import Outcome, Record
from simulated_nvml import build, settings
from slurm_cluster import Cluster
from slurm_project import SlurmProject, await_true, tail
from workflow_project import RECIPE

pytestmark = pytest.mark.slurm

STUDY = "energy"

#: Answers run to their full length, so that windows last for seconds.
SHARDS = 4
MODEL = {**RECIPE, "n_heads": 8, "shards": [SHARDS], "mean_response_tokens": 100_000}

#: W of each GPU of a node.
POWER_W = {
    **{f"v100-{number}": (100 + 50 * number, 130 + 50 * number) for number in range(4)},
    "a100-0": (200, 250),
    "a100-1": (220, 270),
}
TICK_S = 0.1

#: Two nodes, a node, two nodes one of which has no driver, and two nodes of one GPU.
WHOLE, ONE, HALF, PAIR = "v100", "a100", "half", "pair"


def power() -> str:
    """The programmes of all hosts, as the simulated library takes them."""
    by_host = [f"{host}={';'.join(map(str, watts))}" for host, watts in POWER_W.items()]
    return "|".join([*by_host, "1"])


def gpu_types() -> dict[str, dict[str, Any]]:
    def kind(per_node: int, **words: Any) -> dict[str, Any]:
        return {"kind": "cpu", "meter": "nvml", "per_node": per_node, "memory_gib": 1, "slurm": words}

    # Its second node loses the driver's library: rank 0 is on the first.
    lost = 'if [ "$SLURM_NODEID" = 1 ]; then unset LD_LIBRARY_PATH; fi'
    own_python = f'export PATH="{Path(sys.executable).parent}:$PATH"'
    return {
        WHOLE: kind(2, partition="v100", gres="gpu:v100", nodes=4),
        ONE: kind(2, partition="a100", gres="gpu:a100", nodes=2),
        HALF: kind(1, partition="v100", gres="gpu:v100", nodes=4) | {"environment": [own_python, lost]},
        PAIR: kind(1, partition="v100", gres="gpu:v100", nodes=4),
    }


@dataclass
class Finished:
    """A run that has come to its end.

    Attributes:
        project: whose run it was.
        cells: by GPU type.
        records: of those with a result.
    """

    project: SlurmProject
    cells: dict[str, CellPaths] = field(init=False)
    records: dict[str, Record] = field(init=False)

    def __post_init__(self) -> None:
        self.cells = {paths.cell.gpu: paths for paths in self.project.cells(STUDY)}
        self.records = {gpu: read(Record, paths.record) for gpu, paths in self.cells.items()}

    def energy(self, gpu: str) -> Energy:
        found = self.records[gpu].energy
        assert found is not None
        return found

    def duration_s(self, gpu: str) -> float:
        timings = self.records[gpu].timings
        assert timings is not None
        return timings.duration_s


@pytest.fixture(scope="module")
def project(
    cluster: Cluster,
    new_project: Callable[[Path, Cluster, Path], SlurmProject],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SlurmProject]:
    root = tmp_path_factory.mktemp("energy") / "a project"
    made = new_project(root, cluster, tmp_path_factory.mktemp("models"))
    (root / "config" / "models" / "tiny.yaml").write_text(yaml.safe_dump(MODEL))
    library = build(tmp_path_factory.mktemp("nvml") / "library")
    made.environment |= settings(library, POWER=power(), TICK_S=TICK_S)
    # A node's host engine lives until the job of its first client ends: process 1 is the node itself.
    made.environment |= simulated_dcgm.settings(root / "dcgm", OWNER=1)
    command = simulated_dcgm.install(root.parent / "dcgm")
    made.write_site(gpu_types(), dcgm={"command": str(command)})
    done = made.shardwatt("make-model", "tiny", str(SHARDS))
    assert done.returncode == 0, done.stderr
    yield made
    made.stop()


@pytest.fixture(scope="module")
def finished(project: SlurmProject, run_together: Callable[[SlurmProject, str], None]) -> Finished:
    words = {"prompts": 4, "warmup_tokens": 4, "idle_settle_s": 0.5, "idle_read_s": 2}
    matrix = [
        project.block(gpu=gpu, shards=shards, batch=4, length=100)[0]
        for gpu, shards in ((WHOLE, 4), (ONE, 2), (HALF, 2))
    ]
    project.write_study(STUDY, **words, matrix=matrix)
    run_together(project, STUDY)
    for paths in project.cells(STUDY):
        assert paths.record.exists(), tail(paths.supervisor_log)
    return Finished(project)


def power_w(device: DeviceEnergy) -> float:
    return POWER_W[device.device.node][device.device.index]


@pytest.mark.parametrize("gpu", [WHOLE, ONE])
def test_each_gpu_of_every_node_has_the_joules_that_it_drew(gpu: str, finished: Finished) -> None:
    energy, duration_s = finished.energy(gpu), finished.duration_s(gpu)
    record = finished.records[gpu]
    assert {device.device.node for device in energy.devices} == set(record.provenance.nodes)
    assert len(energy.devices) == record.cell.shards
    assert len({device.device.uuid for device in energy.devices}) == record.cell.shards
    for device in energy.devices:
        drawn_w = power_w(device)
        assert (device.method, device.status) == (Method.NVML_COUNTER, Status.MEASURED)
        assert device.window.joules is not None
        assert device.window.uncertainty_j is not None
        # A tick at each border, of a counter that steps every 0.1 s.
        assert device.window.joules == pytest.approx(drawn_w * duration_s, abs=2 * drawn_w * TICK_S)
        assert device.window.uncertainty_j >= drawn_w * TICK_S
        assert device.idle_unloaded_w == pytest.approx(drawn_w, rel=0.11)
        assert device.idle_loaded_w == pytest.approx(drawn_w, rel=0.11)


def test_all_nodes_are_right_and_one_node_times_their_number_is_wrong_by_what_is_known(
    finished: Finished,
) -> None:
    energy, duration_s = finished.energy(WHOLE), finished.duration_s(WHOLE)
    all_w = sum(map(power_w, energy.devices))
    first = finished.records[WHOLE].provenance.nodes[0]
    scaled_w = 2 * sum(POWER_W[first])
    assert abs(scaled_w - all_w) > 90
    assert energy.window.joules == pytest.approx(all_w * duration_s, abs=2 * all_w * TICK_S)
    assert energy.window_rank0_scaled.joules == pytest.approx(
        scaled_w * duration_s, abs=2 * scaled_w * TICK_S
    )
    assert energy.scope_ratio == pytest.approx(scaled_w / all_w, rel=0.03)


def test_dcgm_on_the_first_node_agrees_with_nvml_there_and_is_multiplied_as_the_paper_does(
    finished: Finished,
) -> None:
    energy, duration_s = finished.energy(WHOLE), finished.duration_s(WHOLE)
    first = finished.records[WHOLE].provenance.nodes[0]
    assert energy.dcgm is not None, energy.window_dcgm.detail
    assert (energy.dcgm.node, energy.dcgm.interval_ms) == (first, 100)
    assert energy.dcgm.start_s < -0.1
    assert energy.dcgm.stop_s > duration_s + 0.1
    own = {device.device.uuid: device for device in energy.devices if device.device.node == first}
    covered_s = energy.dcgm.stop_s - energy.dcgm.start_s
    assert {device.uuid for device in energy.dcgm.devices} == set(own)
    for device in energy.dcgm.devices:
        # At each side the time to the next sample is lost, an interval where the host engine was not held up;
        # each end is uncertain by a tick, and a joule is cut off. It never counts more than there was.
        metered = own[device.uuid]
        drawn_w = power_w(metered)
        state = finished.project.root / "dcgm"
        times_s = simulated_dcgm.sample_times_s(state, metered.device.index, first)
        spacings_s = [after - before for before, after in pairwise(times_s)]
        # Further apart are those of two jobs on the same node.
        lost_s = 2 * max(spacing_s for spacing_s in spacings_s if spacing_s < 5)
        tick_j = 2 * drawn_w * TICK_S
        assert device.energy_j is not None
        assert drawn_w * (covered_s - lost_s) - tick_j - 1 <= device.energy_j
        assert device.energy_j <= drawn_w * covered_s + tick_j
        assert device.nvml_j == pytest.approx(drawn_w * covered_s, abs=2 * drawn_w * TICK_S)
    told = energy.window_dcgm
    assert (told.method, told.status) == (Method.DCGM_JOB, Status.DERIVED)
    assert told.joules == 2 * sum(device.energy_j or 0 for device in energy.dcgm.devices)
    # Scope and method are two ratios: the one is wrong here, the other right.
    assert energy.method_ratio == pytest.approx(1, abs=0.1)
    assert energy.scope_ratio is not None
    assert abs(energy.scope_ratio - 1) > 0.05


def test_phases_and_what_is_between_add_up_to_the_window(finished: Finished) -> None:
    energy = finished.energy(WHOLE)
    parts = [energy.prefill, energy.walk, energy.decode, energy.between]
    known = [part for part in parts if part.joules is not None]
    assert energy.decode in known
    assert energy.decode.status is Status.DERIVED
    assert not [violation for violation in energy.violations if violation.code == "phases_do_not_add_up"]


def test_the_record_says_what_was_covered_and_that_clocks_were_brought_together(finished: Finished) -> None:
    coverage = finished.energy(WHOLE).window.coverage
    assert coverage.nodes == finished.records[WHOLE].provenance.nodes
    assert (coverage.nodes_expected, coverage.devices_expected) == (2, 4)
    assert coverage.asked_period_s == pytest.approx(0.1)
    assert coverage.period_s == pytest.approx(0.1, abs=0.05)
    assert coverage.tick_s == pytest.approx(TICK_S, abs=0.05)
    assert coverage.counter_over_integral == pytest.approx(1, abs=0.05)
    # One machine's wall clock for all nodes; their monotonic clocks are a thousand seconds apart.
    assert coverage.clock_offset_s == pytest.approx(0, abs=1)
    assert coverage.late_s is not None


def test_net_of_idle_is_nothing_where_work_draws_no_more_than_idleness(finished: Finished) -> None:
    energy, duration_s = finished.energy(WHOLE), finished.duration_s(WHOLE)
    assert energy.window.joules is not None
    for idle in (energy.idle_unloaded, energy.idle_loaded):
        assert (idle.status, idle.settle_s) == (Status.MEASURED, 0.5)
        assert idle.read_s == pytest.approx(2, abs=0.1)
        assert idle.power_w is not None
        assert idle.net_j == pytest.approx(energy.window.joules - idle.power_w * duration_s)
        assert idle.net_j == pytest.approx(0, abs=0.15 * energy.window.joules)


def test_a_node_without_a_meter_leaves_no_sum_and_is_never_made_up(finished: Finished) -> None:
    record, energy = finished.records[HALF], finished.energy(HALF)
    assert record.outcome is Outcome.OK
    first, second = record.provenance.nodes
    assert energy.window.joules is None
    assert energy.window.status is Status.UNAVAILABLE
    assert second in str(energy.window.detail)
    assert "libnvidia-ml.so.1" in str(energy.window.detail)
    assert energy.scope_ratio is None
    # What was read stands there all the same.
    assert {device.device.node for device in energy.devices} == {first}
    assert energy.window_rank0_scaled.joules == pytest.approx(
        2 * POWER_W[first][0] * finished.duration_s(HALF), rel=0.1
    )


def test_a_study_of_measured_energy_alone_fails_before_any_rank_starts(
    project: SlurmProject, finished: Finished, run_together: Callable[[SlurmProject, str], None]
) -> None:
    project.write_study("measured", prompts=2, energy="measured", matrix=project.block(gpu=HALF, shards=2))
    (paths,) = project.cells("measured")
    run_together(project, "measured")
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.NOT_MEASURED
    assert failure.reason in INCURABLE
    assert "energy: measured" in failure.message
    assert "libnvidia-ml.so.1" in failure.message
    # No rank was ever started.
    assert not list(paths.logs.glob("rank-*.log"))
    project.assert_nothing_left()


def test_a_sampler_that_is_killed_in_mid_run_ends_the_cell_with_its_node(
    project: SlurmProject, finished: Finished
) -> None:
    # No model runs: the samplers are the same.
    block = project.block(engine="simulated", gpu=PAIR, shards=2)
    project.write_study("killed", simulated_window_s=300.0, idle_read_s=0.0, matrix=block)
    (paths,) = project.cells("killed")
    submitted = project.shardwatt("run-together", "killed")
    assert submitted.returncode == 0, submitted.stderr
    project.await_run(paths)
    node = project.rank(paths, 1).node
    # Processes have numbers of their own on each node: no other's are met.
    words = ["pkill", "-KILL", "-f", "shardwatt.power.sampling.sampler"]
    subprocess.run(project.cluster.node(node).command(words), check=True)
    await_true(paths.failure.exists, "the cell has failed", said=lambda: tail(paths.supervisor_log))
    failure = read(Failure, paths.failure)
    assert failure.reason is Reason.METER_UNAVAILABLE, failure.message
    assert node in f"{failure.node} {failure.message}"
    project.assert_nothing_left()
