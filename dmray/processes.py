"""Tells processes apart: which machine's ids they have, and when they started, since ids are given again."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path


@cache
def this_machine() -> str:
    """The same text in all processes that see this process's id, and in no others: of a machine since it started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux: there, host names have to do
        return socket.gethostname()


def started_at(pid: int) -> str | None:
    """When a process of this machine started, in ticks since the machine did, which no clock change moves.

    None if there is no such process, empty on systems that do not say when it started.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() or not _runs(pid) else ""
    except (OSError, IndexError):
        return ""


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
