"""Guards the power limits around a cell: what its record may say of a cap, and what ends it."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

import simulated_nvml
from limited_gpus import CAP_W, DEFAULT_W, GpuNode, await_true, uuid
from shardwatt.errors import INCURABLE, CellFailure, Reason
from shardwatt.jobshape import JobShape
from shardwatt.power.limits.files import limit_end_path
from shardwatt.run.caps import PowerLimiting, power_limiting
from shardwatt.run.endings import MAY_BE_SLURMS
from shardwatt.run.meters import Samplers
from shardwatt.run.together import SharedJob
from slurm_site import slurm_cell, slurm_site
from small_project import GPUS, make_site
from synthetic_cells import make_cell

PYTHON = (sys.executable, "-m", "shardwatt.power.limits.guard")


@pytest.fixture
def node(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuNode]:
    """This machine with two GPUs, for guards that inherit the environment."""
    made = GpuNode(tmp_path, library)
    for name, value in made.settings().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    (tmp_path / "work").mkdir()
    yield made
    made.stop()


def limiting(node: GpuNode, cap_w: int | None = CAP_W, **changes: Any) -> PowerLimiting:
    """The limits of a cell on one node."""
    work = node.folder / "work"
    own = {"words": [*PYTHON, *node.guard_words(work, cap_w)], "nodes": 1, "set_by": "nvml"}
    words = {"work": work, "log": node.folder / "guard.log", "start_timeout_s": 600, "cap_w": cap_w}
    return PowerLimiting(**{**own, **words, **changes})


def on_two_nodes(node: GpuNode, cap_w: int = CAP_W, **faults: str) -> dict[str, Any]:
    """Guards of two nodes with a GPU each, started and ended together, as srun does."""
    guards = []
    for index in (0, 1):
        words = node.guard_words(node.folder / "work", cap_w, ranks=1)
        variables = [
            f"CUDA_VISIBLE_DEVICES={index}",
            f"SIMULATED_NVML_FAULTS={faults.get(f'node{index}', '')}",
        ]
        guards.append(shlex.join(["env", *variables, *PYTHON, *words, "--node-index", str(index)]))
    return {
        "words": ["bash", "-c", f"exec 3<&0; {guards[0]} <&3 & {guards[1]} <&3 & wait -n; wait"],
        "nodes": 2,
    }


def test_a_cells_record_says_what_the_driver_said_of_each_gpu(node: GpuNode) -> None:
    node.set_limit(1, 250)
    with limiting(node) as caps:
        assert node.limits_w() == [CAP_W, CAP_W]
        caps.check()
    assert node.limits_w() == [DEFAULT_W, 250]
    record = caps.record()
    assert record is not None
    assert (record.asked_w, record.set_by) == (CAP_W, "nvml")
    assert [
        (one.device.uuid, one.before_w, one.enforced_w, one.after_w, one.restored_w) for one in record.devices
    ] == [(uuid(0), DEFAULT_W, CAP_W, CAP_W, DEFAULT_W), (uuid(1), 250, CAP_W, CAP_W, 250)]


def test_all_nodes_are_in_the_record(node: GpuNode) -> None:
    with limiting(node, **on_two_nodes(node)) as caps:
        assert node.limits_w() == [CAP_W, CAP_W]
    record = caps.record()
    assert record is not None
    assert [one.device.uuid for one in record.devices] == [uuid(0), uuid(1)]
    assert {one.restored_w for one in record.devices} == {DEFAULT_W}


def test_limits_are_back_whatever_ends_the_cell(node: GpuNode) -> None:
    with pytest.raises(ZeroDivisionError), limiting(node):
        raise ZeroDivisionError
    # The limit that was found once more, to see that there is a way back; the cap; and back.
    assert [limit_w for gpu, limit_w in node.changes_w() if gpu == 1] == [DEFAULT_W, CAP_W, DEFAULT_W]
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]


def test_a_refusal_on_one_node_sets_all_back_and_is_not_tried_again(node: GpuNode) -> None:
    refused = on_two_nodes(node, node1="1:setting_denied")
    with pytest.raises(CellFailure) as caught, limiting(node, **refused):
        pytest.fail("the cell must not run")
    assert caught.value.reason is Reason.POWER_CAP_REFUSED
    assert caught.value.reason in INCURABLE
    assert caught.value.node == os.uname().nodename
    assert "GPU 1 of" in caught.value.message
    assert "found at 300 W, takes 100 to 300 W" in caught.value.message
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    assert node.lease_names() == []


def test_a_limit_that_did_not_stand_to_the_end_is_no_cap(node: GpuNode) -> None:
    with limiting(node) as caps:
        node.set_limit(1, 222)
    with pytest.raises(CellFailure, match=r"after the run it was not: GPU 1 of .*: 222 W") as caught:
        caps.record()
    assert caught.value.reason is Reason.POWER_CAP_LOST
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]


def guards(node: GpuNode) -> list[psutil.Process]:
    """Those of a test's node; children that other tests have started go on beside them."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if str(node.folder) in " ".join(child.cmdline()):
                found.append(child)
    return found


