"""Guards what puts power limits back for a whole node: the command of Epilogs, and the scripts for sites."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limited_gpus import CAP_W, DEFAULT_W, NVIDIA_SMI, SCRIPTS, GpuNode, site_script, uuid
from shardwatt.cli import main
from shardwatt.power.process import own_space

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_UID": str(os.getuid())}

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def node(library: Path, tmp_path: Path) -> Iterator[GpuNode]:
    """A node on whose GPUs a limit stands."""
    made = GpuNode(tmp_path, library)
    made.environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    made.set_limit(0, CAP_W)
    made.set_limit(1, CAP_W)
    yield made
    made.stop()


def test_an_epilog_sets_back_what_its_job_has_left_and_no_other_jobs(node: GpuNode) -> None:
    node.write_lease(0)
    others = node.write_lease(1, job_id="8")
    done = node.restore(environment=JOB)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"GPU 0 of {os.uname().nodename}: from 175 W back to 250 W\n"
    assert node.limits_w() == [250, CAP_W]
    assert node.lease_names() == [others.name]
    # Once more, and for a job that has left nothing, there is nothing to do.
    assert node.restore(environment=JOB).stdout == ""


def test_at_boot_all_that_is_dead_is_mended_and_what_is_held_left_alone(node: GpuNode) -> None:
    guard = node.guard("work", gpus="1", cap_w=200, job_id="9")
    guard.begun()
    node.write_lease(0)
    void = node.write_lease(0, job_id="6", boot_id="0" * 36)
    (node.leases / f"{os.uname().nodename}.junk.lease").write_text("junk")
    done = node.restore("--all-dead")
    assert (done.returncode, done.stderr) == (0, "")
    assert "from 175 W back to 250 W" in done.stdout
    assert f"{void.name}: from before the node's last start" in done.stdout
    assert "junk.lease: no lease of its owner; left alone" in done.stdout
    assert f"process {guard.process.pid} still holds it; left alone" in done.stdout
    assert node.limits_w() == [250, 200]
    # A job that is over should hold nothing.
    done = node.restore("--job", "9")
    assert done.returncode == 1
    assert f"process {guard.process.pid} still holds it; left alone" in done.stderr
    assert "power limits of this node may not be as they were; see above" in done.stderr
    guard.ended()
    assert node.limits_w() == [250, CAP_W]


def test_a_dead_jobs_lease_does_not_undo_the_cap_of_the_cell_that_runs_now(node: GpuNode) -> None:
    """Both may name the same cap; whose it is, the lease that is held tells."""
    guard = node.guard("work", gpus="0", job_id="9")
    guard.begun()
    left = node.write_lease(0)
    for words in (["--all-dead"], ["--job", "7"]):
        done = node.restore(*words)
        assert done.returncode == 0
        assert f"{left.name}: {uuid(0)} is held by job 9 now; left alone" in done.stdout
    assert node.limits_w() == [CAP_W, CAP_W]
    assert left.exists()
    guard.ended()


@pytest.mark.parametrize("is_mended", [False, True])
def test_a_cell_that_begins_while_others_are_mended_keeps_its_cap(node: GpuNode, is_mended: bool) -> None:
    """It holds a lease of the same cap by then, and may have removed the dead one."""
    node.write_lease(0)
    left = node.write_lease(1)
    mend = f"""
import os
from pathlib import Path
from shardwatt.power.limits.lease import Lease, open_leases
from shardwatt.power.limits.mend import Mending, mend_node
from shardwatt.power.limits.setting import setter
from shardwatt.power.process import start_ticks
from shardwatt.sitepower import PowerLimits

with open_leases(Path({str(node.leases)!r}), make=False) as leases:
    mending = mend_node(leases, setter(PowerLimits(set_by="nvml")), Mending(job_id=None))
    print(*next(mending))
    left = Path({str(left)!r})
    own = {{"job_id": "9", "pid": os.getpid(), "started_ticks": start_ticks(os.getpid())}}
    leases.write(Lease.model_validate_json(left.read_text()).model_copy(update=own))
    if {is_mended}:
        left.unlink()
    print(*next(mending))
