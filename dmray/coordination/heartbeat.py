"""A driver's sign of life, as a file or as an object of a store."""

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
    """What `.driver.json` holds; `count` grows with each renewal, `time_s` is for people."""

    host: str
    pid: int
    holder: str
    count: int
    time_s: float

    @classmethod
    def now(cls, holder: str, count: int) -> Heartbeat:
        """This process's."""
        return cls(host=socket.gethostname(), pid=os.getpid(), holder=holder, count=count, time_s=time.time())


class Heartbeats(Protocol):
    """Where a sweep's beat is."""

    def read(self) -> Heartbeat | None:
        """None: there is none, or it is no beat."""

    def write(self, heartbeat: Heartbeat, create: bool = False) -> bool:
        """Put `beat` there; with `create`, only where there is none. Whether it was put."""

    def remove(self) -> None:
        """Remove what is there."""


class FileHeartbeats:
    """The beat in a sweep's folder. Its writer holds a file lock, so `create` always succeeds."""

    def __init__(self, folder: SweepFolder) -> None:
        self._file = folder.path / HEARTBEAT_NAME

    def read(self) -> Heartbeat | None:
        try:
            return _parsed(self._file.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, heartbeat: Heartbeat, create: bool = False) -> bool:
        write_atomic(self._file, heartbeat.model_dump_json().encode())
        return True

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)


class StoreHeartbeats:
    """The beat in an object store. `create` is exact where the store knows conditional puts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self) -> Heartbeat | None:
        return _parsed(self._store.read(HEARTBEAT_NAME) or b"")

    def write(self, heartbeat: Heartbeat, create: bool = False) -> bool:
        content = heartbeat.model_dump_json().encode()
        if create:
            return self._store.create(HEARTBEAT_NAME, content)
        self._store.write(HEARTBEAT_NAME, content)
        return True

    def remove(self) -> None:
        self._store.remove(HEARTBEAT_NAME)


def _parsed(content: bytes) -> Heartbeat | None:
    try:
        return Heartbeat.model_validate_json(content)
    except ValidationError:
        return None
