from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from dmray.files import cache_folder, partial, write_atomic, write_json


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
