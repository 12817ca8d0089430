"""Tells processes apart: which machine's ids they have, and when they started, since ids are given again; and counts
the CPUs that this one may use."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


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


def usable_cpus(cgroups: Path = _CGROUPS) -> int:
    """The CPUs that this process may use, at least 1: by its affinity, and by the quota of its container.

    A quota of 2.5 CPUs counts as 2. `cgroups`: where cgroups (version 2 or 1) are mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas(cgroups)])))


def _quotas(cgroups: Path) -> Iterator[float]:
    """The quotas of this container in CPUs; infinite ones are left out."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((cgroups / file).read_text(encoding="ascii") for file in files).split()
            if float(quota) > 0 < float(period):
                yield float(quota) / float(period)
        except (OSError, ValueError):  # no such file, or "max"
            continue


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
