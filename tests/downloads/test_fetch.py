from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dmray.downloads import MANIFEST_NAME, FetchSettings, Manifest, RemoteFile, fetch, verify
from dmray.downloads import fetching as fetching_module
from dmray.downloads import remote as remote_module
from dmray.errors import DatasetError, DatasetUnavailableError, StorageError
from tests.downloads.server import Server, cut_after, properly, refused, serving, short_by

NAME = "hopper_medium-v2.hdf5"
BLOCK = 1000
CONTENT = bytes(i * 7 % 251 for i in range(10 * BLOCK + 123))


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching_module, "_BLOCK_BYTES", BLOCK)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        running.files[f"/data/{NAME}"] = CONTENT
        yield running


def remote(server: Server) -> RemoteFile:
    return RemoteFile(NAME, f"{server.address}/data/{NAME}")


def settings(*mirrors: str, **changes: Any) -> FetchSettings:
    return FetchSettings(mirrors=mirrors, attempts=changes.pop("attempts", 3), sleep=lambda seconds: None, **changes)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_fetched_and_pinned(server: Server, tmp_path: Path) -> None:
    path = fetch(remote(server), tmp_path / "new", settings())
    assert path.read_bytes() == CONTENT
    entry = Manifest(tmp_path / "new").get(NAME)
    assert entry is not None
    assert (entry.sha256, entry.size) == (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    assert entry.url == remote(server).url
    assert left_in(tmp_path / "new") == [MANIFEST_NAME, NAME]
    assert verify(NAME, tmp_path / "new").first_seen is False


def test_a_file_that_is_there_is_not_asked_for(server: Server, tmp_path: Path) -> None:
    fetch(remote(server), tmp_path, settings())
    asked = len(server.ranges)
    fetch(remote(server), tmp_path, settings())
    assert len(server.ranges) == asked


def test_a_file_that_is_there_is_returned_without_writing_beside_it(server: Server, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(remote(server), tmp_path, settings()) == tmp_path / NAME
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_folder_that_cannot_be_written_is_said(server: Server) -> None:
    with pytest.raises(StorageError, match=r"cannot be locked \(.*\); set DMRAY_DATASETS"):
        fetch(remote(server), Path("/proc/nowhere"), settings())


def test_a_cut_connection_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.script = [properly] * 3 + [cut_after(400)]
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT
    starts = [int(each.split("=")[1].split("-")[0]) for each in server.ranges if each]
    assert starts == [0, 1000, 2000, 3000, 3000, 4000, 5000, 6000, 7000, 8000, 9000, 10000]


def test_a_short_answer_is_never_taken_for_the_whole(server: Server, tmp_path: Path) -> None:
    server.script = [short_by(1)] * 3
    with pytest.raises(DatasetError, match="received 999 bytes instead of 1000"):
        fetch(remote(server), tmp_path, settings())
    assert not (tmp_path / NAME).exists()
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT


def test_progress_forgives_interruptions_and_silence_does_not(server: Server, tmp_path: Path) -> None:
    server.script = [properly, refused(503)] * 8
    assert fetch(remote(server), tmp_path / "a", settings(attempts=2)).read_bytes() == CONTENT
    server.script = [properly, refused(503), refused(503)]
    with pytest.raises(DatasetUnavailableError, match="the server answers 503"):
        fetch(remote(server), tmp_path / "b", settings(attempts=2))


def test_a_server_that_knows_no_ranges_is_read_whole(server: Server, tmp_path: Path) -> None:
    server.knows_ranges = False
    server.script = [cut_after(400)]
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT


def test_what_was_begun_goes_on_and_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.script = [properly] * 4 + [refused(500)] * 3
    with pytest.raises(DatasetError):
        fetch(remote(server), tmp_path, settings())
    assert left_in(tmp_path) == [f"{NAME}.part", f"{NAME}.part.json"]
    server.ranges.clear()
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT
    assert server.ranges[0] == "bytes=4000-4999"


def test_bytes_of_two_files_never_meet(server: Server, tmp_path: Path) -> None:
    server.script = [properly] * 4 + [refused(500)] * 3
    with pytest.raises(DatasetError):
        fetch(remote(server), tmp_path, settings())
    changed = bytes(reversed(CONTENT))
    server.files[f"/data/{NAME}"], server.etag = changed, "two"
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == changed


def test_a_file_that_changes_while_it_is_read_is_read_again(server: Server, tmp_path: Path) -> None:
    changed = bytes(reversed(CONTENT))

    def change(handler: Any, content: bytes) -> None:
        handler.serve(content)
        server.files[f"/data/{NAME}"], server.etag = changed, "two"

    server.script = [change]
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == changed


@pytest.mark.parametrize("status", [403, 404, 410])
def test_what_is_not_there_is_not_asked_for_twice(server: Server, tmp_path: Path, status: int) -> None:
    server.script = [refused(status)] * 10
    server.heads = [status] * 10
    pauses: list[float] = []
    with pytest.raises(DatasetError) as error:
        fetch(remote(server), tmp_path, FetchSettings(sleep=pauses.append))
    assert type(error.value) is DatasetError  # not a transient one
    assert f"{remote(server).url}: the server answers {status}" in str(error.value)
    assert "DMRAY_MIRRORS" in str(error.value)
    assert pauses == []


def test_pauses_grow_and_vary(tmp_path: Path) -> None:
    pauses: list[float] = []
    with pytest.raises(DatasetError):
        fetch(RemoteFile(NAME, "http://127.0.0.1:9/x"), tmp_path, FetchSettings(attempts=5, sleep=pauses.append))
    assert len(pauses) == 4
    assert all(0.5 * 2**n <= pause <= 2**n for n, pause in enumerate(pauses))


def test_mirrors_come_first_in_their_order_and_the_publisher_last(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DMRAY_MIRRORS", f"http://127.0.0.1:9/gone , {(tmp_path / 'mirror').as_uri()}/")
    monkeypatch.setenv("DMRAY_OFFLINE", "0")
    chosen = FetchSettings.from_environment()
    assert [address.rpartition("/")[0].split("://")[0] for address in chosen.addresses(remote(server))] == [
        "http", "http", "file", "file", "http",
    ]  # fmt: skip
    (tmp_path / "mirror" / "data").mkdir(parents=True)
    (tmp_path / "mirror" / "data" / NAME).write_bytes(CONTENT)  # by the path of its published address
    quick = FetchSettings(chosen.mirrors, attempts=1, sleep=lambda seconds: None)
    assert fetch(remote(server), tmp_path / "here", quick).read_bytes() == CONTENT
    assert server.ranges == []


@pytest.mark.parametrize(
    "mirror",
    [
        "sthree://bucket", "memory://bucket", "simplecache::http://host", "file::file:///data", "relative/folder",
        "http://", "http://[::1", "https:///data", "http://host:port", "http://host:99999", "http://" + "a" * 300, "://",
        "file:///dev/zero?", "file:///proc/nowhere", "http://\x00", "http://a b/c", "ftp://host/data", "/data",
    ],
)  # fmt: skip
def test_an_odd_mirror_is_a_line_of_the_error_and_the_next_address_is_tried(
    server: Server, tmp_path: Path, mirror: str
) -> None:
    assert fetch(remote(server), tmp_path / "a", settings(mirror)).read_bytes() == CONTENT
    server.files.clear()
    with pytest.raises(DatasetError) as error:
        fetch(remote(server), tmp_path / "b", settings(mirror))
    assert len(str(error.value).splitlines()) == 5, "a heading, two addresses of the mirror, the publisher's, the cure"


def test_passwords_of_mirrors_are_neither_shown_nor_stored(server: Server, tmp_path: Path) -> None:
    mirror = f"http://user:secret@127.0.0.1:{server.server_port}/data"
    fetch(remote(server), tmp_path / "a", settings(mirror))
    server.files.clear()
    with pytest.raises(DatasetError) as error:
        fetch(remote(server), tmp_path / "b", settings(mirror, "http://user:secret@[/"))
    stored = [path.read_text() for folder in ("a", "b") for path in (tmp_path / folder).glob("*.json")]
    assert all("secret" not in text for text in (*stored, str(error.value)))


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_only_a_file_is_read_from_a_folder(server: Server, tmp_path: Path, kind: str) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / NAME).mkdir() if kind == "folder" else os.mkfifo(mirror / NAME)
    assert fetch(remote(server), tmp_path / "here", settings(mirror.as_uri())).read_bytes() == CONTENT


def test_an_answer_that_never_ends_is_given_up_for_the_next_address(server: Server, tmp_path: Path) -> None:
    def for_ever(handler: Any, content: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(BLOCK))

    server.files[f"/mirror/{NAME}"] = b""
    server.unsized.add(f"/mirror/{NAME}")
    server.script = [for_ever]
    limited = settings(f"{server.address}/mirror", most_bytes=50 * BLOCK)
    assert fetch(remote(server), tmp_path, limited).read_bytes() == CONTENT


def test_an_answer_that_is_longer_than_announced_is_given_up(server: Server, tmp_path: Path) -> None:
    def too_long(handler: Any, content: bytes) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content + b"more")

    server.script = [too_long]
    with pytest.raises(DatasetError, match="sends more than 10,123 bytes"):
        fetch(remote(server), tmp_path, settings())
    assert (tmp_path / f"{NAME}.part").stat().st_size == 0


def test_an_address_that_trickles_is_given_up_for_the_next_one(server: Server, tmp_path: Path) -> None:
    clock_s = 0.0

    def trickle(handler: Any, content: bytes) -> None:
        nonlocal clock_s
        clock_s += 100
        handler.serve(content)

    server.files[f"/mirror/{NAME}"] = CONTENT
    server.script = [trickle]
    slow = settings(f"{server.address}/mirror", clock=lambda: clock_s)
    assert fetch(remote(server), tmp_path, slow).read_bytes() == CONTENT
    server.script = [trickle]
    with pytest.raises(DatasetError, match="sends 10 bytes a second, less than 4,096"):
        fetch(remote(server), tmp_path / "other", settings(clock=lambda: clock_s))
    server.script = [trickle]
    with pytest.raises(DatasetError, match=r"not complete after 0\.01 hours"):
        fetch(remote(server), tmp_path / "third", settings(clock=lambda: clock_s, most_s=36.0))


def test_a_server_that_says_nothing_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "_READ_TIMEOUT_S", 0.2)
    silence = threading.Event()
    server.script = [lambda handler, content: silence.wait(60)] * 3  # type: ignore[list-item, return-value]
    try:
        with pytest.raises(DatasetError, match="no answer in time"):
            fetch(remote(server), tmp_path, settings())
    finally:
        silence.set()


