from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dmray.errors import StorageError, StoreUnavailableError
from dmray.files import (
    as_storage_error,
    cache_folder,
    partial,
    read_small,
    remove_parts_of,
    remove_stale_parts,
    replaced_folder,
    user_path,
    write_atomic,
    write_json,
)


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_a_block_that_raises_leaves_the_old_content_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write_half() -> None:
        with partial(path) as part:
            part.write_bytes(b"half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_json_that_is_not_finite_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"a": [1, 2.5, None]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": [\n    1,\n    2.5,\n    null\n  ]\n}\n'


def test_a_folder_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "folder"

    def write_half() -> None:
        with partial(folder) as part:
            part.mkdir()
            (part / "one").write_bytes(b"1")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        write_half()
    assert os.listdir(tmp_path) == []
    with partial(folder) as part:
        part.mkdir()
        (part / "one").write_bytes(b"1")
        assert not folder.exists()
    assert (folder / "one").read_bytes() == b"1"
    assert os.listdir(tmp_path) == ["folder"]


def test_what_a_power_cut_must_not_lose_is_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        events.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name.split('.')[-1]}")
        fsync(descriptor)

    def noted_replace(part: Path, path: Path) -> Path:
        events.append("rename")
        return replace(part, path)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    folder = tmp_path / "folder"
    with partial(folder / "new") as part:
        part.mkdir()
        (part / "inside").write_bytes(b"1")
    assert events == [f"flush {tmp_path.name}", "flush inside", "flush part", "rename", "flush folder"]


def test_a_file_system_that_cannot_flush_folders_is_good_enough_but_a_broken_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_with = errno.EINVAL

    def fsync(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_dir():
            raise OSError(fails_with, os.strerror(fails_with))

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "file", b"1")
    fails_with = errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        write_atomic(tmp_path / "file", b"2")


def test_the_cache_folder_is_the_named_one_or_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    monkeypatch.setenv("DMRAY_CACHE", "~/cache")
    assert cache_folder() == Path("/somewhere/cache")
    monkeypatch.setenv("DMRAY_CACHE", "")
    assert cache_folder() == Path("/somewhere/.cache/dmray")


def test_without_a_home_folder_the_cache_is_a_temporary_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DMRAY_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder() == Path(tempfile.gettempdir()) / f"dmray-cache-{os.getuid()}"


def test_a_temporary_cache_that_others_could_write_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DMRAY_CACHE")
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    cache_folder().chmod(0o777)
    with pytest.raises(StorageError, match="can be written by others; set DMRAY_CACHE to a folder of your own"):
        cache_folder()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/proc/nowhere")
    with pytest.raises(StorageError, match="set DMRAY_CACHE to a folder that can be written"):
        cache_folder()


def test_a_home_folder_that_is_not_known_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMRAY_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(StorageError, match=r"^DMRAY_CACHE=~nobody-of-that-name/cache: that home folder is not known"):
        cache_folder()
    with pytest.raises(StorageError, match="write the whole path"):
        user_path("~nobody-of-that-name/runs")


WRITER = """
import sys, time
from pathlib import Path
from dmray.files import partial
with partial(Path(sys.argv[1])) as part:
    if sys.argv[2] == "folder":
        part.mkdir()
        (part / "inside").write_bytes(b"half")
    else:
        part.write_bytes(b"half")
    print(part, flush=True)
    time.sleep(600)
"""


def test_a_folder_that_a_killed_process_never_finished_is_removed_by_the_next_and_an_old_one_when_there_is_a_new_one(
    tmp_path: Path,
) -> None:
    with replaced_folder(tmp_path / "export") as part:
        part.mkdir()
        machine, pid, start, number = part.name.removesuffix(".part").rpartition(".")[2].split("-")
        killed = f".export.{machine}-{pid}-{int(start) - 1}-{number}"
    (tmp_path / "export").rename(tmp_path / f"{killed}.old")  # it was killed when it had set the old one aside
    for name in (f"{killed}.part", part.name, ".export.00000000-1-1-0.part", f".exports.{killed[9:]}.part"):
        (tmp_path / name).mkdir()
    others = {
        part.name,
        ".export.00000000-1-1-0.part",
        f".exports.{killed[9:]}.part",
    }  # now, elsewhere, another
    with replaced_folder(tmp_path / "export") as new:
        new.mkdir()
        assert set(os.listdir(tmp_path)) == {*others, new.name, f"{killed}.old"}
    assert set(os.listdir(tmp_path)) == {*others, "export"}


def test_a_transient_error_stays_one_in_a_block_that_writes(tmp_path: Path) -> None:
    def write(problem: OSError) -> None:
        with as_storage_error(tmp_path, "give another folder"):
            raise problem

    with pytest.raises(StoreUnavailableError, match=r"^s3://b: the store does not answer$"):
        write(StoreUnavailableError("s3://b: the store does not answer"))
    with pytest.raises(StorageError, match=r"cannot be written \(No space left.*; free some space, or give another"):
        write(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_writer_left_is_removed_and_what_is_still_written_stays(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "deep" / "result"), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            part = Path(process.stdout.readline().strip())
            assert remove_stale_parts(tmp_path) == []
            assert part.exists()
        finally:
            process.send_signal(signal.SIGKILL)
    assert remove_stale_parts(tmp_path) == [part]
    assert os.listdir(tmp_path / "deep") == []


def test_a_process_that_has_the_number_of_a_killed_writer_is_told_from_it(tmp_path: Path) -> None:
    with partial(tmp_path / "result") as part:
        part.write_bytes(b"")
        machine, pid, start, number = part.name.removesuffix(".part").rpartition(".")[2].split("-")
        earlier = part.with_name(f".result.{machine}-{pid}-{int(start) - 1}-{number}.part")
        earlier.write_bytes(b"")
        assert remove_stale_parts(tmp_path) == [earlier]


def test_what_another_machine_writes_is_removed_after_a_week_without_a_write(tmp_path: Path) -> None:
    names = {".a.00000000-1-1-0.part": 8, ".b.00000000-1-1-0.part": 6, ".c.00000000-1-1-0.part": -9, "mine.part": 99}
    for name, days in names.items():
        (tmp_path / name).write_bytes(b"")
        past_s = (tmp_path / name).stat().st_mtime - days * 24 * 3600
        os.utime(tmp_path / name, (past_s, past_s))
    assert [path.name for path in remove_stale_parts(tmp_path)] == [".a.00000000-1-1-0.part"]


def test_whoever_holds_the_lock_of_a_file_removes_every_part_of_it(tmp_path: Path) -> None:
    for name in (".a.00000000-1-1-0.part", ".ab.00000000-1-1-0.part"):
        (tmp_path / name).mkdir()
    remove_parts_of(tmp_path / "a")
    assert os.listdir(tmp_path) == [".ab.00000000-1-1-0.part"]
    remove_parts_of(tmp_path / "missing" / "a")


def test_a_small_file_is_read_and_anything_else_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(bytes(101))
    for name in ("pipe", "zero", "loop", "large", "."):
        with pytest.raises(OSError, match=r"regular|larger|symbolic links") as refused:
            read_small(tmp_path / name, 100)
        assert refused.value.errno in (errno.EINVAL, errno.EFBIG, errno.ELOOP), name
    assert read_small(tmp_path / "large", 101) == bytes(101)
