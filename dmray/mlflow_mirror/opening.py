"""Check `tracking.mlflow_uri` before a sweep starts, and make the SQLite file that is the default."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from dmray.errors import TrackingError, TrackingUnavailableError
from dmray.files import real_path
from dmray.mlflow_mirror.client import Deadlines, StoreError
from dmray.mlflow_mirror.database import ARTIFACTS, OTHER, check_tables, ensure_database, follow_move, sqlite_uri
from dmray.mlflow_mirror.layout import experiment_name
from dmray.records.folders import SweepFolder
from dmray.redaction import HIDDEN, is_placeholder, without_secrets
from dmray.registry import unknown
from dmray.specs import NO_MLFLOW

CURE = "start it, correct --mlflow-uri, or run without MLflow: --mlflow-uri off"
_PROBE_TIMEOUT_S, _NAME_LOOKUP_S = 5.0, 10.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DATABASES = {"postgresql", "mysql", "mssql"}
_SCHEMES = (*_PORTS, "sqlite", "databricks", "databricks-uc", "uc")


@dataclass(frozen=True)
class Address:
    """An MLflow to connect to; `artifacts`: the folder for a sweep's artifacts (None: the server keeps them).

    `uri` may hold a password: `without_secrets` is for people. `lock`: to hold while MLflow makes its tables.
    """

    uri: str
    artifacts: Path | None
    lock: Path | None = None


def find_address(uri: str | None, folder: SweepFolder) -> Address:
    """Check `uri`, and that something answers there; None is the SQLite file of the storage folder, made if missing.

    A password that was hidden when the address was stored (`user:***@`) is taken from MLflow's environment variables.

    Raises:
        TrackingUnavailableError: nothing answers there within about ten seconds.
        TrackingError: it is a folder, which MLflow no longer supports, no address that MLflow knows, or a file that
            cannot be MLflow's database.
    """
    if uri is None:
        database = real_path(folder.mlflow_database)
        return _open_sqlite(database, sqlite_uri(database), folder)
    shown = without_secrets(uri)
    if uri == NO_MLFLOW:
        raise TrackingError(f"tracking.mlflow_uri: off: there is nothing to write to; name one: {_sqlite_example()}")
    if _is_folder(uri):
        meant = f", did you mean '{NO_MLFLOW}'?" if uri.lower() == NO_MLFLOW else ""
        raise TrackingError(
            f"tracking.mlflow_uri: {shown} is a folder, which MLflow no longer writes to{meant}; leave mlflow_uri "
            f"out for an SQLite file in the storage folder, or name one: {_sqlite_example()}"
        )
    if is_placeholder(_split(uri).password or ""):
        raise TrackingError(f"tracking.mlflow_uri: {shown}: its password is the placeholder of an example")
    scheme = _split(uri).scheme.partition("+")[0]
    if scheme and scheme not in _SCHEMES:
        host_and_port = re.fullmatch(r"[\w.-]+:\d+(/.*)?", uri)
        cure = f"did you mean 'http://{shown}'?" if host_and_port else unknown("scheme", scheme, _SCHEMES)
        raise TrackingError(f"tracking.mlflow_uri: {shown}: {cure}")
    if scheme == "sqlite":
        return _open_sqlite(_file_of(uri), uri, folder)
    uri = with_password(uri)
    probe(uri)
    if scheme not in _DATABASES:
        return Address(uri, None)
    there = Deadlines().run(lambda: check_tables(uri))
    lock = None if there else folder.storage / ".mlflow.lock"
    return Address(uri, real_path(folder.mlflow_artifacts) / folder.name, lock)


def existing(uri: str) -> str:
    """`uri` for use, of an MLflow from which something is read: no file is made where there is none.

    Raises:
        TrackingUnavailableError: nothing answers there.
        TrackingError: it is a file that is missing or cannot be MLflow's database.
    """
    uri = with_password(uri)
    if _split(uri).scheme.partition("+")[0] != "sqlite":
        probe(uri)
        return uri
    database = _file_of(uri)
    if not database.exists():
        raise TrackingError(f"--mlflow-uri: {without_secrets(uri)}: there is no file {database}; correct the path")
    ensure_database(database, uri)
    return uri


def with_password(uri: str) -> str:
    """`uri` for use: without a hidden password (`user:***@`), which MLflow then takes from the environment.

    Raises:
        TrackingError: the environment does not have it.
    """
    parts = _split(uri)
    if parts.password != HIDDEN and not (parts.password is None and parts.username == HIDDEN):
        return uri
    scheme = parts.scheme.partition("+")[0]
    names = ["PGPASSWORD"] if scheme == "postgresql" else ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]
    known = scheme in ("http", "https", "postgresql")
    if not known or not (all(os.environ.get(name) for name in names) or os.environ.get("MLFLOW_TRACKING_TOKEN")):
        cure = f"set {' and '.join(names)}, or " if known else ""
        raise TrackingError(
            f"tracking.mlflow_uri: {uri}: dmray does not store passwords; {cure}give the whole address with "
            "--mlflow-uri again"
        )
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if scheme == "postgresql" else ""
    return parts._replace(netloc=f"{user}{host}").geturl()


def probe(uri: str) -> None:
    """Check that the server accepts connections. MLflow's own attempts take minutes to fail, this one seconds.

    Raises:
        TrackingUnavailableError: it does not.
        TrackingError: the address has no host, or a port that is none.
    """
    parts = _split(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in _PORTS:
        return
    shown = without_secrets(uri)
    if not parts.hostname:
        raise TrackingError(f"tracking.mlflow_uri: {shown} names no host; for example http://127.0.0.1:5000")
    port = parts.port or _PORTS[scheme]
    try:
        Deadlines(_PROBE_TIMEOUT_S + _NAME_LOOKUP_S).run(
            lambda: socket.create_connection((parts.hostname, port), timeout=_PROBE_TIMEOUT_S).close()
        )
    except (OSError, UnicodeError, StoreError) as cause:  # UnicodeError: a name that is no host's
        raise TrackingUnavailableError(
            f"tracking.mlflow_uri: no MLflow server answers at {shown} (tried to connect to "
            f"{parts.hostname}:{port} for up to {_PROBE_TIMEOUT_S:z.0f} s: {cause}); {CURE}"
        ) from cause


def _open_sqlite(database: Path, uri: str, folder: SweepFolder) -> Address:
    ensure_database(database, uri)
    follow_move(database, experiment_name(""))
    return Address(uri, database.parent / ARTIFACTS / folder.name)


def _file_of(uri: str) -> Path:
    """The file that an address sqlite:///... names, as SQLAlchemy reads it."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    shown = without_secrets(uri)
    try:
        url = make_url(uri)
    except (SQLAlchemyError, ValueError) as cause:
        raise TrackingError(f"tracking.mlflow_uri: {shown}: {cause}; for example {_sqlite_example()}") from cause
    name = url.database or ""
    if url.host or not name or name == ":memory:" or name.startswith("file:"):
        # Without a name SQLite would keep it in memory, for this process alone.
        raise TrackingError(f"tracking.mlflow_uri: {shown} names no file; for example {_sqlite_example()}")
    if url.query:
        raise TrackingError(
            f"tracking.mlflow_uri: {shown}: what follows '?' is not part of the file's name; write %3F for a '?' in "
            f"it, or leave it out: {sqlite_uri(real_path(Path(name)))}"
        )
    return real_path(Path(name))


def _split(uri: str) -> SplitResult:
    """The address's parts.

    Raises:
        TrackingError: it is no address, or its port is no number.
    """
    try:
        parts = urlsplit(uri)
        _ = parts.port
    except ValueError as cause:
        # Python takes a part of a password with a slash for the port, and would show it.
        said = "encode the special characters of the password, %2F for a slash" if "@" in uri else str(cause)
        raise TrackingError(
            f"tracking.mlflow_uri: {without_secrets(uri)} is no address ({said}); correct it, {OTHER}"
        ) from None
    return parts


def _sqlite_example() -> str:
    return f"sqlite:///{real_path(Path('mlflow.db'))}"


def _is_folder(uri: str) -> bool:
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    return scheme == "file" or (not scheme and uri != "databricks") or len(scheme) == 1  # C:\runs
