"""One driver a sweep: a second one on the same folder is refused, and a killed one leaves nothing that lasts.

On one machine a file lock says so at once, and the system lets go of it with the process. Storage that several machines
share may not pass locks on, so the driver also renews `.driver.json` every few seconds. Whoever finds one left behind
by another machine watches it: if it changes, its driver lives; if it stays the same for `STALE_S`, it is taken over.
Only the watcher's own clock is read, so clocks that differ between machines do not matter.

In an object store the beat is an object, and there is no lock. Who comes first is decided by a conditional put. In a
takeover, and in stores that know no such put, the last writer has it: whoever wrote reads again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

from dmray.coordination.heartbeat import FileHeartbeats, Heartbeat, Heartbeats, StoreHeartbeats
from dmray.errors import StorageError
from dmray.file_lock import file_lock
from dmray.records.folders import SweepFolder
from dmray.storage import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LockTiming:
    """A driver renews its beat every `beat_s`; one that stands still for `stale_s` is dead.

    What was written to a store is there for everybody within `settle_s`.
    """

    heartbeat_s: float = 5.0
    stale_s: float = 30.0
    settle_s: float = 1.0


LOCK_TIMING = LockTiming()


@dataclass(frozen=True)
class Driver:
    """Who drives a sweep, as another process sees it."""

    host: str
    pid: int
    age_s: float
    alive: bool

    def __str__(self) -> str:
        seen = "" if self.alive else f", last seen {timedelta(seconds=round(self.age_s))} ago by this machine's clock"
        return f"process {self.pid} on {self.host}{seen}"


def describe_missing_driver(driver: Driver | None) -> str:
    """What to tell where no driver is alive."""
    return "no driver is at work" if driver is None else f"its driver is gone: {driver}"


def find_driver(folder: SweepFolder, timing: LockTiming = LOCK_TIMING) -> Driver | None:
    """The last driver that has not ended in peace. On another machine it counts as alive while its beat is fresh.

    (By this machine's clock, which is good enough to tell people; `lease` itself trusts no other clock.)
    """
    heartbeat = FileHeartbeats(folder).read()
    if heartbeat is None:
        return None
    age_s = max(0.0, time.time() - heartbeat.time_s)
    alive = _alive(heartbeat.pid) if heartbeat.host == socket.gethostname() else age_s < timing.stale_s
    return Driver(heartbeat.host, heartbeat.pid, age_s, alive)


@contextlib.contextmanager
def folder_lock(folder: SweepFolder, timing: LockTiming = LOCK_TIMING) -> Iterator[None]:
    """Hold the sweep's folder until the end of the block, or of the process.

    If another driver has taken the folder over meanwhile (this one slept longer than `stale_s`), the block is
    interrupted as by Ctrl-C.

    Raises:
        StorageError: another driver holds it.
    """
    heartbeats = FileHeartbeats(folder)
    busy = f"{_holder(heartbeats.read())} runs this sweep already; wait for it or stop it"
    with (
        file_lock(folder.driver_lock, timeout_s=0.0, busy=busy),
        _held(str(folder.path), heartbeats, timing, settle_s=0.0),
    ):
        yield


@contextlib.contextmanager
def store_lock(store: Store, timing: LockTiming = LOCK_TIMING) -> Iterator[None]:
    """Hold the sweep's part of an object store, as `lease` holds a folder."""
    with _held(store.url, StoreHeartbeats(store), timing, timing.settle_s):
        yield


@contextlib.contextmanager
def _held(where: str, heartbeats: Heartbeats, timing: LockTiming, settle_s: float) -> Iterator[None]:
    found = _wait_until_stale(where, heartbeats, timing)
    holder = uuid4().hex
    first = heartbeats.write(Heartbeat.now(holder, 0), create=found is None)
    time.sleep(settle_s)
    seen = heartbeats.read()
    if not first or (seen is not None and seen.holder != holder):
        raise _refusal(where, seen)
    with _heartbeat_beside(where, heartbeats, holder, timing):
        yield


def needs_watching(heartbeat: Heartbeat | None, host: str, pid_alive: bool) -> bool:
    """Whether a beat that was found may be a living driver's: not if its machine is this one and its process is gone.

    (Its file lock was free, so on this machine it is gone unless this file system knows no locks.)
    """
    return heartbeat is not None and (heartbeat.host != host or pid_alive)


def _wait_until_stale(where: str, heartbeats: Heartbeats, timing: LockTiming) -> Heartbeat | None:
    """What a driver that is gone has left.

    Raises:
        StorageError: it is not gone.
    """
    found = heartbeats.read()
    if found is None or not needs_watching(found, socket.gethostname(), _alive(found.pid)):
        return found
    _log.warning("%s: a driver on %s (process %d) may hold it; watching", where, found.host, found.pid)
    deadline = time.monotonic() + timing.stale_s
    while time.monotonic() < deadline:
        time.sleep(min(timing.heartbeat_s, 1.0))
        seen = heartbeats.read()
        if seen is None:
            return None
        if seen != found:
            raise _refusal(where, seen)
    _log.warning("%s: no sign of it for %g s; taking the sweep over", where, timing.stale_s)
    return found


@contextlib.contextmanager
def _heartbeat_beside(where: str, heartbeats: Heartbeats, holder: str, timing: LockTiming) -> Iterator[None]:
    """Renew the beat beside the block."""
    over = threading.Event()

    def renew() -> None:
        count = 0
        while not over.wait(timing.heartbeat_s):
            count += 1
            try:
                seen = heartbeats.read()
                if seen is not None and seen.holder != holder:
                    _log.error("%s: process %d on %s has taken this sweep over", where, seen.pid, seen.host)
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                heartbeats.write(Heartbeat.now(holder, count))
            except (OSError, StorageError) as problem:  # storage that comes back within `stale_s` has lost nothing
                _log.warning("%s: the lease cannot be renewed: %s", where, problem)

    thread = threading.Thread(target=renew, name="dmray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        _let_go(where, heartbeats, holder)


def _let_go(where: str, heartbeats: Heartbeats, holder: str) -> None:
    try:
        seen = heartbeats.read()
        if seen is not None and seen.holder == holder:
            heartbeats.remove()
    except StorageError as problem:  # whoever comes next finds that nobody renews it
        _log.warning("%s: the lease could not be taken back: %s", where, problem)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refusal(where: str, heartbeat: Heartbeat | None) -> StorageError:
    return StorageError(f"{where}: {_holder(heartbeat)} runs this sweep already; wait for it or stop it")


def _holder(heartbeat: Heartbeat | None) -> str:
    return f"process {heartbeat.pid} on {heartbeat.host}" if heartbeat else "another process"
