"""The heartbeat of a sweep's driver: a small file, or an object in a store, that the driver rewrites."""

from __future__ import annotations

import os
import socket
import time
from typing import Protocol

from pydantic import ValidationError

from dmray.files import write_atomic
from dmray.records.folders import SweepFolder
from dmray.specs import Spec
from dmray.storage import Store

HEARTBEAT_NAME = ".driver.json"


class Heartbeat(Spec):
    """The content of `.driver.json`.

    `holder` is a random id of the driver, `count` grows with each renewal, `time_s` (Unix time) is shown to people.
    """

    host: str
    pid: int
    holder: str
    count: int
    time_s: float

    @classmethod
    def now(cls, holder: str, count: int) -> Heartbeat:
        """A heartbeat of this process."""
        return cls(host=socket.gethostname(), pid=os.getpid(), holder=holder, count=count, time_s=time.time())


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
        try:
            return _parse(self._file.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, heartbeat: Heartbeat, create: bool = False) -> bool:
        write_atomic(self._file, heartbeat.model_dump_json().encode())
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