def test_a_size_that_is_not_the_pinned_one_is_not_downloaded(server: Server, tmp_path: Path) -> None:
    fetch(remote(server), tmp_path, settings()).unlink()
    server.ranges.clear()
    server.files[f"/mirror/{NAME}"] = CONTENT + b"?"
    assert fetch(remote(server), tmp_path, settings(f"{server.address}/mirror")).read_bytes() == CONTENT
    assert len([each for each in server.ranges if each]) == 11


@pytest.mark.parametrize("described", ["bytes 7-9/10123", "bytes */10123", "", "nonsense"])
def test_another_range_than_the_one_asked_for_is_refused(server: Server, tmp_path: Path, described: str) -> None:
    def lie(handler: Any, content: bytes) -> None:
        handler.headers_for(206, BLOCK, described)
        handler.wfile.write(content[:BLOCK])

    server.script = [lie]
    with pytest.raises(DatasetError, match="where bytes from 0 were asked for"):
        fetch(remote(server), tmp_path, settings())


@pytest.mark.parametrize("status", [416, 301, 204])
def test_odd_answers_are_said(server: Server, tmp_path: Path, status: int) -> None:
    server.script = [refused(status)] * 3
    with pytest.raises(DatasetError, match=f"the server answers {status}|received 0 bytes instead of"):
        fetch(remote(server), tmp_path, settings())


