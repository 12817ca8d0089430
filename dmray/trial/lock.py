"""One worker a trial at a time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager

from dmray.errors import StorageError
from dmray.records import TrialFolder

_TIMEOUT_S = 120.0  # a worker whose driver was killed lives on for some seconds


@contextmanager
def trial_lock(folder: TrialFolder) -> Iterator[None]:
    """Hold the trial's folder: of two workers that were given the same trial, one waits for the other.

    Raises:
        StorageError: the other one does not end.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + _TIMEOUT_S
    with (folder.path / ".worker.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StorageError(f"{folder.path}: another worker still runs this trial; stop it first") from None
                time.sleep(0.2)
        yield
