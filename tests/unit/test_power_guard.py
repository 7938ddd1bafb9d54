"""Guards the setting of power limits: all or none, enforced, set back in every ending, or by the next."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import simulated_nvml
from limited_gpus import CAP_W, DEFAULT_W, SET_LIMIT, GpuNode, await_true, uuid
from shardwatt.power.limits.files import limit_end_path
from shardwatt.power.limits.lease import Lease

#: What a user must never find in a site's command.
SECRET = {"HF_TOKEN": "secret", "LD_PRELOAD": ""}


@pytest.fixture
def node(library: Path, tmp_path: Path) -> Iterator[GpuNode]:
    made = GpuNode(tmp_path, library)
    yield made
    made.stop()


def test_limits_are_set_read_back_and_set_back_when_standard_input_ends(node: GpuNode) -> None:
    node.set_limit(1, 250.5)
    guard = node.guard("work")
    begun = guard.begun()
    assert begun.refusal is None
    assert [(one.device.uuid, one.before_w, one.enforced_w) for one in begun.limits] == [
        (uuid(0), DEFAULT_W, CAP_W),
        (uuid(1), 250.5, CAP_W),
    ]
    assert node.limits_w() == [CAP_W, CAP_W]
    # What it found is on disk for whoever comes after a kill.
    leases = [Lease.model_validate_json((node.leases / name).read_bytes()) for name in node.lease_names()]
    assert [(one.gpu, one.before_w, one.cap_w, one.job_id, one.pid) for one in leases] == [
        (uuid(0), DEFAULT_W, CAP_W, "12", guard.process.pid),
        (uuid(1), 250.5, CAP_W, "12", guard.process.pid),
    ]
    assert all(lease.is_held for lease in leases)
    end = guard.ended()
    assert [(one.uuid, one.after_w, one.restored_w) for one in end.limits] == [
        (uuid(0), CAP_W, DEFAULT_W),
        (uuid(1), CAP_W, 250.5),
    ]
    assert (end.signal, end.problem) == (None, None)
    assert node.limits_w() == [DEFAULT_W, 250.5]
    assert node.lease_names() == []


#: What asks a process to end, or ends it where it does not listen: as `scancel --signal`, or a site's limits.
ENDING = [getattr(signal, f"SIG{name}") for name in ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2", "XCPU"]]


@pytest.mark.parametrize("number", ENDING, ids=lambda n: n.name)
def test_a_signal_has_limits_set_back_while_its_supervisor_still_lives(
    node: GpuNode, number: signal.Signals
) -> None:
    guard = node.guard("work")
    guard.begun()
    end = guard.signalled(number)
    assert end.signal == number.name
    assert [one.restored_w for one in end.limits] == [DEFAULT_W, DEFAULT_W]
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    await_true(lambda: node.lease_names() == [])
    # It stays, so that its supervisor ends first, and says why.
    with pytest.raises(subprocess.TimeoutExpired):
        guard.process.wait(1)
    guard.ended(code=1)


def test_limits_are_set_back_when_the_supervisor_is_killed(node: GpuNode) -> None:
    # Its child is the guard, and has the end of a pipe for standard input that nobody else holds.
    parent = (
        "import subprocess, sys; child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); child.wait()"
    )
    python = (sys.executable, "-c", parent, sys.executable, "-m", "shardwatt.power.limits.guard")
    guard = node.guard("work", python=python)
    guard.begun()
    assert node.limits_w() == [CAP_W, CAP_W]
    guard.killed()
    await_true(lambda: limit_end_path(guard.folder, 0).exists())
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    await_true(lambda: node.lease_names() == [])


REFUSED = {
    "too-low": (99, "", "a limit of 99 W is outside of what the driver takes"),
    "too-high": (301, "", "a limit of 301 W is outside of what the driver takes"),
    "all-denied": (CAP_W, "0:setting_denied;1:setting_denied", "GPU 0 of {node}: the driver refused a limit"),
    "one-denied": (CAP_W, "1:setting_denied", "GPU 1 of {node}: the driver refused a limit of 300 W"),
    "not-enforced": (
        CAP_W,
        "1:limit_ignored",
        "GPU 1 of {node}: asked for 175 W, and 300 W are enforced",
    ),
    "unreadable": (CAP_W, "1:no_limit", "GPU 1 of {node}: the driver does not tell its power limits' range"),
    "sliced": (CAP_W, "1:mig", "GPU 1 of {node} is in MIG mode"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_limit_tells_its_numbers_and_changes_nothing(node: GpuNode, case: str) -> None:
    cap_w, faults, words = REFUSED[case]
    refusal = node.guard("work", cap_w=cap_w, FAULTS=faults).refusal()
    assert words.format(node=os.uname().nodename) in refusal
    if case not in ("unreadable", "sliced"):
        assert "found at 300 W, takes 100 to 300 W, default 300 W" in refusal
    if case.endswith("denied"):
        assert "the site's power_limits need a command or a prolog" in refusal
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    assert node.lease_names() == []
    if case == "not-enforced":
        assert (0, CAP_W) in node.changes_w()
        assert "all GPUs of the node are as they were found" in refusal
    else:
        # The limit that was found is set once more, to see whether that can be done later.
        assert {limit_w for _, limit_w in node.changes_w()} <= {DEFAULT_W}
    if case.endswith("denied"):
        assert "a limit of 175 W was not set, since 300 W, which was found, could not be set back" in refusal
        assert "nothing was changed" in refusal


def test_without_a_driver_a_cap_is_refused_and_no_cap_is_noted(node: GpuNode, tmp_path: Path) -> None:
    node.library = tmp_path / "nothing"
    assert "NVML (libnvidia-ml.so.1, of NVIDIA's driver)" in node.guard("capped").refusal()
    guard = node.guard("free", cap_w=None)
    begun = guard.begun()
    assert (begun.refusal, begun.limits) == (None, [])
    assert "power limits are not known" in begun.notes[0]


def test_limits_that_cannot_be_set_back_are_told_with_the_command_and_mended_by_the_next_cell(
    node: GpuNode, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    guard = node.guard("work", ORIGIN=origin, FAULTS="0:setting_denied@0.001")
    guard.begun()
    simulated_nvml.begin(origin, in_s=-1)
    end = guard.ended()
    assert [(one.after_w, one.restored_w) for one in end.limits] == [(CAP_W, CAP_W), (CAP_W, DEFAULT_W)]
    assert end.problem is not None
    assert "limits could not be set back: GPU 0 of" in end.problem
    assert f"sudo nvidia-smi -i {uuid(0)} -pl 300" in end.problem
    assert node.limits_w() == [CAP_W, DEFAULT_W]
    assert len(node.lease_names()) == 2

    again = node.guard("again", job_id="13", cap_w=200)
    begun = again.begun()
    assert [one.before_w for one in begun.limits] == [DEFAULT_W, DEFAULT_W]
    assert [note for note in begun.notes if "job 12 had left a power limit of 175 W" in note]
    again.ended()
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    assert node.lease_names() == []


@pytest.mark.parametrize("cap_w", [None, 200])
def test_what_a_killed_guard_leaves_is_mended_by_the_next_cell_capped_or_not(
    node: GpuNode, cap_w: int | None
) -> None:
    node.set_limit(1, 280)
    left = node.guard("left")
    left.begun()
    left.killed()
    assert node.limits_w() == [CAP_W, CAP_W]
    assert len(node.lease_names()) == 2
    guard = node.guard("next", job_id="13", cap_w=cap_w)
    begun = guard.begun()
    assert len([note for note in begun.notes if "job 12 had left a power limit of 175 W" in note]) == 2
    assert [(one.before_w, one.enforced_w) for one in begun.limits] == [
        (DEFAULT_W, cap_w or DEFAULT_W),
        (280, cap_w or 280),
    ]
    if cap_w is None:
        # It does not stay, and the cell's record is told what is unusual.
        assert guard.process.wait(600) == 0
        assert any("GPU 1" in note and "280 W, the driver's default 300 W" in note for note in begun.notes)
    else:
        guard.ended()
    assert node.limits_w() == [DEFAULT_W, 280]
    assert node.lease_names() == []


def test_a_job_that_is_started_again_under_its_number_mends_its_first_start(node: GpuNode) -> None:
    left = node.guard("left")
    left.begun()
    left.killed()
    guard = node.guard("again", cap_w=200)
    assert [one.before_w for one in guard.begun().limits] == [DEFAULT_W, DEFAULT_W]
    guard.ended()
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]


@pytest.mark.parametrize("cap_w", [None, 200])
def test_gpus_that_another_job_holds_are_refused(node: GpuNode, cap_w: int | None) -> None:
    holder = node.guard("holder", gpus="1")
    holder.begun()
    refusal = node.guard("other", job_id="13", cap_w=cap_w).refusal()
    assert f"job 12 of user {os.getuid()} holds a power limit of 175 W on it" in refusal
    assert node.limits_w() == [DEFAULT_W, CAP_W]
    # The GPU beside it is free.
    beside = node.guard("beside", job_id="14", gpus="0")
    beside.begun()
    assert node.limits_w() == [CAP_W, CAP_W]
    beside.ended()
    holder.ended()
    assert node.lease_names() == []


def test_what_a_dead_job_has_left_does_not_undo_the_cap_of_one_that_runs(node: GpuNode) -> None:
    holder = node.guard("holder")
    holder.begun()
    left = node.write_lease(0, job_id="1")  # looked at first, by its name
    refusal = node.guard("other", job_id="13").refusal()
    assert "job 12 of user" in refusal
    assert node.limits_w() == [CAP_W, CAP_W]
    left.unlink()
    holder.ended()


def test_of_cells_that_begin_at_once_on_the_same_gpus_one_at_most_has_them(node: GpuNode) -> None:
    guards = [node.guard(f"work-{number}", job_id=str(number)) for number in range(4)]
    begun = [guard.begun() for guard in guards]
    having = [guard for guard, file in zip(guards, begun, strict=True) if file.refusal is None]
    assert len(having) <= 1
    assert node.limits_w() == [CAP_W if having else DEFAULT_W] * 2
    for file in begun:
        assert file.refusal is None or "expected GPUs of this job alone" in file.refusal
    for guard in having:
        guard.ended()
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    assert node.lease_names() == []


def test_leases_that_no_longer_hold_are_removed_and_nothing_is_set(node: GpuNode) -> None:
    node.set_limit(0, CAP_W)
    node.set_limit(1, 220)
    node.write_lease(0, boot_id="0" * 36)  # the limit is somebody's of this boot
    node.write_lease(1)  # somebody has set another since
    elsewhere = node.write_lease(0, node="another-node")
    changes = node.changes_w()
    node.guard("work", cap_w=None).begun()
    assert node.changes_w() == changes
    assert node.lease_names() == [elsewhere.name]


def test_a_limit_that_was_changed_in_mid_run_is_seen_at_its_end(node: GpuNode) -> None:
    guard = node.guard("work")
    guard.begun()
    node.set_limit(1, 222)
    assert [one.after_w for one in guard.ended().limits] == [CAP_W, 222]
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]


def test_a_sites_command_sets_limits_without_a_shell_and_without_secrets(node: GpuNode) -> None:
    told = node.folder / "told"
    script = f"{SET_LIMIT}import os\nopen({str(told)!r}, 'a').write(repr((sys.argv[1:], dict(os.environ))))\n"
    command = {"set_by": "command", "command": [str(node.command(script)), "{watts}", "{gpus}"]}
    node.environment |= SECRET
    node.set_limit(1, 250.4)
    guard = node.guard("work", power_limits=command, FAULTS="0:setting_denied;1:setting_denied")
    guard.begun()
    assert node.limits_w() == [CAP_W, CAP_W]
    end = guard.ended()
    # The command knows whole watts only.
    assert [one.restored_w for one in end.limits] == [DEFAULT_W, 250]
    assert end.problem is None
    assert f"'175', '{uuid(0)},{uuid(1)}'" in told.read_text()
    assert "HF_TOKEN" not in told.read_text()


FAILING = {
    "says-why": ("#!/bin/sh\necho no such user >&2; exit 3\n", "exit code 3 and said: no such user"),
    "missing": (None, "cannot be run: No such file or directory"),
    "does-nothing": ("#!/bin/sh\nexit 0\n", "asked for 175 W, and 300 W are enforced"),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_sites_command_that_fails_is_quoted(node: GpuNode, case: str) -> None:
    script, words = FAILING[case]
    program = node.folder / "nothing" if script is None else node.command(script)
    command = {"set_by": "command", "command": [str(program), "{watts}", "{gpus}"]}
    assert words in node.guard("work", power_limits=command).refusal()
    assert node.changes_w() == []
    assert node.lease_names() == []


def without_way_back(node: GpuNode, rest: str) -> str:
    """The refusal of a site's command that sets no more than 250 W, where 300 W was found."""
    script = SET_LIMIT.replace("import pynvml\n", f"import pynvml\nif int(sys.argv[1]) > 250: {rest}\n", 1)
    command = {"set_by": "command", "command": [str(node.command(script)), "{watts}", "{gpus}"]}
    return node.guard("work", power_limits=command).refusal()


