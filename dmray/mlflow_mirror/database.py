"""MLflow's SQLite file: made whole or not at all, checked before MLflow touches it, and followed when it is moved.

MLflow makes tables wherever some are missing, also in the database of another program, and two processes that do so at
the same moment break each other. And it keeps the artifacts' addresses as absolute ones in the database.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dmray.errors import StorageError, TrackingError, TrackingUnavailableError
from dmray.file_lock import file_lock
from dmray.files import partial, remove_parts_of
from dmray.mlflow_mirror.client import first_line
from dmray.redaction import without_secrets

ARTIFACTS = "mlartifacts"  # the folder for artifacts beside the database
OTHER = "name another with --mlflow-uri, or run without MLflow: --mlflow-uri off"
_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "beegfs", "ceph", "gpfs", "fuse.sshfs"})
_WAIT_FOR_LOCK_S, _WAIT_FOR_OTHERS_S = 20.0, 300.0
_CHECKED_WHOLE = 64 << 20  # bytes: a larger file is checked where it is read, since reading it all takes seconds
_CURES = {  # by what SQLite says
    "not a database": f"it is a file of something else; {OTHER}",
    "malformed": "it is damaged or cut off: move it away and start again; python -m dmray.track replay SWEEP then "
    "copies all records of a sweep to a new one",
    "locked": f"another process has held it for {_WAIT_FOR_LOCK_S:g} s: end that process (fuser shows it), or {OTHER}",
    "readonly": f"make the file and its folder writable, or {OTHER}",
    "full": f"free some space, or {OTHER}",
    "disk I/O error": f"check the disk and its free space, or {OTHER}",
}
# table, its column with addresses of artifacts
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def sqlite_uri(database: Path) -> str:
    """The address of an SQLite file for MLflow, whatever characters are in its path."""
    from sqlalchemy.engine import URL, make_url

    path = str(database)
    plain = path.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum() and path.isascii()
    # MLflow makes the folder that an address of sqlite:/// names, without decoding it.
    address = URL.create("sqlite" if plain else "sqlite+pysqlite", database=path).render_as_string(hide_password=False)
    if make_url(address).database != path:
        raise TrackingError(f"{database}: this version of SQLAlchemy cannot open a path with such characters; {OTHER}")
    return address


def ensure_database(database: Path, uri: str) -> None:
    """Make the file unless it is there, and check that it can be used. `uri`: its address, shown to people.

    Raises:
        TrackingUnavailableError: another process has locked it for long.
        TrackingError: it cannot be made, cannot be written, or is not a database of this version of MLflow.
    """
    if database.is_symlink() and not database.exists():
        raise TrackingError(f"tracking.mlflow_uri: {database} is a link to itself or to nowhere; remove it, or {OTHER}")
    if database.exists() and not database.is_file():  # what is empty would be replaced: not /dev/null
        what = "a folder" if database.is_dir() else "no ordinary file"
        raise TrackingError(f"tracking.mlflow_uri: {database} is {what}, so it cannot be MLflow's database; {OTHER}")
    with _as_tracking_error(database):
        if _is_empty(database):
            with _lock(database):
                if _is_empty(database):
                    _make(database)
        with _connected(database) as connection:
            _check(connection, database)
            version = _schema_version(connection, database)
    _check_schema(version, str(database), uri)


def check_tables(uri: str) -> bool:
    """Connect once to a database server, and check its tables if MLflow's are there; whether they are.

    Once and at once, because MLflow tries again for two minutes also where a password is wrong.

    Raises:
        TrackingUnavailableError: it does not answer, or refuses the user.
        TrackingError: the tables are of another version of MLflow.
    """
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    try:
        with create_engine(uri, poolclass=NullPool).connect() as connection:
            if not {"experiments", "alembic_version"} <= set(inspect(connection).get_table_names()):
                return False
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    except (ImportError, SQLAlchemyError) as cause:
        raise TrackingUnavailableError(
            f"tracking.mlflow_uri: cannot use {without_secrets(uri)} as MLflow's database: {first_line(cause)}; {OTHER}"
        ) from cause
    _check_schema(version, without_secrets(uri), without_secrets(uri))
    return True


def follow_move(database: Path, experiment: str) -> None:
    """If the database was moved with its folder, write the artifacts' new addresses into it.

    `experiment`: the beginning of the names of dmray's experiments; a sweep's artifacts are in `mlartifacts/<sweep>`.

    Raises:
        TrackingError: the database cannot be written.
    """
    here = (database.parent / ARTIFACTS).as_uri() + "/"
    with _as_tracking_error(database), _connected(database) as connection:
        if not _elsewhere(connection, experiment, here):
            return
        with _lock(database):
            connection.execute("BEGIN IMMEDIATE")
            for there in (moved := _elsewhere(connection, experiment, here)):
                for table, column in _ADDRESSES:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608
                        (here, len(there) + 1, len(there), there),
                    )
            connection.execute("COMMIT")
    for there in moved:
        logging.getLogger(__name__).info("%s: MLflow's artifacts were in %s, now in %s", database, there, here)


def _elsewhere(connection: sqlite3.Connection, experiment: str, here: str) -> list[str]:
    """The folders of artifacts, other than `here`, that dmray's experiments name."""
    found = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    roots = {
        location.removesuffix(sweep)
        for name, location in found
        if (sweep := name.removeprefix(experiment)) != name and str(location).endswith(f"/{ARTIFACTS}/{sweep}")
    }
    return sorted(root for root in roots - {here} if root.startswith("file:"))


