"""Heartbeats of drivers that are not there."""

from __future__ import annotations

import os

from dmray.coordination.sweep_lock import Heartbeat
from dmray.records import SweepFolder
from dmray.records.folders import write_atomic


def leave_heartbeat(folder: SweepFolder, host: str, count: int = 0) -> None:
    heartbeat = Heartbeat(host=host, pid=os.getpid(), holder="theirs", count=count, time_s=0.0)
    write_atomic(folder.path / ".driver.json", heartbeat.model_dump_json().encode())