def test_a_cap_from_which_there_is_no_way_back_is_not_set(node: GpuNode) -> None:
    refusal = without_way_back(node, 'sys.exit("300 is too much")')
    assert "a limit of 175 W was not set, since 300 W, which was found, could not be set back" in refusal
    assert "300 is too much" in refusal
    assert refusal.endswith("nothing was changed")
    assert (node.changes_w(), node.lease_names()) == ([], [])


def test_a_command_that_sets_another_limit_than_it_is_told_is_found_out_before_the_cap(node: GpuNode) -> None:
    refusal = without_way_back(node, 'sys.argv[1] = "250"')
    assert "a limit of 175 W was not set, since limits are not what they are set to" in refusal
    assert "asked for 300 W, and 250 W are enforced" in refusal
    assert node.limits_w() == [250, 250]


def test_a_command_that_fails_for_one_gpu_sets_the_others_back(node: GpuNode) -> None:
    fails = f'    if sys.argv[1] == "175" and uuid == "{uuid(1)}": sys.exit("not that one")\n'
    script = SET_LIMIT.replace('split(","):\n', f'split(","):\n{fails}')
    command = {"set_by": "command", "command": [str(node.command(script)), "{watts}", "{gpus}"]}
    refusal = node.guard("work", power_limits=command).refusal()
    assert "not that one" in refusal
    assert (0, CAP_W) in node.changes_w()
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    assert "all GPUs of the node are as they were found" in refusal


