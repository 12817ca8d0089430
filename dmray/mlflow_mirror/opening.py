"""Check `tracking.mlflow_uri` before a sweep starts, and make the SQLite file that is the default."""

from __future__ import annotations

import contextlib
import socket
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dmray.errors import TrackingError, TrackingUnavailableError
from dmray.records.folders import SweepFolder
from dmray.registry import unknown
from dmray.specs import NO_MLFLOW

CURE = "start it, correct --mlflow-uri, or run without MLflow: --mlflow-uri off"
_PROBE_TIMEOUT_S = 5.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DATABASES = {"postgresql", "mysql", "mssql"}
_SCHEMES = (*_PORTS, "sqlite", "databricks", "databricks-uc", "uc")
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "beegfs", "ceph", "gpfs", "fuse.sshfs"})


@dataclass(frozen=True)
class Address:
    """An MLflow to connect to; `artifacts`: the folder for a sweep's artifacts (None: the server keeps them)."""

    uri: str
    artifacts: Path | None


def find_address(uri: str | None, folder: SweepFolder) -> Address:
    """Check `uri`, and that something answers there; None is the SQLite file of the storage folder, made if missing.

    Raises:
        TrackingUnavailableError: nothing answers there within about five seconds.
        TrackingError: it is a folder, which MLflow no longer supports, or no address that MLflow knows.
    """
    address = uri or f"sqlite:///{folder.mlflow_database.resolve()}"
    artifacts: Path | None = None
    if address == NO_MLFLOW:
        raise TrackingError(f"tracking.mlflow_uri: off: there is nothing to write to; name one: {_sqlite_example()}")
    if _is_folder(address):
        meant = f", did you mean '{NO_MLFLOW}'?" if address.lower() == NO_MLFLOW else ""
        raise TrackingError(
            f"tracking.mlflow_uri: {address} is a folder, which MLflow no longer writes to{meant}; leave mlflow_uri "
            f"out for an SQLite file in the storage folder, or name one: {_sqlite_example()}"
        )
    scheme = urlsplit(address).scheme.partition("+")[0]
    if scheme and scheme not in _SCHEMES:
        raise TrackingError(f"tracking.mlflow_uri: {address}: {unknown('scheme', scheme, _SCHEMES)}")
    if scheme == "sqlite":
        name = unquote(address.partition(":///")[2])
        if not name:  # SQLite would keep it in memory, for this process alone
            raise TrackingError(f"tracking.mlflow_uri: {address} names no file; for example {_sqlite_example()}")
        database = Path(name).resolve()
        prepare_sqlite(database)
        artifacts = database.parent / "mlartifacts" / folder.name
    else:
        probe(address)
        if scheme in _DATABASES:  # no server that would keep artifacts itself
            artifacts = folder.mlflow_artifacts.resolve() / folder.name
    return Address(address, artifacts)


def without_secrets(uri: str) -> str:
    """The URI without the user name and password that it may hold."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else uri


def _sqlite_example() -> str:
    return f"sqlite:///{Path('mlflow.db').resolve()}"


def _is_folder(uri: str) -> bool:
    scheme = urlsplit(uri).scheme
    return scheme == "file" or (not scheme and uri != "databricks") or len(scheme) == 1  # C:\runs


def probe(uri: str) -> None:
    """Check that the server accepts connections. MLflow's own attempts take minutes to fail, this one seconds."""
    parts = urlsplit(uri)
    port = parts.port or _PORTS.get(parts.scheme.partition("+")[0])
    if parts.hostname is None or port is None:
        return
    try:
        socket.create_connection((parts.hostname, port), timeout=_PROBE_TIMEOUT_S).close()
    except OSError as cause:
        raise TrackingUnavailableError(
            f"tracking.mlflow_uri: no MLflow server answers at {without_secrets(uri)} (tried to connect to "
            f"{parts.hostname}:{port} for up to {_PROBE_TIMEOUT_S:.0f} s: {cause}); {CURE}"
        ) from cause


def prepare_sqlite(database: Path) -> None:
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
