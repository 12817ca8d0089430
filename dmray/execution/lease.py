"""One driver a sweep: a second one on the same folder is refused, and a killed one leaves nothing behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from dmray.errors import StorageError
from dmray.tracking import SweepFolder


@contextmanager
def lease(folder: SweepFolder) -> Iterator[None]:
    """Hold the sweep's folder; the system lets go of it when the process ends, however it ends.

    Raises:
        StorageError: another process holds it.
    """
    with (folder.path / ".driver.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StorageError(
                f"{folder.path}: process {lock.read().strip() or '?'} runs this sweep already; wait for it or stop it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
