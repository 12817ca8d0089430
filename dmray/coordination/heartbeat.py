"""The heartbeat of a sweep's driver: a small file, or an object in a store, that the driver rewrites."""

from __future__ import annotations

import os
import socket
import time
from typing import Annotated, Literal, Protocol

import psutil
from pydantic import Field, ValidationError

from dmray.errors import StorageError
from dmray.files import write_atomic
from dmray.processes import started_at, this_machine
from dmray.records.folders import SweepFolder
from dmray.specs import Spec
from dmray.storage import Store

HEARTBEAT_NAME = ".driver.json"


_MOST_BYTES = 65_536  # a heartbeat has a few hundred
ProcessState = Literal["running", "stopped", "gone", "elsewhere"]


class Heartbeat(Spec):
    """The content of `.driver.json`.

    `holder` is a random id of the driver, `count` grows with each renewal, `time_s` (Unix time) is shown to people.
    `machine` and `started` tell the process from others with the same `pid`, on other machines and in other containers
    with the same host name, or later. `up_s` is the time since that machine started, which nobody can set.
    """

    host: Annotated[str, Field(max_length=255, pattern=r"^[^\s\x00-\x1f\x7f-\x9f]+$")]
    pid: Annotated[int, Field(gt=0, lt=2**31)]
    holder: Annotated[str, Field(max_length=64)]
    count: Annotated[int, Field(ge=0, lt=2**53)]
    time_s: Annotated[float, Field(ge=0, le=1e11)]
    machine: Annotated[str, Field(max_length=255)]
    started: str
    up_s: Annotated[float, Field(ge=0, le=1e10)]

    @classmethod
    def now(cls, holder: str, count: int) -> Heartbeat:
        """A heartbeat of this process."""
        return cls(
            host=socket.gethostname() or "localhost",
            pid=os.getpid(),
            holder=holder,
            count=count,
            time_s=time.time(),
            machine=this_machine(),
            started=started_at(os.getpid()) or "",
            up_s=_up_s(),
        )

    def process_state(self) -> ProcessState:
        """What this machine knows of the process that wrote the heartbeat."""
        if self.machine != this_machine():
            return "elsewhere"
        try:
            status = psutil.Process(self.pid).status()
        except psutil.NoSuchProcess:
            return "gone"
        if status == psutil.STATUS_ZOMBIE or (started_at(self.pid) or "") != self.started:
            return "gone"
        return "stopped" if status == psutil.STATUS_STOPPED else "running"

    def age_s(self) -> float:
        """Seconds since it was written; if that was on another machine, by the clocks of both, which may differ."""
        age_s = _up_s() - self.up_s if self.machine == this_machine() else time.time() - self.time_s
        return max(0.0, age_s)


def _up_s() -> float:
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Heartbeats(Protocol):
    """Reads and writes the heartbeat of one sweep."""

    def read(self) -> Heartbeat | None:
        """The heartbeat; None if there is none or its content is not one."""

    def write(self, heartbeat: Heartbeat, create: bool = False) -> bool:
        """Write the heartbeat; with `create`, only if there is none yet. Returns whether it was written."""

    def remove(self) -> None:
        """Remove the heartbeat, if there is one."""


class FileHeartbeats:
    """The heartbeat in a sweep's folder. Its writer holds a file lock, so `create` always succeeds."""

    def __init__(self, folder: SweepFolder) -> None:
        self._file = folder.path / HEARTBEAT_NAME

    def read(self) -> Heartbeat | None:
        """Raises:
        StorageError: something else than a file is there, or it cannot be read.
        """
        if self._file.exists() and not self._file.is_file():
            raise StorageError(
                f"{self._file}: is not a file, but this is where the driver keeps its heartbeat; move it"
            )
        try:
            with self._file.open("rb") as file:
                return _parse(file.read(_MOST_BYTES))
        except FileNotFoundError:
            return None
        except OSError as cause:
            raise StorageError(f"{self._file}: cannot be read ({cause.strerror}); make it readable") from cause

    def write(self, heartbeat: Heartbeat, create: bool = False) -> bool:
        """Raises:
        StorageError: the folder cannot be written.
        """
        try:
            write_atomic(self._file, heartbeat.model_dump_json().encode())
        except OSError as cause:
            raise StorageError(
                f"{self._file}: cannot be written ({cause.strerror}); make its folder writable"
            ) from cause
        return True

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)


class StoreHeartbeats:
    """The heartbeat in an object store. `create` is safe against others if the store supports conditional puts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> Heartbeat | None:
        return _parse(self._store.read(HEARTBEAT_NAME) or b"")

    def write(self, heartbeat: Heartbeat, create: bool = False) -> bool:
        content = heartbeat.model_dump_json().encode()
        if create:
            return self._store.create(HEARTBEAT_NAME, content)
        self._store.write(HEARTBEAT_NAME, content)
        return True

    def remove(self) -> None:
        self._store.remove(HEARTBEAT_NAME)


def _parse(content: bytes) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(content)
    except ValidationError:
        return None
