"""The SQLite file that MLflow keeps its runs in when no server is named."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from dmray.errors import TrackingError

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "beegfs", "ceph", "gpfs", "fuse.sshfs"})


def prepare(database: Path) -> None:
    """Make the file with a write-ahead log: readers (the MLflow UI) and the writer then do not wait for each other.

    On a network file system the log is left out, because SQLite's needs memory that all its processes share.

    Raises:
        TrackingError: the file cannot be made, or is something else than a database.
    """
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(database, timeout=20.0)) as connection:
            mode = "DELETE" if filesystem_of(database, _mounts()) in _NETWORK else "WAL"
            connection.execute(f"PRAGMA journal_mode={mode}")
    except (OSError, sqlite3.Error) as cause:
        raise TrackingError(
            f"tracking.mlflow_uri: cannot use {database} as MLflow's database: {cause}; "
            "name another with --mlflow-uri, or run without MLflow: --mlflow-uri off"
        ) from cause


def filesystem_of(path: Path, mounts: str) -> str | None:
    """The type of the file system that `path` is on, by a table like /proc/self/mounts."""
    entries = [fields for line in mounts.splitlines() if len(fields := line.split()) > 2]
    above = [(len(Path(place).parts), kind) for _, place, kind, *_ in entries if path.is_relative_to(place)]
    return max(enumerate(above), key=lambda item: (item[1][0], item[0]))[1][1] if above else None


def _mounts() -> str:
    try:
        return Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
