"""Files on a disk that may be full, gone or damaged: opened without waiting, and errors that say what to do.

What stands at a path may be anything after a crash or a mistake: a folder, a pipe (opening one would wait for ever), a
link to nowhere. One bad file must not stop the reading of others, so each such case is a `StorageError`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dmray.errors import StorageError
from dmray.files import open_regular

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_GONE = (errno.ENOENT, errno.ENOTDIR)
_KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading, at once whatever stands there.

    Raises:
        FileNotFoundError: nothing stands there.
        StorageError: what stands there is no file, or cannot be read.
    """
    try:
        return open_regular(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise StorageError(
                f"{path}: a link to {os.readlink(path)}, which does not exist; remove the link"
            ) from None
        raise
    except OSError as cause:
        if cause.errno == errno.EINVAL:
            raise StorageError(f"{path}: {_kind(path)}, not a file; remove it") from cause
        raise StorageError(
            f"{path}: cannot be read ({cause.strerror}); make it readable, or remove what stands there"
        ) from cause


def _kind(path: Path) -> str:
    mode = path.stat().st_mode
    return next((name for test, name in _KINDS if test(mode)), "a device")


def read_file(path: Path, most_bytes: int) -> bytes:
    """The content of a file that should have at most `most_bytes`.

    Raises:
        FileNotFoundError: nothing stands there.
        StorageError: as `open_file`; the file is larger, or reading it fails.
    """
    with open_file(path) as stream:
        try:
            content = stream.read(most_bytes + 1)
        except OSError as cause:
            raise StorageError(f"{path}: cannot be read ({cause.strerror}); restore it from a copy") from cause
    if len(content) > most_bytes:
        raise StorageError(f"{path}: larger than {most_bytes:,} bytes, so it is damaged; restore it from a copy")
    return content


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes `path`, in a folder that exists.

    Raises:
        StorageError: the disk is full or read-only, or the folder was removed. Other errors of the system may pass when
            the attempt is repeated, so they rise as they are.
    """
    try:
        yield
    except OSError as cause:
        if cause.errno in _FULL:
            raise StorageError(
                f"{path}: cannot be written ({cause.strerror}); free some space and continue with --resume"
            ) from cause
        if cause.errno in _GONE:
            raise removed(path) from cause
        raise


def removed(path: Path) -> StorageError:
    """What to say when the files of a trial that runs are gone."""
    return StorageError(
        f"{path}: was removed while the trial runs, so the trial ends; put the folder back and continue with --resume, "
        "or start the sweep again"
    )