"""
    done = subprocess.run(
        [sys.executable, "-c", mend],
        env={**node.environment, **node.settings()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    why = "gone, or another's by now" if is_mended else f"{uuid(1)} is held by job 9 now"
    assert done.stdout.splitlines()[1] == f"True {left.name}: {why}; left alone"
    assert node.limits_w() == [250, CAP_W]


def test_a_lease_of_another_container_is_held_until_its_job_is_said_to_be_over(node: GpuNode) -> None:
    lease = node.write_lease(0, pid=1, pid_space=own_space() + 1)
    assert "process 1 still holds it; left alone" in node.restore("--all-dead").stdout
    refusal = node.guard("work", job_id="9").refusal()
    assert "if that job is over, as root there: shardwatt restore-power-limits --job 7" in refusal
    assert lease.exists()
    assert node.restore(environment=JOB).returncode == 0
    assert node.limits_w() == [250, CAP_W]
    assert node.lease_names() == []


@needs_root
def test_root_is_told_of_a_folder_in_which_a_user_can_remove_leases(node: GpuNode) -> None:
    node.write_lease(0)
    os.chown(node.leases, 1, 1)
    done = node.restore("--all-dead")
    assert "the folder belongs to user 1, who can remove everybody's leases in it" in done.stderr
    assert (done.returncode, node.limits_w()) == (0, [250, CAP_W])


def test_a_dry_run_tells_and_changes_nothing(node: GpuNode) -> None:
    lease = node.write_lease(0)
    changes = node.changes_w()
    done = node.restore("--job", "7", "--dry-run")
    assert (done.returncode, done.stdout) == (
        0,
        f"GPU 0 of {os.uname().nodename}: from 175 W back to 250 W (would be)\n",
    )
    assert node.changes_w() == changes
    assert node.lease_names() == [lease.name]


def test_a_limit_that_somebody_has_set_since_is_left_alone(node: GpuNode) -> None:
    node.write_lease(0, cap_w=200.0)
    done = node.restore(environment=JOB)
    assert "stands at 175 W, not at the job's 200 W; the lease is removed" in done.stdout
    assert node.limits_w() == [CAP_W, CAP_W]
    assert node.lease_names() == []


@needs_root
@pytest.mark.parametrize(
    ("environment", "words", "limit_w"),
    [
        pytest.param({"SLURM_JOB_GPUS": "0,1"}, [], 120, id="given-by-slurm"),
        pytest.param({}, [], DEFAULT_W, id="slurm-does-not-tell"),
        pytest.param({"SLURM_JOB_GPUS": "1"}, [], DEFAULT_W, id="not-the-jobs"),
        pytest.param({"SLURM_JOB_UID": "2"}, [], CAP_W, id="another-users-job"),
        pytest.param({"SLURM_JOB_GPUS": "0"}, ["--watts", "260"], 260, id="the-sites-own-number"),
        pytest.param({"SLURM_JOB_GPUS": "0"}, ["--watts", "400"], CAP_W, id="out-of-range"),
    ],
)
def test_root_takes_a_users_number_only_for_gpus_that_slurm_gave_the_job(
    node: GpuNode, environment: dict[str, str], words: list[str], limit_w: float
) -> None:
    lease = node.write_lease(0, uid=1, before_w=120.0, before_enforced_w=120.0)
    os.chown(lease, 1, 1)
    done = node.restore(*words, environment={**JOB, "SLURM_JOB_UID": "1", **environment})
    assert node.limits_w()[0] == limit_w
    is_back = limit_w != CAP_W
    assert done.returncode == (0 if is_back else 1), done.stderr
    assert (node.lease_names() == []) == is_back


@needs_root
@pytest.mark.parametrize(("number", "limit_w"), [("1", 120), ("0", DEFAULT_W)])
def test_slurms_numbers_are_those_of_device_files(node: GpuNode, number: str, limit_w: float) -> None:
    """Not NVML's, which are by the place on the bus."""
    lease = node.write_lease(0, uid=1, before_w=120.0, before_enforced_w=120.0)
    os.chown(lease, 1, 1)
    environment = {**JOB, "SLURM_JOB_UID": "1", "SLURM_JOB_GPUS": number}
    assert node.restore(environment=environment, MINORS="1;0").returncode == 0
    assert node.limits_w() == [limit_w, CAP_W]


def test_an_absurd_number_in_a_lease_is_not_set(node: GpuNode) -> None:
    node.write_lease(0, before_w=9000.0, before_enforced_w=9000.0)
    done = node.restore(environment=JOB)
    assert done.returncode == 1
    assert "9000 W is no limit for GPU 0" in done.stderr
    assert node.limits_w() == [CAP_W, CAP_W]


def test_a_gpu_that_does_not_answer_is_told(node: GpuNode) -> None:
    node.write_lease(0)
    node.write_lease(1)
    done = node.restore(environment=JOB, FAULTS="0:setting_denied")
    assert done.returncode == 1
    assert "could not be set back: GPU 0 of" in done.stderr
    assert "before at 250 W, takes 100 to 300 W" in done.stderr
    assert node.limits_w() == [CAP_W, 250]


