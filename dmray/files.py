"""Files that are there whole or not at all, and the folders for data sets and for what can be made again.

A power cut may lose what was not flushed to the disk, the entry of a folder included. So a file is flushed before it
takes its name, and its folder after that.

A file or folder that is being written is called `.<name>.<machine>-<pid>-<start>-<number>.part`: which process of which
machine writes it. So what a killed process left can be told from what is still written. A folder that is replaced has
such a name with `.old` at its end until the new one has its name.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any, BinaryIO

from dmray.errors import DmrayError, StorageError
from dmray.processes import started_at, this_machine

_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP)  # what file systems say that cannot flush a folder
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PART = re.compile(r"\..+\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-\d+\.(?:part|old)")
_OLD_S = 7 * 24 * 3600.0  # no process writes to one file for so long without adding to it
_numbers = itertools.count()


def user_path(path: str | Path, name: str = "") -> Path:
    """`path` with `~` and `~user` replaced; `name` is the setting that holds it, for the message.

    Raises:
        StorageError: that user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        setting = f"{name}={path}" if name else str(path)
        raise StorageError(f"{setting}: that home folder is not known; write the whole path, or set HOME") from None


def real_path(path: Path) -> Path:
    """`path.resolve()`, except that a loop of links is no error: who opens the file names it."""
    return Path(os.path.realpath(path))


def is_regular_file(path: Path) -> bool:
    """`path.is_file()`.

    Raises:
        StorageError: a folder above it may not be searched, or no file can have such a name.
    """
    try:
        return path.is_file()
    except (OSError, ValueError) as cause:
        why = (isinstance(cause, OSError) and cause.strerror) or cause
        raise StorageError(f"{path}: cannot be read ({why}); correct the path, or make it readable") from cause


def download_folders() -> list[Path]:
    """$DMRAY_DATASETS, if it is a folder, and D4RL's own one, if there is a home folder; downloads go to the first.

    Raises:
        StorageError: the home folder in $DMRAY_DATASETS is not known.
    """
    named = os.environ.get("DMRAY_DATASETS")
    folders = [user_path(named, "DMRAY_DATASETS")] if named and "://" not in named else []
    try:
        return [*folders, Path.home() / ".d4rl" / "datasets"]
    except RuntimeError:  # no $HOME, and the user database does not know the user
        return folders


def data_store_url() -> str | None:
    """$DMRAY_DATASETS, if it is the URL of a folder in an object store: the one source of published data sets then."""
    named = os.environ.get("DMRAY_DATASETS", "")
    return named.rstrip("/") if "://" in named else None


def cache_folder() -> Path:
    """$DMRAY_CACHE, else ~/.cache/dmray; for a user without a home folder, a folder of its own among temporary ones.

    Raises:
        StorageError: there is no such folder. It says to set DMRAY_CACHE.
    """
    if named := os.environ.get("DMRAY_CACHE"):
        return user_path(named, "DMRAY_CACHE")
    try:
        return Path.home() / ".cache" / "dmray"
    except RuntimeError:  # no $HOME, and the user database does not know the user: a container started with --user
        return _own_temporary_folder()


def _own_temporary_folder() -> Path:
    """A folder that nobody else can write to: compiled code is loaded from it."""
    try:
        folder = Path(tempfile.gettempdir()) / f"dmray-cache-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as cause:
        raise StorageError(
            f"no folder for the cache: $HOME is not set, and there is no temporary folder ({cause.strerror or cause}); "
            "set DMRAY_CACHE to a folder that can be written"
        ) from cause
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or not folder.is_dir() or folder.is_symlink():
        raise StorageError(f"{folder}: belongs to or can be written by others; set DMRAY_CACHE to a folder of your own")
    return folder


def is_full(error: OSError) -> bool:
    """Whether the disk, or what this user or a file may take of it, is used up."""
    return error.errno in _FULL


@contextmanager
def as_storage_error(path: Path, cure: str) -> Iterator[None]:
    """Turn an OSError of the block, which writes to `path`, into a StorageError of one sentence that ends in `cure`.

    Errors of dmray stay as they are, also those that are an OSError, as StoreUnavailableError: it is a transient error.
    """
    try:
        yield
    except DmrayError:
        raise
    except OSError as cause:
        advice = f"free some space, or {cure}" if is_full(cause) else cure
        raise StorageError(f"{path}: cannot be written ({cause.strerror or cause}); {advice}") from cause


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading, at once whatever stands there: opening a pipe would wait for its writer.

    Raises:
        OSError: there is no such file, it cannot be read, or it is not a regular file (EINVAL).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path, most_bytes: int = 2**20) -> bytes:
    """The content of a small regular file. (A file that another program fills might never end.)

    Raises:
        OSError: as `open_regular`; or the file has more than `most_bytes` bytes (EFBIG).
    """
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"larger than {most_bytes:,} bytes", str(path))
    return content


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder to; at the end of the block it replaces `path`.

    A reader, or a kill at any moment, finds the old `path` or the whole new one. If the block raises, what it wrote is
    removed. Only a file can replace what is there: two processes that write the same folder need a lock.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{_writer()}.part")
    try:
        yield part
        replace_durably(part, path)
    finally:
        _remove(part)


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """As `partial`, for a folder that may replace one: the caller has seen that the old one may go.

    The old one is set aside before the new one takes its name. A kill in between leaves both whole, under names of
    their own; a reader finds no half folder. What killed processes of this machine left of the same folder is removed:
    what they were writing at once, an old folder when there is a new one.
    """
    make_folder(path.parent)
    remove_ended_parts_of(path)
    part = path.with_name(f".{path.name}.{_writer()}.part")
    old = part.with_suffix(".old")
    try:
        yield part
        if path.exists():
            path.rename(old)
        replace_durably(part, path)
        remove_ended_parts_of(path, "old")
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(part)
        _remove(old)