@pytest.mark.parametrize("target", ["{path}", "file:///etc/passwd", "ftp://host/x", "http://[", "//"])
def test_redirects_end(server: Server, tmp_path: Path, target: str) -> None:
    def redirect(handler: Any, content: bytes) -> None:
        handler.send_response(302)
        handler.send_header("Location", target.format(path=handler.path))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.script = [redirect] * 100
    with pytest.raises(DatasetError, match=r"redirects more than 5 times|redirects to none|: "):
        fetch(remote(server), tmp_path, settings())


def test_content_that_is_sent_compressed_is_refused(server: Server, tmp_path: Path) -> None:
    def compressed(handler: Any, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", "20")
        handler.end_headers()
        handler.wfile.write(bytes(20))

    server.script = [compressed]
    with pytest.raises(DatasetError, match="sends the file compressed"):
        fetch(remote(server), tmp_path, settings())


def test_a_part_that_is_longer_than_the_file_is_not_continued(server: Server, tmp_path: Path) -> None:
    server.script = [properly] * 4 + [refused(500)] * 3
    with pytest.raises(DatasetError):
        fetch(remote(server), tmp_path, settings())
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT + b"more")
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT


def test_a_disk_that_fills_during_a_download_is_said(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetching_module, "_fill", full)
    with pytest.raises(StorageError, match=r"No space left on device\); free some space, or set DMRAY_DATASETS"):
        fetch(remote(server), tmp_path, settings())