def guard_process(node: GpuNode) -> psutil.Process:
    (guard,) = guards(node)
    return guard


def test_a_guard_that_was_signalled_alone_has_kept_no_cap(node: GpuNode) -> None:
    with limiting(node) as caps:
        guard_process(node).send_signal(signal.SIGTERM)
        await_true(lambda: limit_end_path(node.folder / "work", 0).exists())
        # A signal to the whole job is its supervisor's to tell.
        caps.check()
    with pytest.raises(CellFailure, match=r"SIGTERM had the guard on .* set the power limits back") as caught:
        caps.record()
    assert caught.value.reason in MAY_BE_SLURMS


def test_a_guard_that_is_killed_ends_the_cell_and_its_limits_are_for_the_next_to_mend(node: GpuNode) -> None:
    with limiting(node) as caps:
        process = guard_process(node)
        process.kill()
        await_true(lambda: process.status() == psutil.STATUS_ZOMBIE)
        with pytest.raises(CellFailure, match="ended by itself with exit code -9") as caught:
            caps.check()
        assert caught.value.reason is Reason.POWER_CAP_LOST
    with pytest.raises(CellFailure, match="as root there: shardwatt restore-power-limits --all-dead"):
        caps.record()
    assert node.limits_w() == [CAP_W, CAP_W]
    for path in (node.folder / "work").iterdir():
        path.unlink()
    with limiting(node, None) as caps:
        assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
        caps.check()
    assert caps.record() is None