Restored = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def restored_here(
    node: GpuNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Restored:
    """`shardwatt restore-power-limits` in this process, as far as it gets without a driver."""
    for name in os.environ:
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        argv = ["shardwatt", "restore-power-limits", "--leases", str(node.leases), *words]
        with monkeypatch.context() as here:
            here.setattr(sys, "argv", argv)
            for name, value in environment.items():
                here.setenv(name, value)
            with pytest.raises(SystemExit) as end:
                main()
        assert isinstance(end.value.code, int)
        return subprocess.CompletedProcess(argv, end.value.code, *capsys.readouterr())

    return run


def test_a_job_or_all_must_be_named(restored_here: Restored) -> None:
    for words in ([], ["--job", "7", "--all-dead"]):
        done = restored_here(*words)
        assert done.returncode != 0
        assert "expected --job NUMBER or --all-dead" in done.stderr


def test_a_node_without_leases_needs_no_driver(node: GpuNode, restored_here: Restored) -> None:
    node.library = node.folder / "nothing"
    for _ in ("no folder", "an empty one"):
        done = restored_here("--all-dead")
        assert (done.returncode, done.stdout) == (0, f"no leases in {node.leases}\n")
        assert restored_here("--job", "7").stdout == f"no leases of job 7 in {node.leases}\n"
        done = restored_here(**JOB)
        assert (done.returncode, done.stdout) == (0, "")
        node.leases.mkdir(exist_ok=True)
    done = node.restore(environment=JOB)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    # What is void, or no lease at all, needs no driver either.
    node.write_lease(0, boot_id="0" * 36)
    (node.leases / f"{os.uname().nodename}.junk.lease").write_text("junk")
    assert node.restore("--all-dead").returncode == 0
    node.write_lease(0)
    assert "NVML (libnvidia-ml.so.1, of NVIDIA's driver)" in node.restore("--all-dead").stderr


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/nowhere")], ids=["file", "link"])
def test_what_is_no_folder_of_leases_is_refused(node: GpuNode, make: Callable[[Path], None]) -> None:
    make(node.leases)
    done = node.restore("--all-dead")
    assert done.returncode == 1
    assert "is no folder; expected the site's power_limits.leases" in done.stderr


COMMENT = "rule_cell_wildcards_paper_engine=reference_model=llama-7b_cap=200_repeat=1"


def install(node: GpuNode, name: str, **paths: Path) -> Path:
    """A copy of a site's script that finds stand-ins for what is not here, and files of the test's."""
    programs = node.folder / "bin"
    if not programs.exists():
        programs.mkdir()
        node.command(NVIDIA_SMI).rename(programs / "nvidia-smi")
        logger = programs / "logger"
        logger.write_text(f"#!/bin/sh\n{{ echo \"$*\"; [ -t 0 ] || cat; }} >>'{node.folder}/log'\n")
        logger.chmod(0o755)
    return site_script(name, node.folder, PATH=f"{programs}:/usr/bin:/bin", **paths)


def run(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as Slurm or sudo does: with next to nothing in its environment."""
    return subprocess.run(
        [script, *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


def log(node: GpuNode) -> str:
    path = node.folder / "log"
    return path.read_text() if path.exists() else ""


def test_the_prolog_sets_what_the_comment_names_and_its_epilog_sets_it_back(node: GpuNode) -> None:
    notes = node.folder / "run" / "notes"
    prolog = install(node, "comment-prolog.sh", notes=notes)
    epilog = install(node, "comment-epilog.sh", notes=notes)
    done = run(prolog, SLURM_JOB_ID="5", SLURM_JOB_GPUS="1", SLURM_JOB_COMMENT=COMMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert node.limits_w() == [CAP_W, 200]
    assert run(epilog, SLURM_JOB_ID="6").returncode == 0
    assert node.limits_w() == [CAP_W, 200]
    assert run(epilog, SLURM_JOB_ID="5").returncode == 0
    assert node.limits_w() == [CAP_W, CAP_W]
    assert list(notes.iterdir()) == []
    assert log(node) == ""


def test_a_job_that_starts_again_is_set_back_to_what_its_first_start_has_found(node: GpuNode) -> None:
    notes = node.folder / "notes"
    prolog = install(node, "comment-prolog.sh", notes=notes)
    epilog = install(node, "comment-epilog.sh", notes=notes)
    for gpus in ("1", "0,1"):  # between them no Epilog could run
        run(prolog, SLURM_JOB_ID="5", SLURM_JOB_GPUS=gpus, SLURM_JOB_COMMENT=COMMENT)
    assert node.limits_w() == [200, 200]
    run(epilog, SLURM_JOB_ID="5")
    assert node.limits_w() == [CAP_W, CAP_W]


@pytest.mark.parametrize(
    ("comment", "is_set"),
    [
        (COMMENT, True),
        ("shardwatt run-together paper cap=200", True),
        ("engine=reference/cap=200/repeat=1", True),
        (COMMENT.replace("200", "none"), False),
        (COMMENT.replace("200", "20000"), False),
        (COMMENT.replace("200", "200; reboot"), False),
        ("handicap=200", False),
        ("something else\ncap=200", False),
    ],
)
def test_the_prolog_takes_nothing_but_a_number_from_a_comment(
    node: GpuNode, comment: str, is_set: bool
) -> None:
    prolog = install(node, "comment-prolog.sh", notes=node.folder / "notes")
    assert run(prolog, SLURM_JOB_ID="5", SLURM_JOB_GPUS="0", SLURM_JOB_COMMENT=comment).returncode == 0
    assert node.limits_w() == [200 if is_set else CAP_W, CAP_W]


def test_what_the_driver_refuses_ends_in_the_log_and_drains_no_node(node: GpuNode) -> None:
    notes = node.folder / "notes"
    prolog = install(node, "comment-prolog.sh", notes=notes)
    words = {"SLURM_JOB_ID": "5", "SLURM_JOB_COMMENT": COMMENT.replace("200", "999")}
    assert run(prolog, SLURM_JOB_GPUS="0", **words).returncode == 0
    assert "job 5: 999 W were refused: Provided power limit is not a valid power limit" in log(node)
    assert run(prolog, SLURM_JOB_GPUS="7", **words).returncode == 0
    assert "the power limits of GPUs 7 cannot be read; none is set" in log(node)
    assert node.limits_w() == [CAP_W, CAP_W]


def test_a_users_dangling_link_does_not_switch_the_epilog_off(node: GpuNode) -> None:
    node.write_lease(0)
    (node.leases / "0.7.lease").symlink_to("/nowhere")
    called = node.folder / "called"
    program = node.folder / "shardwatt"
    program.write_text(f"#!/bin/sh\ntouch '{called}'\n")
    program.chmod(0o755)
    script = install(node, "leases-epilog.sh", leases=node.leases, shardwatt=program)
    assert run(script, SLURM_JOB_ID="7").returncode == 0
    assert called.exists()


def test_the_epilog_for_leases_starts_the_command_only_for_a_job_that_has_left_one(node: GpuNode) -> None:
    node.write_lease(0)
    program = node.folder / "shardwatt"
    settings = " ".join(f"{name}='{value}'" for name, value in node.settings().items())
    program.write_text(
        f"#!/bin/sh\necho \"$@\" >>'{node.folder}/called'\n"
        f'exec env {settings} "{sys.executable}" -m shardwatt "$@"\n'
    )
    program.chmod(0o755)
    script = install(node, "leases-epilog.sh", leases=node.leases, shardwatt=program)
    assert run(script, SLURM_JOB_ID="8", SLURM_JOB_UID=str(os.getuid())).returncode == 0
    assert not (node.folder / "called").exists()
    assert run(script, SLURM_JOB_ID="7", SLURM_JOB_UID=str(os.getuid())).returncode == 0
    assert (node.folder / "called").read_text() == f"restore-power-limits --leases {node.leases}\n"
    assert node.limits_w() == [250, CAP_W], log(node)
    assert "from 175 W back to 250 W" in log(node)


def test_the_command_for_sudo_sets_limits_within_the_sites_range(node: GpuNode) -> None:
    script = install(node, "set-gpu-power")
    assert run(script, "180", f"{uuid(0)},{uuid(1)}").returncode == 0
    assert node.limits_w() == [180, 180]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["180"],
        ["180", uuid(0), "--reset"],
        ["99", uuid(0)],
        ["301", uuid(0)],
        ["180.5", uuid(0)],
        ["-1", uuid(0)],
        ["0180", uuid(0)],
        ["180 ", uuid(0)],
        ["180", ""],
        ["180", ","],
        ["180", f"{uuid(0)},"],
        ["180", "0"],
        ["180", f"{uuid(0)} {uuid(1)}"],
        ["180", f"{uuid(0)}\n-r"],
        ["180", f"{uuid(0)},--gpu-reset"],
        ["180", f"-r,{uuid(0)}"],
        ["180", "GPU-*"],
    ],
    ids=repr,
)
def test_the_command_for_sudo_takes_no_other_words(node: GpuNode, words: list[str]) -> None:
    done = run(install(node, "set-gpu-power"), *words)
    assert done.returncode == 2
    assert done.stderr.startswith("set-gpu-power: ")
    assert node.limits_w() == [CAP_W, CAP_W]


@pytest.mark.parametrize("path", sorted(SCRIPTS.iterdir()), ids=lambda path: path.name)
def test_the_scripts_for_sites_are_sound(path: Path) -> None:
    assert os.access(path, os.X_OK)
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("no shellcheck")
    checked = subprocess.run([checker, path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
