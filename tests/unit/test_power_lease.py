"""Guards the notes of power limits: anybody may write where they lie, so nothing but a lease is one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardwatt.locks import boot_id
from shardwatt.power.limits.lease import Lease, LeaseError, open_leases
from shardwatt.power.process import own_space, start_ticks

NODE = socket.gethostname()
CONTENT: dict[str, Any] = {
    "node": NODE,
    "gpu": "GPU-00000000-0000-0000-0000-000000000000",
    "job_id": "12",
    "uid": os.getuid(),
    "pid": os.getpid(),
    "started_ticks": start_ticks(os.getpid()),
    "pid_space": own_space(),
    "boot_id": boot_id(),
    "before_w": 300.0,
    "before_enforced_w": 300.0,
    "cap_w": 175.0,
}


def lease(**changes: object) -> Lease:
    return Lease.model_validate({**CONTENT, **changes})


def found(folder: Path) -> dict[str, Lease | None]:
    """What the folder says of this node, by the files' names."""
    with open_leases(folder, make=False) as leases:
        return {one.name: one.lease for one in leases.of_node(NODE)}


def test_a_lease_is_read_as_it_was_written_until_it_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "leases"
    mine, elsewhere = lease(before_w=250.5), lease(node="another")
    with open_leases(folder) as leases:
        leases.write(mine)
        leases.write(elsewhere)
        assert found(folder) == {mine.name: mine}
        leases.remove(mine.name)
        leases.remove(mine.name)
    assert found(folder) == {}
    # Every user may write there, and none may remove what is another's.
    assert folder.stat().st_mode & 0o7777 == 0o1777
    assert [path.name for path in folder.iterdir()] == [elsewhere.name]


def test_the_folder_is_every_users_from_its_first_moment_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that only its maker can write is another user's job refused; killed then, it stays so."""
    seen: list[int] = []
    folder = tmp_path / "leases"
    made = os.mkdir

    def make(path: Any, mode: int = 0o777, **words: Any) -> None:
        made(path, mode, **words)
        seen.append(Path(path).stat().st_mode & 0o7777)

    monkeypatch.setattr(os, "mkdir", make)
    before = os.umask(0o077)
    try:
        with open_leases(folder):
            pass
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    assert seen[-1] == 0o1777


def test_a_process_holds_a_lease_while_it_runs_and_another_of_its_number_does_not() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        stat = Path(f"/proc/{child.pid}/stat").read_text()
        ticks = int(stat.rpartition(")")[2].split()[19])
        held = lease(pid=child.pid, started_ticks=ticks)
        assert held.is_held
        assert not lease(pid=child.pid, started_ticks=ticks + 1).is_held
        assert not lease(pid=child.pid, started_ticks=ticks, boot_id="0" * 36).is_held
        assert not held.is_elsewhere
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected
        assert not held.is_held
    finally:
        child.kill()
        child.wait()
    assert not held.is_held


def test_a_process_of_another_container_cannot_be_seen_and_holds_its_lease() -> None:
    """Its number is one of its own namespace: here it is nobody's, or another process's."""
    for pid in (1, 2**22 + 1):
        there = lease(pid=pid, started_ticks=1, pid_space=own_space() + 1)
        assert there.is_held
        assert there.is_elsewhere
    before = lease(pid_space=own_space() + 1, boot_id="0" * 36)
    assert not before.is_held
    assert not before.is_elsewhere


def test_a_process_that_is_not_shown_is_not_taken_for_gone(tmp_path: Path) -> None:
    """As on nodes where /proc hides other users' processes (hidepid)."""
    hide = "mount -t tmpfs hidden /proc/1 && exec "
    script = "from shardwatt.power.process import *; print(start_ticks(1), is_gone(1, 5, own_space()))"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{hide}"$0" "$@"', sys.executable, "-c", script],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0 and "mount" in done.stderr + done.stdout:
        pytest.skip("only root can hide a process")
    assert done.stdout == "None False\n", done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give folders away")
def test_a_folder_of_a_users_is_complained_of(tmp_path: Path) -> None:
    with open_leases(tmp_path) as leases:
        assert leases.complaint() is None
        os.chown(tmp_path, 1, 1)
        assert f"belongs to user 1, who can remove everybody's leases in it: chown root {tmp_path}" in str(
            leases.complaint()
        )


def text(**changes: object) -> str:
    return json.dumps({**CONTENT, **changes})


def a_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text(text())
    path.symlink_to(target)


def a_second_name(path: Path) -> None:
    target = path.with_name("target")
    target.write_text(text())
    path.hardlink_to(target)


NOT_LEASES: dict[str, Callable[[Path], object]] = {
    "link": a_link,
    "second-name": a_second_name,
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "torn": lambda path: path.write_text(text()[:-20]),
    "huge": lambda path: path.write_text(text() + " " * 5000),
    "more-keys": lambda path: path.write_text(text(command="rm")),
    "other-name": lambda path: path.write_text(text(job_id="13")),
    "other-owner": lambda path: path.write_text(text(uid=os.getuid() + 1)),
    "other-version": lambda path: path.write_text(text(schema_version=1)),
    "no-number": lambda path: path.write_text(text(before_w=float("inf"))),
    "below-zero": lambda path: path.write_text(text(cap_w=-1)),
    "no-process": lambda path: path.write_text(text(pid=0)),
    "path-for-gpu": lambda path: path.write_text(text(gpu="GPU-../../x")),
}


@pytest.mark.parametrize("case", NOT_LEASES)
def test_what_only_has_the_name_of_a_lease_is_none(tmp_path: Path, case: str) -> None:
    path = tmp_path / lease().name
    NOT_LEASES[case](path)
    assert found(tmp_path) == {path.name: None}


def test_a_regular_file_of_the_same_content_is_one(tmp_path: Path) -> None:
    (tmp_path / lease().name).write_text(text())
    (tmp_path / f".{lease().name}").write_text(text())
    (tmp_path / "README").touch()
    assert found(tmp_path) == {lease().name: lease()}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_another_users_lease_is_known_as_such(tmp_path: Path) -> None:
    path = tmp_path / lease(uid=1).name
    path.write_text(text(uid=1))
    os.chown(path, 1, 1)
    with open_leases(tmp_path) as leases:
        (one,) = leases.of_node(NODE)
    assert (one.owner, one.lease) == (1, lease(uid=1))


def test_a_folder_in_which_leases_are_not_safe_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "file").touch()
    target.chmod(0o777)
    for name, words in (
        ("link", "expected a folder on the node's own disk, no link"),
        ("file", "expected a folder on the node's own disk"),
        ("target", "set the sticky bit: chmod 1777"),
    ):
        with pytest.raises(LeaseError, match=words), open_leases(tmp_path / name):
            pass


def test_a_lease_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with open_leases(tmp_path / "gone") as leases:
        shutil.rmtree(tmp_path / "gone")
        with pytest.raises(LeaseError, match="nothing was changed; expected a folder"):
            leases.write(lease())
    # A lease's name may be taken by what cannot be replaced.
    with open_leases(tmp_path / "leases") as leases:
        (tmp_path / "leases" / lease().name).mkdir()
        with pytest.raises(LeaseError, match="nothing was changed"):
            leases.write(lease())
    assert [path.name for path in (tmp_path / "leases").iterdir()] == [lease().name]