def remove_ended_parts_of(path: Path, ending: str = "part") -> None:
    """Remove what processes of this machine that have ended were writing for `path`. Needs no lock."""
    for left in path.parent.glob(f".{escape(path.name)}.*.{ending}"):
        if _PART.fullmatch(left.name) and _ended(left):
            _remove(left)


def remove_stale_parts(folder: Path) -> list[Path]:
    """Remove what killed processes were writing in `folder` and the folders below it; returns what was removed.

    A part is stale if its process ran on this machine since it started and runs no more, or, whoever wrote it, if it
    has not been written to for a week, by the clock of its file system.
    """
    removed = []
    for part in _found(folder):
        with suppress(OSError):  # another process removes it too, or the folder is read-only
            if _PART.fullmatch(part.name) and (_ended(part) or _age_s(part) > _OLD_S):
                _remove(part)
                removed.append(part)
    return removed


def remove_parts_of(path: Path) -> None:
    """Remove what killed processes were writing for `path`, whose lock the caller holds."""
    with suppress(OSError):
        for part in path.parent.iterdir():
            if part.name.startswith(f".{path.name}.") and _PART.fullmatch(part.name):
                _remove(part)


def _found(folder: Path) -> list[Path]:
    """Every file and folder whose name ends in .part; not what is in such a folder."""
    found = []
    for root, folders, files in os.walk(folder):
        found += [Path(root) / name for name in (*folders, *files) if name.endswith(".part")]
        folders[:] = [name for name in folders if not name.endswith(".part")]
    return found


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part, ignore_errors=True)
    else:
        part.unlink(missing_ok=True)


def _ended(part: Path) -> bool:
    """Whether the part's writer is known to run no more: a process of this machine that has ended."""
    match = _PART.fullmatch(part.name)
    assert match is not None
    return match["machine"] == _machine() and _start_of(int(match["pid"])) != match["start"]


def _age_s(part: Path) -> float:
    """Seconds since anything in the part was written, by the clock of its file system."""
    with tempfile.TemporaryFile(dir=part.parent) as new:
        now_s = os.fstat(new.fileno()).st_mtime
    inside = [file.stat().st_mtime for file in part.rglob("*")] if part.is_dir() else []
    return now_s - max([part.stat().st_mtime, *inside])


def _writer() -> str:
    return f"{_machine()}-{os.getpid()}-{_start_of(os.getpid())}-{next(_numbers)}"


def _start_of(pid: int) -> str | None:
    started = started_at(pid)
    return "0" if started == "" else started


@cache
def _machine() -> str:
    return hashlib.sha256(f"{socket.gethostname()} {this_machine()}".encode()).hexdigest()[:8]


def make_folder(path: Path) -> None:
    """Make a folder and those above it where they are missing, each flushed to the disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    flush(path.parent)


def replace_durably(part: Path, path: Path) -> None:
    """Rename `part` (a file, or a folder of files) to `path` in the same folder, both flushed to the disk."""
    for file in sorted(part.rglob("*")) if part.is_dir() else ():
        flush(file)
    flush(part)
    part.replace(path)
    flush(path.parent)


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Put `content` at `path`, whole or not at all; folders are made where they are missing."""
    with partial(path) as part:
        part.write_bytes(content)


def replace_unflushed(path: Path, content: bytes) -> None:
    """Put `content` at `path` in a folder that exists, for readers now: a power cut may lose it. Fast.

    A reader, or a kill at any moment, finds the old content or the new one.
    """
    part = path.with_name(f".{path.name}.{_writer()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        _remove(part)


def write_json(path: Path, value: Any) -> None:
    """Put `value` at `path` as indented JSON, whole or not at all.

    Raises:
        ValueError: a number is not finite.
    """
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def flush(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as cause:
        if not (path.is_dir() and cause.errno in _NO_FOLDER_FSYNC):
            raise
    finally:
        os.close(descriptor)