def test_limits_that_are_not_back_are_told_loudly_and_the_result_stays(
    node: GpuNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    origin = node.folder / "origin"
    monkeypatch.setenv("SIMULATED_NVML_ORIGIN", str(origin))
    monkeypatch.setenv("SIMULATED_NVML_FAULTS", "0:setting_denied@0.001")
    with caplog.at_level(logging.ERROR, "shardwatt"), limiting(node) as caps:
        simulated_nvml.begin(origin, in_s=-1)
    assert "POWER LIMITS ARE NOT AS THEY WERE: limits could not be set back: GPU 0 of" in caplog.text
    assert f"sudo nvidia-smi -i {uuid(0)} -pl 300" in caplog.text
    record = caps.record()
    assert record is not None
    assert [(one.after_w, one.restored_w) for one in record.devices] == [(CAP_W, CAP_W), (CAP_W, DEFAULT_W)]


def test_a_prologs_cap_has_no_before_and_is_not_set_back(node: GpuNode) -> None:
    node.set_limit(0, CAP_W)
    node.set_limit(1, CAP_W)
    words = [*PYTHON, *node.guard_words(node.folder / "work", power_limits={"set_by": "prolog"})]
    with limiting(node, words=words, set_by="prolog") as caps:
        pass
    record = caps.record()
    assert record is not None
    assert [(one.before_w, one.enforced_w, one.after_w, one.restored_w) for one in record.devices] == [
        (None, CAP_W, CAP_W, None)
    ] * 2


def test_a_guard_that_cannot_start_is_told_as_what_it_is(
    node: GpuNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CellFailure, match=r"exit code 2.*--cap-w") as caught:
        limiting(node, words=[*PYTHON, *node.guard_words(node.folder / "work"), "--cap-w", "x"]).__enter__()
    assert caught.value.reason is Reason.POWER_CAP_LOST
    with pytest.raises(CellFailure, match=r"said nothing within 0\.1 s") as caught:
        limiting(node, words=["cat"], start_timeout_s=0.1).__enter__()
    assert caught.value.reason is Reason.POWER_CAP_LOST
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(CellFailure, match="names 1 GPUs on this node") as caught:
        limiting(node).__enter__()
    assert caught.value.reason is Reason.CONFIGURATION


def srun_that_lost(*tasks: str) -> list[str]:
    """What srun does while tasks of others go on: it tells, and stays."""
    said = "; ".join(f"echo 'srun: error: v100-{task}' >&2" for task in tasks)
    return ["bash", "-c", f"echo 'environment line 1 failed' >&2; {said}; exec cat"]


@pytest.mark.parametrize(
    ("tasks", "reason", "words"),
    [
        (
            ["1: task 1: Exited with exit code 78"],
            Reason.CONFIGURATION,
            "not ready for its .*: environment line 1",
        ),
        (["1: task 1: Killed"], None, r"of node 1 ended by itself \(exit code -9\)"),
        (["1: task 1: Vanished"], None, r"of node 1 ended by itself \(how is not known\)"),
    ],
    ids=["configuration", "killed", "unknown"],
)
@pytest.mark.parametrize("kind", ["guard", "sampler"])
def test_one_nodes_helper_that_dies_at_its_start_is_noticed_at_once(
    tmp_path: Path, kind: str, tasks: list[str], reason: Reason | None, words: str
) -> None:
    """srun waits for the others, which wait for their standard input."""
    helpers: PowerLimiting | Samplers
    own: dict[str, Any] = {"work": tmp_path, "nodes": 2, "log": tmp_path / "log", "start_timeout_s": 600.0}
    if kind == "guard":
        helpers = PowerLimiting(words=srun_that_lost(*tasks), cap_w=CAP_W, set_by="nvml", **own)
    else:
        helpers = Samplers(words=srun_that_lost(*tasks), **own)
    with pytest.raises(CellFailure, match=words) as caught:
        helpers.__enter__()
    lost = {"guard": Reason.POWER_CAP_LOST, "sampler": Reason.METER_UNAVAILABLE}
    assert caught.value.reason is (reason or lost[kind])
    assert caught.value.node == "v100-1"


def test_a_guard_without_space_for_its_files_is_told_as_that(node: GpuNode) -> None:
    full = node.folder / "full"
    full.touch()
    with pytest.raises(CellFailure, match=f"{full}/probe: Not a directory") as caught:
        limiting(node, words=["bash", "-c", "exit 1"], work=full).__enter__()
    assert caught.value.reason is Reason.STORAGE


def test_a_cell_has_the_guards_that_its_site_asks_for(node: GpuNode) -> None:
    limits = {"power_limits": {"set_by": "nvml", "leases": str(node.leases)}}

    def around(cap: str, gpu: dict[str, Any] | None = None, **site: Any) -> PowerLimiting:
        gpus = {"v100": {**GPUS["v100"], **(gpu or {})}}
        return power_limiting(
            make_site(node.folder, gpus=gpus, **site),
            replace(make_cell(), gpu="v100", cap=cap),
            JobShape(nodes=1, ranks_per_node=2),
            work=node.folder / "work",
            logs=node.folder,
            job_id="77",
        )

    with around("175", **limits):
        assert node.limits_w() == [CAP_W, CAP_W]
        assert node.lease_names() == [f"{os.uname().nodename}.{uuid(gpu)}.77.lease" for gpu in (0, 1)]
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    # Nothing is started where nobody sets limits, or there are no GPUs.
    for caps in (around("none"), around("none", {"kind": "cpu"}, **limits)):
        with caps:
            assert guards(node) == []
        assert caps.record() is None


def test_a_job_of_cells_with_one_cap_names_it_for_slurms_prolog() -> None:
    site, cell = slurm_site(), slurm_cell(8)

    def comment(*caps: str) -> str:
        job = SharedJob(tuple(replace(cell, cap=cap) for cap in caps), 60)
        (found,) = [word for word in job.sbatch_words(site, "paper", Path("/logs")) if "--comment" in word]
        return found

    assert comment("175", "175") == "--comment=shardwatt run-together paper cap=175"
    assert comment("none") == comment("175", "200") == "--comment=shardwatt run-together paper"