def test_content_that_is_refused_is_removed_and_the_next_address_tried(server: Server, tmp_path: Path) -> None:
    server.files[f"/mirror/{NAME}"] = b"<html>We are moving house</html>"

    def check(path: Path) -> None:
        if path.read_bytes().startswith(b"<html"):
            raise DatasetError("not a data set")

    path = fetch(remote(server), tmp_path, settings(f"{server.address}/mirror"), check)
    assert path.read_bytes() == CONTENT
    server.files[f"/data/{NAME}"] = b"<html>so are we</html>"
    with pytest.raises(DatasetError, match="not a data set"):
        fetch(remote(server), tmp_path / "other", settings(), check)
    assert [name for name in left_in(tmp_path / "other") if not name.endswith(".json")] == []


def test_another_content_than_the_pinned_one_is_refused(server: Server, tmp_path: Path) -> None:
    fetch(remote(server), tmp_path, settings()).unlink()
    server.files[f"/data/{NAME}"], server.etag = bytes(reversed(CONTENT)), "two"
    with pytest.raises(DatasetError) as error:
        fetch(remote(server), tmp_path, settings())
    assert hashlib.sha256(CONTENT).hexdigest() in str(error.value)
    assert hashlib.sha256(bytes(reversed(CONTENT))).hexdigest() in str(error.value)
    assert not (tmp_path / NAME).exists()


def test_a_file_that_changed_on_the_disk_is_noticed(server: Server, tmp_path: Path) -> None:
    path = fetch(remote(server), tmp_path, settings())
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DatasetError, match="remove it and fetch it again"):
        fetch(remote(server), tmp_path, settings())
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DatasetError, match="is pinned in"):
        verify(NAME, tmp_path)


