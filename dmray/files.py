"""Files that are there whole or not at all, and the folder for what can be made again.

A power cut may lose what was not flushed to the disk, the entry of a folder included. So a file is flushed before it
takes its name, and its folder after that.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP)  # what file systems say that cannot flush a folder


def cache_folder() -> Path:
    """$DMRAY_CACHE, else ~/.cache/dmray; for a user without a home folder, a folder of its own among temporary ones."""
    if named := os.environ.get("DMRAY_CACHE"):
        return Path(named).expanduser()
    try:
        return Path.home() / ".cache" / "dmray"
    except RuntimeError:  # no $HOME, and the user database does not know the user: a container started with --user
        return Path(tempfile.gettempdir()) / f"dmray-cache-{os.getuid()}"


@contextmanager
def partial(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or a folder to; at the end of the block it replaces `path`.

    A reader, or a kill at any moment, finds the old `path` or the whole new one. If the block raises, what it wrote is
    removed. Only a file can replace what is there: two processes that write the same folder need a lock.
    """
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
        replace_durably(part, path)
    finally:
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)


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
