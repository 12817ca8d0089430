"""The one way in which processes of dmray exclude each other: a lock on an empty file, which stays where it is.

The operating system holds the lock for the process, so it ends with the process, kill -9 included, and child processes
do not inherit it. Between machines it holds on network file systems that pass locks on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dmray.errors import StorageError
from dmray.files import is_full

_POLL_S = 0.1
_log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, timeout_s: float, busy: str, unwritable: str = "make its folder writable") -> Iterator[None]:
    """Hold the lock file `path` until the end of the block, against other processes and threads.

    `busy` says who still holds it after `timeout_s` and what to do, `unwritable` what to do if the file cannot be made.
    The lock is for those who write: what is there whole or not at all can be read without it.

    Raises:
        StorageError: another process still holds it, the file cannot be made, or the file system knows no locks.
    """
    # A soft lock (the file's existence) would outlive a process that is killed. Not thread-local: whichever thread ends
    # the block releases the lock.
    lock = FileLock(path, thread_local=False, fallback_to_soft=False, poll_interval=_POLL_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path, timeout_s)
    except Timeout:
        raise StorageError(f"{path}: {busy}") from None
    except OSError as cause:
        cure = f"free some space, or {unwritable}" if is_full(cause) else unwritable
        raise StorageError(f"{path}: cannot be locked ({cause.strerror or cause}); {cure}") from cause
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path, timeout_s: float) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if timeout_s <= 0:
            raise
        _log.info("%s: another process holds this lock; waiting for at most %g s", path, timeout_s)
        lock.acquire(timeout=timeout_s)