def test_a_file_that_somebody_else_put_there_is_pinned_when_first_verified(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert fetch(RemoteFile(NAME, "http://127.0.0.1:9/x"), tmp_path, settings()).read_bytes() == CONTENT
    assert [verify(NAME, tmp_path).first_seen for _ in range(2)] == [True, False]


@pytest.mark.parametrize(
    ("given", "offline"), [("1", True), (" On ", True), ("no", False), ("", False), ("offline", None)]
)
def test_offline_is_yes_or_no(given: str, offline: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_OFFLINE", given)
    if offline is not None:
        assert FetchSettings.from_environment().offline is offline
        return
    with pytest.raises(DatasetError, match="DMRAY_OFFLINE=offline: neither yes nor no; set it to 1 or 0"):
        FetchSettings.from_environment()


def test_offline_nothing_is_asked_for(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="DMRAY_OFFLINE forbids"):
        fetch(remote(server), tmp_path, settings(offline=True))
    assert server.ranges == []


def test_a_disk_that_is_too_small_is_said_before_it_is_full(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("dmray.space.shutil.disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(StorageError, match=r"the rest of the file needs 9.9 KiB, but 100 bytes are free; .* DMRAY_DA"):
        fetch(remote(server), tmp_path, settings())
    assert server.ranges == []


@pytest.mark.parametrize(
    "content",
    [
        b"{", b"", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 100_000, f'{{"{NAME}": []}}'.encode(),
        f'{{"{NAME}": {{}}}}'.encode(),
        f'{{"{NAME}": {{"sha256": 1, "size": "x", "url": 0, "fetched_at": ""}}}}'.encode(),
        f'{{"{NAME}": null}}'.encode(),
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_manifest_is_said(server: Server, tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{MANIFEST_NAME}: .*remove (it|the entry) to pin anew") as error:
        fetch(remote(server), tmp_path, settings())
    assert "Traceback" not in str(error.value)
    (tmp_path / NAME).write_bytes(CONTENT)
    with pytest.raises(DatasetError, match="to pin anew"):
        verify(NAME, tmp_path)


def test_a_file_in_a_read_only_folder_is_verified_and_not_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise StorageError("/data/.lock: cannot be locked (Read-only file system)")

    (tmp_path / NAME).write_bytes(CONTENT)
    monkeypatch.setattr(Manifest, "put", read_only)
    verification = verify(NAME, tmp_path)
    assert verification.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert "not pinned (/data/.lock: cannot be locked (Read-only file system))" in str(verification)


FETCHER = """
import sys, time
from pathlib import Path
from dmray.downloads import FetchSettings, RemoteFile, fetch, fetching
fetching._BLOCK_BYTES = 1000
pause = float(sys.argv[3])
def slowly(name, done, total):
    print(done, flush=True)
    time.sleep(pause)
fetch(RemoteFile("hopper_medium-v2.hdf5", sys.argv[1]), Path(sys.argv[2]), FetchSettings(), progress=slowly)
"""


def fetcher(server: Server, folder: Path, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCHER, remote(server).url, str(folder), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("blocks", [0, 3, 10])
def test_a_killed_download_goes_on_and_verifies(server: Server, tmp_path: Path, blocks: int) -> None:
    process = fetcher(server, tmp_path, pause_s=0.05)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= blocks * BLOCK:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    server.ranges.clear()
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT
    first = next(iter(server.ranges), "bytes=10123-")  # nothing is asked for when all was there
    assert first is not None
    assert int(first.split("=")[1].split("-")[0]) >= blocks * BLOCK
    assert not verify(NAME, tmp_path).first_seen


@pytest.mark.parametrize("step", ["write the manifest", "take the name", "remove the note"])
def test_a_kill_at_the_end_leaves_what_the_next_fetch_finishes(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise KilledError

    def dies_at(method: Callable[..., Any], last_name: str) -> Callable[..., Any]:
        return lambda self, *rest, **named: die() if self.name == last_name else method(self, *rest, **named)

    with monkeypatch.context() as patch:
        if step == "write the manifest":
            patch.setattr(Manifest, "put", die)
        elif step == "take the name":
            patch.setattr(Path, "replace", dies_at(Path.replace, f"{NAME}.part"))
        else:
            patch.setattr(Path, "unlink", dies_at(Path.unlink, f"{NAME}.part.json"))
        with pytest.raises(KilledError):
            fetch(remote(server), tmp_path, settings())
    server.ranges.clear()
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT
    assert server.ranges == [], "every byte was there"
    assert not verify(NAME, tmp_path).first_seen


def test_two_processes_that_want_a_file_fetch_it_once(server: Server, tmp_path: Path) -> None:
    processes = [fetcher(server, tmp_path, pause_s=0.01) for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    starts = [int(each.split("=")[1].split("-")[0]) for each in server.ranges if each]
    assert starts == list(range(0, 11_000, 1000))
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_killed_holder_of_the_lock_frees_it(server: Server, tmp_path: Path) -> None:
    process = fetcher(server, tmp_path, pause_s=60)
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert fetch(remote(server), tmp_path, settings()).read_bytes() == CONTENT


@pytest.mark.parametrize("place", ["pipe", "/dev/zero", "loop"])
def test_a_manifest_that_is_no_file_is_named_at_once(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    Manifest(tmp_path).path.symlink_to(place)
    with pytest.raises(
        DatasetError,
        match=r"cannot be read \((not a regular file|Too many levels of symbolic links)\).*remove it to pin anew",
    ):
        Manifest(tmp_path).get("x")
