"""One driver a sweep: a second one on the same folder is refused, and a killed one leaves nothing that lasts.

On one machine a file lock says so at once, and the system lets go of it with the process. Storage that several machines
share may not pass locks on, so the driver also renews `.driver.json` every few seconds. Whoever finds one left behind
by another machine watches it: if it changes, its driver lives; if it stays the same for `STALE_S`, it is taken over.
Only the watcher's own clock is read, so clocks that differ between machines do not matter.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from dmray.errors import StorageError
from dmray.specs import Spec
from dmray.tracking.folders import SweepFolder, write_atomic

_log = logging.getLogger(__name__)


class Beat(Spec):
    """What `.driver.json` holds; `count` grows with each renewal, `time_s` is for people."""

    host: str
    pid: int
    holder: str
    count: int
    time_s: float


@dataclass(frozen=True)
class Pace:
    """A driver renews its beat every `beat_s`; one that stands still for `stale_s` is dead."""

    beat_s: float = 5.0
    stale_s: float = 30.0


PACE = Pace()


@dataclass(frozen=True)
class Driver:
    """Who drives a sweep, as another process sees it."""

    host: str
    pid: int
    age_s: float
    alive: bool


def driver_of(folder: SweepFolder, pace: Pace = PACE) -> Driver | None:
    """The last driver that has not ended in peace. On another machine it counts as alive while its beat is fresh.

    (By this machine's clock, which is good enough to tell people; `lease` itself trusts no other clock.)
    """
    beat = _read(folder.path / ".driver.json")
    if beat is None:
        return None
    age_s = max(0.0, time.time() - beat.time_s)
    alive = _alive(beat.pid) if beat.host == socket.gethostname() else age_s < pace.stale_s
    return Driver(beat.host, beat.pid, age_s, alive)


@contextlib.contextmanager
def lease(folder: SweepFolder, pace: Pace = PACE) -> Iterator[None]:
    """Hold the sweep's folder until the end of the block, or of the process.

    If another driver has taken the folder over meanwhile (this one slept longer than `stale_s`), the block is
    interrupted as by Ctrl-C.

    Raises:
        StorageError: another driver holds it.
    """
    file = folder.path / ".driver.json"
    with (folder.path / ".driver.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(folder, _read(file)) from None
        _wait_until_stale(folder, file, pace)
        with _beating(file, pace):
            yield


def needs_watching(beat: Beat | None, host: str, pid_alive: bool) -> bool:
    """Whether a beat that was found may be a living driver's: not if its machine is this one and its process is gone.

    (Its file lock was free, so on this machine it is gone unless this file system knows no locks.)
    """
    return beat is not None and (beat.host != host or pid_alive)


def _wait_until_stale(folder: SweepFolder, file: Path, pace: Pace) -> None:
    found = _read(file)
    if found is None or not needs_watching(found, socket.gethostname(), _alive(found.pid)):
        return
    _log.warning("%s: a driver on %s (process %d) may hold it; watching", folder.path, found.host, found.pid)
    deadline = time.monotonic() + pace.stale_s
    while time.monotonic() < deadline:
        time.sleep(min(pace.beat_s, 1.0))
        seen = _read(file)
        if seen is None:
            return
        if seen != found:
            raise _refusal(folder, seen)
    _log.warning("%s: no sign of it for %g s; taking the sweep over", folder.path, pace.stale_s)


@contextlib.contextmanager
def _beating(file: Path, pace: Pace) -> Iterator[None]:
    """Renew the beat beside the block."""
    holder, over = uuid4().hex, threading.Event()
    _write(file, holder, 0)

    def renew() -> None:
        count = 0
        while not over.wait(pace.beat_s):
            count += 1
            try:
                seen = _read(file)
                if seen is not None and seen.holder != holder:
                    _log.error("%s: process %d on %s has taken this sweep over", file.parent, seen.pid, seen.host)
                    os.kill(os.getpid(), signal.SIGINT)
                    return
                _write(file, holder, count)
            except OSError as problem:  # storage that comes back within `stale_s` has lost nothing
                _log.warning("%s: cannot be renewed: %s", file, problem)

    thread = threading.Thread(target=renew, name="dmray-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        seen = _read(file)
        if seen is not None and seen.holder == holder:
            file.unlink(missing_ok=True)


def _read(file: Path) -> Beat | None:
    try:
        return Beat.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _write(file: Path, holder: str, count: int) -> None:
    beat = Beat(host=socket.gethostname(), pid=os.getpid(), holder=holder, count=count, time_s=time.time())
    write_atomic(file, beat.model_dump_json().encode())


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _refusal(folder: SweepFolder, beat: Beat | None) -> StorageError:
    who = f"process {beat.pid} on {beat.host}" if beat else "another process"
    return StorageError(f"{folder.path}: {who} runs this sweep already; wait for it or stop it")
