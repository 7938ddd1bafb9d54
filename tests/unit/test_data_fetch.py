"""Guards that no file from outside is used unchecked, and that none is ever there half-written."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from shardwatt.data.fetch import DataError, download, fetch, place, verify
from shardwatt.datasets import PinnedFile, load_catalogue

HELLO = b"hello\n"
HELLO_SHA256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
HELLO_BLOB = "ce013625030ba8dba906f756967f9e9ca394464a"  # what `git hash-object` prints for it
ROOT = Path(__file__).parents[2]


class _Server(BaseHTTPRequestHandler):
    """Offers /hello; /short breaks off in the middle; everything else is missing."""

    def do_GET(self) -> None:
        if self.path == "/hello":
            self.send_response(200)
            self.send_header("Content-Length", str(len(HELLO)))
            self.end_headers()
            self.wfile.write(HELLO)
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(HELLO)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Server)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    "pinned",
    [
        PinnedFile(file="hello.txt", sha256=HELLO_SHA256),
        PinnedFile(file="hello.txt", git_blob=HELLO_BLOB),
        PinnedFile(file="hello.txt", sha256=HELLO_SHA256, git_blob=HELLO_BLOB),
    ],
    ids=["sha256", "git blob", "both"],
)
def test_a_right_file_is_accepted_and_a_wrong_one_refused_with_both_hashes(
    tmp_path: Path, pinned: PinnedFile
) -> None:
    path = tmp_path / "hello.txt"
    path.write_bytes(HELLO)
    assert verify(pinned, path) == HELLO_SHA256
    path.write_bytes(b"hello")
    with pytest.raises(DataError) as caught:
        verify(pinned, path)
    message = str(caught.value)
    assert str(path) in message
    if pinned.sha256:
        assert f"SHA-256 {hashlib.sha256(b'hello').hexdigest()} where {HELLO_SHA256}" in message
    if pinned.git_blob:
        assert f"git blob id b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0 where {HELLO_BLOB}" in message


def test_one_wrong_hash_of_two_is_enough_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "hello.txt"
    path.write_bytes(HELLO)
    with pytest.raises(DataError, match="git blob id"):
        verify(PinnedFile(file="hello.txt", sha256=HELLO_SHA256, git_blob="0" * 40), path)


def test_a_missing_file_says_where_to_put_it(tmp_path: Path) -> None:
    pinned = PinnedFile(file="hello.txt", sha256=HELLO_SHA256, url="https://example.org/hello.txt")
    with pytest.raises(DataError, match=r"is not there; put hello\.txt from https://example\.org/hello\.txt"):
        verify(pinned, tmp_path / "hello.txt")


def test_a_download_lands_whole_in_a_new_folder_readable_by_the_group(tmp_path: Path, address: str) -> None:
    path = tmp_path / "new folder" / "hello.txt"
    umask = os.umask(0o022)
    try:
        download(f"{address}/hello", PinnedFile(file="hello.txt", sha256=HELLO_SHA256), path)
    finally:
        os.umask(umask)
    assert path.read_bytes() == HELLO
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        ("hello", "not written: what .*/hello offers has SHA-256 5891b5.* where 0000"),
        ("short", "cannot be downloaded"),
        ("missing", "cannot be downloaded .*404"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(
    tmp_path: Path, address: str, page: str, expected: str
) -> None:
    path = tmp_path / "hello.txt"
    with pytest.raises(DataError, match=expected) as caught:
        download(f"{address}/{page}", PinnedFile(file="hello.txt", sha256="0" * 64), path)
    assert list(tmp_path.iterdir()) == []
    assert f"into {tmp_path} by hand" in str(caught.value)


def test_no_network_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    pinned = PinnedFile(
        file="hello.txt", sha256=HELLO_SHA256, url=f"https://127.0.0.1:{_free_port()}/hello.txt"
    )
    with pytest.raises(
        DataError,
        match=r"hello\.txt: is not there and cannot be downloaded .* by hand, or set SHARDWATT_DATA",
    ):
        fetch(pinned, tmp_path / "hello.txt")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_checked_and_not_downloaded_again(tmp_path: Path) -> None:
    pinned = PinnedFile(
        file="hello.txt", sha256=HELLO_SHA256, url=f"https://127.0.0.1:{_free_port()}/hello.txt"
    )
    path = tmp_path / "hello.txt"
    path.write_bytes(HELLO)
    fetch(pinned, path)
    path.write_bytes(b"the user's own notes")
    with pytest.raises(DataError, match="move it away"):
        fetch(pinned, path)
    assert path.read_bytes() == b"the user's own notes"


def test_a_file_without_an_address_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no address is known for it; put hello\.txt into"):
        fetch(PinnedFile(file="hello.txt", sha256=HELLO_SHA256), tmp_path / "hello.txt")


def test_a_missing_file_of_the_project_is_not_asked_from_the_user(tmp_path: Path) -> None:
    pinned = load_catalogue(ROOT).dataset("demo-alpaca")
    with pytest.raises(DataError, match="is part of the project: restore it"):
        fetch(pinned, pinned.path(tmp_path, tmp_path))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "hello.txt"
    path.write_bytes(HELLO)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written: .*; free space"):
            place(b"x" * 100_000, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == HELLO
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    with pytest.raises(DataError, match="cannot be written"):
        place(HELLO, tmp_path / "taken" / "hello.txt")


def test_many_who_download_at_once_all_find_it_whole(tmp_path: Path, address: str) -> None:
    path = tmp_path / "hello.txt"
    pinned = PinnedFile(file="hello.txt", sha256=HELLO_SHA256)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(download, f"{address}/hello", pinned, path) for _ in range(8)]:
            done.result()
            assert path.read_bytes() == HELLO
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif("SHARDWATT_TEST_DATA" not in os.environ, reason="SHARDWATT_TEST_DATA is not set")
@pytest.mark.parametrize("name", ["alpaca-5000", "gsm8k"])
def test_the_pinned_hashes_are_those_of_the_published_data_sets(name: str) -> None:
    dataset = load_catalogue(ROOT).dataset(name)
    path = dataset.path(ROOT, Path(os.environ["SHARDWATT_TEST_DATA"]))
    assert verify(dataset, path) == dataset.sha256
