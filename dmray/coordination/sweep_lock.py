"""The lock of a sweep: it has one driver at a time; a second one is refused, and a killed one blocks nobody.

On one machine a file lock decides, which the system releases when the process ends. File locks may not work between
machines that share a folder, so the driver also renews a heartbeat, `.driver.json`, every few seconds. A new driver
that finds the heartbeat of another machine watches it for `stale_s`: if it changes, that driver is alive and the new
one is refused; if it does not change, the new driver takes the sweep over. Only the new driver's own clock is used,
so clocks that differ between machines do no harm.

An object store has heartbeats and no file locks. There a conditional put decides who comes first. In a takeover, and
in stores without conditional puts, the last writer wins: every writer reads the heartbeat again after `settle_s`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal
from uuid import uuid4

from dmray.coordination.heartbeat import FileHeartbeats, Heartbeat, Heartbeats, StoreHeartbeats
from dmray.errors import StorageError
from dmray.file_lock import file_lock
from dmray.interruption import interrupt_thread, released_if_ended
from dmray.periodic_thread import PeriodicThread
from dmray.records.folders import SweepFolder
from dmray.storage import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LockTiming:
    """Intervals of the lock, in seconds."""

    heartbeat_s: float = 5.0  # between two heartbeats
    stale_s: float = 30.0  # a driver whose heartbeat does not change for so long is dead
    settle_s: float = 1.0  # a write to a store is visible to all machines after this time


LOCK_TIMING = LockTiming()


@dataclass(frozen=True)
class Driver:
    """The driver of a sweep, as seen from another process. `age_s` is the age of its heartbeat.

    `state`: "running"; "slow", its process runs but has not renewed the heartbeat; "stopped", by SIGSTOP or Ctrl-Z;
    "dead". It is `alive` in all states but "dead".
    """

    host: str
    pid: int
    age_s: float
    alive: bool
    state: Literal["running", "slow", "stopped", "dead"]

    def __str__(self) -> str:
        age = timedelta(seconds=round(self.age_s))
        also = {
            "running": "",
            "slow": f", which has renewed no heartbeat for {age}: this machine or the storage is slow, or it hangs "
            f"(then: kill -9 {self.pid})",
            "stopped": f", which has been stopped (SIGSTOP or Ctrl-Z) for {age}; {_how_to_end_stop(self.pid)}",
            "dead": f", last seen {age} ago by this machine's clock",
        }
        return f"process {self.pid} on {self.host}{also[self.state]}"


def describe_missing_driver(driver: Driver | None) -> str:
    """A message for a sweep whose driver is not alive."""
    return "no driver is running" if driver is None else f"its driver is dead: {driver}"


def find_driver(folder: SweepFolder, timing: LockTiming = LOCK_TIMING) -> Driver | None:
    """The driver whose heartbeat is there: it runs, or it ended without removing its heartbeat.

    On another machine it counts as alive while its heartbeat is younger than `stale_s` by this machine's clock. That
    is good enough to show to people; taking the lock compares no clocks.
    """
    heartbeat = FileHeartbeats(folder).read()
    if heartbeat is None:
        return None
    state, age_s = _state(heartbeat, timing), heartbeat.age_s()
    return Driver(heartbeat.host, heartbeat.pid, age_s, state != "dead", state)


def _state(heartbeat: Heartbeat, timing: LockTiming) -> Literal["running", "slow", "stopped", "dead"]:
    old = heartbeat.age_s() >= timing.stale_s
    match heartbeat.process_state():
        case "gone":
            return "dead"
        case "elsewhere":
            return "dead" if old else "running"
        case "stopped":
            return "stopped"
        case "running":
            return "slow" if old else "running"


def _how_to_end_stop(pid: int) -> str:
    return f"let it go on with kill -CONT {pid}, or end it with kill -9 {pid}"


@contextlib.contextmanager
def folder_lock(folder: SweepFolder, timing: LockTiming = LOCK_TIMING) -> Iterator[None]:
    """Hold the lock of the sweep's folder until the block, or the process, ends.

    If another driver takes the sweep over meanwhile (because this machine was suspended for longer than `stale_s`),
    the block is interrupted as by Ctrl-C.

    Raises:
        StorageError: another driver holds the lock.
    """
    heartbeats = FileHeartbeats(folder)
    busy = _already_running_text(heartbeats.read())
    with (
        file_lock(folder.driver_lock, timeout_s=0.0, busy=busy),
        _hold(str(folder.path), heartbeats, timing, settle_s=0.0),
    ):
        yield


@contextlib.contextmanager
def store_lock(store: Store, timing: LockTiming = LOCK_TIMING) -> Iterator[None]:
    """Hold the lock of a sweep in an object store, as `folder_lock` holds a folder's.

    Raises:
        StorageError: another driver holds the lock.
        StoreUnavailableError: the store does not answer.
    """
    with _hold(store.url, StoreHeartbeats(store), timing, timing.settle_s):
        yield


@contextlib.contextmanager
def _hold(where: str, heartbeats: Heartbeats, timing: LockTiming, settle_s: float) -> Iterator[None]:
    found = _wait_until_stale(where, heartbeats, timing)
    holder = uuid4().hex
    written = heartbeats.write(Heartbeat.now(holder, 0), create=found is None)
    time.sleep(settle_s)
    seen = heartbeats.read()
    if not written or (seen is not None and seen.holder != holder):
        raise _already_running(where, seen)
    with _renew_heartbeat(where, heartbeats, holder, timing):
        yield


def _wait_until_stale(where: str, heartbeats: Heartbeats, timing: LockTiming) -> Heartbeat | None:
    """Return the heartbeat of a dead driver, after watching it for `stale_s` if need be; None if there is none.

    Raises:
        StorageError: the driver is alive.
    """
    found = heartbeats.read()
    if found is None or found.process_state() == "gone":
        return (
            found  # its process ended: nothing to wait for. (Else the file lock decides, where there are file locks.)
        )
    _log.warning(
        "%s: process %d on %s may be running this sweep; watching its heartbeat for %g s",
        where,
        found.pid,
        found.host,
        timing.stale_s,
    )
    deadline = time.monotonic() + timing.stale_s
    while time.monotonic() < deadline:
        time.sleep(min(timing.heartbeat_s, 1.0))
        seen = heartbeats.read()
        if seen is None:
            return None
        if seen != found:
            raise _already_running(where, seen)
    _log.warning("%s: no heartbeat for %g s; taking the sweep over", where, timing.stale_s)
    return found


@contextlib.contextmanager
def _renew_heartbeat(where: str, heartbeats: Heartbeats, holder: str, timing: LockTiming) -> Iterator[None]:
    """Renew the heartbeat in a thread while the block runs, and remove it at the end."""
    driver, counts, taken_over = threading.get_ident(), itertools.count(1), threading.Event()

    def renew() -> None:
        if taken_over.is_set():
            return
        try:
            seen = heartbeats.read()
            if seen is not None and seen.holder != holder:
                taken_over.set()
                _log.error("%s: process %d on %s has taken this sweep over", where, seen.pid, seen.host)
                interrupt_thread(driver)
            else:
                heartbeats.write(Heartbeat.now(holder, next(counts)))
        except (OSError, StorageError) as problem:  # harmless if the storage answers again within `stale_s`
            _log.warning("%s: the heartbeat cannot be renewed: %s", where, problem)

    try:
        with (
            PeriodicThread(renew, timing.heartbeat_s, name="dmray-heartbeat"),
            released_if_ended(lambda: _release(where, heartbeats, holder)),
        ):
            yield
    finally:
        _release(where, heartbeats, holder)


def _release(where: str, heartbeats: Heartbeats, holder: str) -> None:
    try:
        seen = heartbeats.read()
        if seen is not None and seen.holder == holder:
            heartbeats.remove()
    except StorageError as problem:  # the next driver finds that nobody renews it
        _log.warning("%s: the heartbeat cannot be removed: %s", where, problem)


def _already_running(where: str, heartbeat: Heartbeat | None) -> StorageError:
    return StorageError(f"{where}: {_already_running_text(heartbeat)}")


def _already_running_text(heartbeat: Heartbeat | None) -> str:
    who = f"process {heartbeat.pid} on {heartbeat.host}" if heartbeat else "another process"
    if heartbeat and heartbeat.process_state() == "stopped":
        return f"{who} runs this sweep already, but is stopped (SIGSTOP or Ctrl-Z); {_how_to_end_stop(heartbeat.pid)}"
    return f"{who} runs this sweep already; watch it with dmray status, end it with dmray stop"