def _is_empty(database: Path) -> bool:
    """Whether it is missing or holds no tables, for example because a process was killed before it made any."""
    if not database.exists() or database.stat().st_size == 0:
        return True
    with _connected(database) as connection:
        return not _tables(connection)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def _make(database: Path) -> None:
    """Make it under another name, so that a process that is killed leaves no half of a database. Needs the lock."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    _remove_side_files(database)  # of a maker that was killed
    remove_parts_of(database)
    with partial(database) as part:
        try:
            with _connected(part) as connection:  # at once, because MLflow tries again for minutes
                connection.execute("CREATE TABLE begun (x)")
                connection.execute("DROP TABLE begun")
            store = SqlAlchemyStore(sqlite_uri(part), (database.parent / ARTIFACTS).as_uri())
            store.engine.dispose()
            with _connected(part) as connection:
                # With a write-ahead log readers (the MLflow UI) and the writer do not wait for each other. Not on a
                # network file system, because the log needs memory that all its processes share.
                mode = "DELETE" if filesystem_of(database, _mounts()) in _NETWORK else "WAL"
                connection.execute(f"PRAGMA journal_mode={mode}")
        finally:
            _remove_side_files(database)


def _remove_side_files(database: Path) -> None:
    """Remove what SQLite keeps beside parts of `database`. Needs the lock."""
    for left in database.parent.iterdir():
        if left.name.startswith(f".{database.name}.") and left.name.endswith(
            (".part-wal", ".part-shm", ".part-journal")
        ):
            left.unlink(missing_ok=True)


def _check(connection: sqlite3.Connection, database: Path) -> None:
    connection.execute("PRAGMA schema_version")  # reads the file's head
    connection.execute("BEGIN IMMEDIATE")  # fails if it is locked or cannot be written
    connection.execute("ROLLBACK")
    if not os.access(database.parent, os.W_OK):
        raise sqlite3.OperationalError("attempt to write a readonly database")  # the log is a file beside it
    if database.stat().st_size <= _CHECKED_WHOLE:
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(f"malformed: {str(said).splitlines()[-1]}")


def _schema_version(connection: sqlite3.Connection, database: Path) -> str | None:
    """The version of MLflow's tables; None if they have none.

    Raises:
        TrackingError: the tables are not MLflow's.
    """
    tables = _tables(connection)
    if not {"experiments", "runs"} <= tables:
        some = ", ".join(sorted(tables)[:3])
        raise TrackingError(
            f"tracking.mlflow_uri: {database} is the database of another program (it has the tables {some}, and not "
            f"those of MLflow); {OTHER}"
        )
    if "alembic_version" not in tables:
        return None
    found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found[0]) if found else None


def _check_schema(version: str | None, database: str, uri: str) -> None:
    """Compare with the tables that the installed MLflow expects."""
    import mlflow
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    scripts = ScriptDirectory.from_config(_get_alembic_config(""))
    if version in scripts.get_heads():
        return
    try:
        older = version is None or scripts.get_revision(version) is not None
    except CommandError:
        older = False
    if older:
        raise TrackingError(
            f"tracking.mlflow_uri: {database} was made by an older MLflow (schema {version}): back it up, then run: "
            f"mlflow db upgrade {shlex.quote(uri)}"
        )
    raise TrackingError(
        f"tracking.mlflow_uri: {database} was made by a newer MLflow than {mlflow.__version__}, the installed one "
        f"(schema {version}): install that version of mlflow, or {OTHER}"
    )


@contextlib.contextmanager
def _connected(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, timeout=_WAIT_FOR_LOCK_S, isolation_level=None)) as connection:
        yield connection


def _lock(database: Path) -> Any:
    return file_lock(
        database.with_name(f".{database.name}.lock"),
        _WAIT_FOR_OTHERS_S,
        busy=f"another process has been making MLflow's database for {_WAIT_FOR_OTHERS_S:g} s; end it, or {OTHER}",
    )


@contextlib.contextmanager
def _as_tracking_error(database: Path) -> Iterator[None]:
    """Raise what SQLite, MLflow and the file system say about the file as one sentence with the cure."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except StorageError as cause:  # of the lock
        raise TrackingError(f"tracking.mlflow_uri: {cause}") from cause
    except (OSError, sqlite3.Error, SQLAlchemyError, MlflowException) as cause:
        said = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        cure = cure_of(said) or OTHER
        kind = TrackingUnavailableError if "locked" in said else TrackingError
        raise kind(f"tracking.mlflow_uri: cannot use {database} as MLflow's database ({said}): {cure}") from cause


def cure_of(said: str) -> str | None:
    """What to do about an error of SQLite; None: nothing is known."""
    return next((cure for word, cure in _CURES.items() if word in said), None)


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
