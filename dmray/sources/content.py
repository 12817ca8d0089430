"""Which content files have: the SHA-256 of their bytes, computed anew unless it is certain that nothing was written.

A digest is remembered under everything that shows a write: inode, size, mtime, ctime and the bytes of some blocks. No
program can set ctime back (`cp -p`, `touch` and `rsync -t` restore mtime only). A digest is not remembered

* if the file was written less than a minute before: a write within the same tick of the clock leaves the same times,
  and one through mapped memory sets them late;
* on file systems that have no ctime of their own, such as FUSE mounts of other machines.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from dmray.errors import DatasetError, StorageError
from dmray.files import cache_folder, write_atomic

_RECENT_NS = 60 * 10**9
_SAMPLES, _SAMPLE_BYTES = 16, 4096
_NO_CTIME = re.compile(r"fuse.*|9p|cifs|smb.*|vfat|exfat|msdos|ntfs.*")

Facts = list[list[str | int]]


def content_digest(files: Sequence[Path]) -> str:
    """SHA-256 (hex) of the bytes of one file, or of the names and digests of several.

    Raises:
        DatasetError: a file cannot be read, or it is written to meanwhile.
    """
    facts = facts_of(files)
    memory = _memory(_hashed([facts, [_sample(file) for file in files]]))
    lasting = memory is not None and _lasting(files, facts)
    if memory is not None and lasting and (remembered := _remembered(memory)):
        return remembered
    digest = _digest(files)
    require_unchanged(files, facts)
    if memory is not None and lasting:
        with suppress(OSError):  # then it is computed again the next time
            write_atomic(memory, digest.encode())
    return digest


def facts_of(files: Sequence[Path]) -> Facts:
    """What changes with every write to a file: per file its path, inode, size, mtime and ctime."""
    try:
        found = [(file, file.stat()) for file in files]
    except OSError as cause:
        raise DatasetError(f"{cause.filename}: cannot be read ({cause.strerror})") from cause
    return [[os.path.realpath(file), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for file, s in found]


def require_unchanged(files: Sequence[Path], facts: Facts) -> None:
    """Check that `files` are as they were when `facts_of` gave `facts`.

    Raises:
        DatasetError: one was written to since.
    """
    for file, before, now in zip(files, facts, facts_of(files), strict=True):
        if before != now:
            raise DatasetError(f"{file}: changed while it was read; wait until it is written, then try again")


def _remembered(memory: Path) -> str | None:
    try:
        text = memory.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{64}", text) else None


def _lasting(files: Sequence[Path], facts: Facts) -> bool:
    """Whether equal facts are certain to mean equal bytes."""
    newest_ns = max(int(time_ns) for each in facts for time_ns in each[3:])
    return newest_ns < time.time_ns() - _RECENT_NS and all(map(_has_ctime, files))


def _has_ctime(file: Path) -> bool:
    device = file.stat().st_dev
    return not _NO_CTIME.fullmatch(_file_systems().get(f"{os.major(device)}:{os.minor(device)}", ""))


def _file_systems() -> dict[str, str]:
    """Device number -> kind of file system, on Linux."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {line.split()[2]: line.partition(" - ")[2].split()[0] for line in lines if " - " in line}


def _sample(file: Path) -> str:
    """A digest of the first, the last and some blocks between; of all bytes of a small file."""
    digest = hashlib.sha256()
    with _reading(file) as stream:
        last = max(0, os.fstat(stream.fileno()).st_size - _SAMPLE_BYTES)
        for index in range(_SAMPLES + 1):
            stream.seek(last * index // _SAMPLES)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _digest(files: Sequence[Path]) -> str:
    digests = []
    for file in files:
        with _reading(file) as stream:
            digests.append([file.name, hashlib.file_digest(stream, "sha256").hexdigest()])
    return digests[0][1] if len(files) == 1 else _hashed(digests)


@contextmanager
def _reading(file: Path) -> Iterator[BufferedReader]:
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as cause:
        raise DatasetError(f"{file}: cannot be read ({cause.strerror or cause})") from cause


def _hashed(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _memory(key: str) -> Path | None:
    """Where the digest of that key is remembered; None if this machine has no place for a cache."""
    try:
        return cache_folder() / "digests" / key
    except StorageError:
        return None