def test_a_prologs_limit_is_only_looked_at(node: GpuNode) -> None:
    prolog = {"set_by": "prolog"}
    node.set_limit(0, CAP_W)
    refusal = node.guard("half", power_limits=prolog).refusal()
    assert "GPU 1" in refusal
    assert "GPU 0" not in refusal
    assert "expected 175 W to be enforced, set by Slurm's prolog (found at 300 W" in refusal
    assert "GPUs are in persistence mode" in refusal
    node.set_limit(1, CAP_W)
    changes = node.changes_w()
    guard = node.guard("work", power_limits=prolog)
    assert [one.enforced_w for one in guard.begun().limits] == [CAP_W, CAP_W]
    end = guard.ended()
    assert [(one.after_w, one.restored_w) for one in end.limits] == [(CAP_W, None), (CAP_W, None)]
    assert node.changes_w() == changes
    assert not node.leases.exists()


def test_a_folder_of_leases_that_cannot_be_used_changes_nothing(node: GpuNode) -> None:
    node.leases.write_text("a file")
    refusal = node.guard("work").refusal()
    assert "expected a folder on the node's own disk" in refusal
    assert node.changes_w() == []


@pytest.fixture
def open_node(library: Path) -> Iterator[GpuNode]:
    """A node in a folder that every user may read and write."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory(prefix="shardwatt-guard-") as folder:
        Path(folder).chmod(0o777)
        made = GpuNode(Path(folder), library)
        made.state.touch()
        made.state.chmod(0o666)
        for name in ("work", "free", "once more"):
            (made.folder / name).mkdir()
            (made.folder / name).chmod(0o777)
        yield made
        made.stop()


#: Loads all that lies in root's folders, then becomes nobody.
AS_NOBODY = """\
import os, sys, pynvml
from shardwatt.power.limits import guard
pynvml.nvmlInit()
guard.boot_id()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(guard.main())
"""


def test_another_users_lease_is_not_believed_and_his_limit_not_run_under(open_node: GpuNode) -> None:
    node = open_node
    nobody = (sys.executable, "-c", AS_NOBODY)
    lease = node.write_lease(0)  # root's
    guard = node.guard("work", python=nobody)
    guard.begun()
    guard.ended()
    # It says that 250 W were before; what was found counts, and the lease is not nobody's to remove.
    assert node.limits_w() == [DEFAULT_W, DEFAULT_W]
    assert node.lease_names() == [lease.name]
    node.set_limit(0, CAP_W)
    refusal = node.guard("free", cap_w=None, python=nobody).refusal()
    assert "job 7 of user 0 was killed and has left a power limit of 175 W on it" in refusal
    assert "restore-power-limits --all-dead" in refusal
