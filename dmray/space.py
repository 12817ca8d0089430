"""Room for large arrays and files: what is free is checked, and taken, before the first byte is written.

A write to a mapped file whose disk is full kills the process (SIGBUS) without a word, and so does the system when the
memory is used up. So both are refused beforehand, in a sentence that says how much is needed and how much is free.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import psutil

from dmray.errors import StorageError

_GIB = 2**30
_MOST_KEPT_FREE = _GIB  # of a disk, for what other processes write meanwhile;
_SHARE_KEPT_FREE = 0.02  # of a small disk this share
_MEMORY_SHARE = 0.9  # of the available memory that one request may take
_ZEROS = bytes(2**20)
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV)
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (  # limit, use, details, and which detail the system can take back
    ("memory.max", "memory.current", "memory.stat", "file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_cache"),
)


def free_bytes(path: Path) -> int:
    """The free bytes of the file system of `path`, which need not exist yet; 0 if it can have no more files.

    Raises:
        StorageError: the file system cannot be read.
    """
    try:
        existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        inodes = os.statvfs(existing)
        return 0 if inodes.f_files and not inodes.f_favail else shutil.disk_usage(existing).free
    except OSError as cause:
        raise StorageError(f"{path}: its free space cannot be read ({cause.strerror or cause})") from cause


def require_disk(folder: Path, needed: int, what: str, cure: str) -> None:
    """Check that `folder` has room for `needed` bytes and some more.

    Raises:
        StorageError: it has not; the message names `what` needs them and ends in `cure`.
    """
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free, spare = free_bytes(existing), min(_MOST_KEPT_FREE, int(_SHARE_KEPT_FREE * shutil.disk_usage(existing).total))
    if needed + spare > free:
        raise StorageError(f"{folder}: {what} needs {size_text(needed)}, but {size_text(free)} are free; {cure}")


def reserve(file: Path, what: str, cure: str) -> None:
    """Give every byte of `file`, which may be sparse, its place on the disk; what is in it stays.

    Raises:
        StorageError: the disk has no room, or the file cannot be written.
    """
    size = file.stat().st_size
    try:
        _allocate(file, size)
    except OSError as cause:
        free = size_text(free_bytes(file))
        raise StorageError(
            f"{file.parent}: {what} needs {size_text(size)}, but {free} are free ({cause.strerror or cause}); {cure}"
        ) from cause


def _allocate(file: Path, size: int) -> None:
    with file.open("r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
        except OSError as cause:
            if cause.errno not in _CANNOT_RESERVE:
                raise
            _overwrite(stream.fileno(), size)
        os.fsync(stream.fileno())  # some file systems find their place only now


def _overwrite(descriptor: int, size: int) -> None:
    """Where a file system reserves nothing: write each block as it is, zeros in the holes."""
    for start in range(0, size, len(_ZEROS)):
        block = os.pread(descriptor, min(len(_ZEROS), size - start), start)
        os.pwrite(descriptor, block, start)


def require_memory(needed: int, what: str, cure: str) -> None:
    """Check that `needed` bytes of memory are available on this machine, and in this process's container.

    Raises:
        StorageError: they are not; the message names `what` needs them and ends in `cure`.
    """
    available = available_memory()
    if needed > _MEMORY_SHARE * available:
        raise StorageError(f"{what} needs {size_text(needed)} of memory, but {size_text(available)} are free; {cure}")


def available_memory() -> int:
    """The bytes of memory that can still be taken, by the machine and by the limits of its containers (cgroup 2, 1)."""
    available = int(psutil.virtual_memory().available)
    for limit, used, statistics, pages_of_files in _CGROUP_FILES:
        try:
            facts = dict(line.split() for line in (_CGROUP / statistics).read_text(encoding="utf-8").splitlines())
            taken = int((_CGROUP / used).read_text(encoding="utf-8")) - int(facts.get(pages_of_files, 0))
            room = int((_CGROUP / limit).read_text(encoding="utf-8")) - taken
        except (OSError, ValueError):  # no such limit ("max")
            continue
        available = min(available, max(room, 0))
    return available


def size_text(size: int) -> str:
    """1536 -> '1.5 KiB'."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:z,.0f} {units[0]}" if units[0] == "bytes" else f"{value:z,.1f} {units[0]}"
