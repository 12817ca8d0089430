"""Heartbeats of drivers that are not there."""

from __future__ import annotations

from typing import Any

from dmray.coordination.sweep_lock import Heartbeat
from dmray.records import SweepFolder
from dmray.records.folders import write_atomic


def heartbeat_of(host: str, count: int = 0, **changes: Any) -> Heartbeat:
    """By this process, as another driver on `host`; with a `host` other than "here", from another machine."""
    beat = Heartbeat.now("theirs", count).model_dump() | {"host": host, "time_s": 0.0}
    return Heartbeat.model_validate(beat | ({} if host == "here" else {"machine": host}) | changes)


def leave_heartbeat(folder: SweepFolder, host: str, count: int = 0, **changes: Any) -> None:
    write_atomic(folder.path / ".driver.json", heartbeat_of(host, count, **changes).model_dump_json().encode())
