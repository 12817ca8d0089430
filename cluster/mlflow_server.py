"""An MLflow server for a cluster's head, with a copy of its database in an object store.

    python cluster/mlflow_server.py --store s3://bucket/dmray/mlflow

The server uses an SQLite file on this machine, which is fast and needs no other service. It is copied to the store
every three minutes and when the server stops; a new machine starts from that copy. After a loss, dmray fills in the
runs since the last copy from the sweep's ledgers. Artifacts go to the store at once.

Tested by tests/cluster: copies to and from a mocked S3, the command line. By hand: the server, on a file:// store.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec

_COPY_EVERY_S = 180.0


def restore(database: Path, store: str) -> bool:
    """Fetch the copy from the store unless `database` exists. Returns whether it was fetched."""
    files, copy = fsspec.core.url_to_fs(f"{store}/mlflow.db")
    if database.exists() or not files.exists(copy):
        return False
    database.parent.mkdir(parents=True, exist_ok=True)
    partial = database.with_suffix(".partial")
    files.get_file(copy, str(partial))
    partial.replace(database)
    return True


def back_up(database: Path, store: str) -> None:
    """Write a consistent copy of `database` to the store, also while others write to the database."""
    files, copy = fsspec.core.url_to_fs(f"{store}/mlflow.db")
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "mlflow.db"
        with (
            contextlib.closing(sqlite3.connect(database, timeout=60.0)) as source,
            contextlib.closing(sqlite3.connect(snapshot)) as target,
        ):
            source.backup(target)
        files.makedirs(files._parent(copy), exist_ok=True)
        files.put_file(str(snapshot), copy)


def server_command(database: Path, store: str, port: int) -> list[str]:
    """The server's command line. It listens on the loopback interface only, so it is reached through SSH."""
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", f"{store}/artifacts"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="s3://bucket/prefix, or another URL of fsspec")
    parser.add_argument("--database", type=Path, default=Path.home() / "mlflow" / "mlflow.db")
    parser.add_argument("--port", type=int, default=5000)
    options = parser.parse_args()
    if "CHANGE-ME" in options.store:
        parser.error(f"--store {options.store}: is the placeholder of cluster/gpu.yaml; give your own bucket")
    return serve(options.database, options.store.rstrip("/"), options.port)


def serve(database: Path, store: str, port: int) -> int:
    """Run the server until it ends or SIGTERM arrives. Returns its exit status."""
    restore(database, store)
    database.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")  # so that readers and the writer do not block each other
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # avoids a dozen unused processes
    server = subprocess.Popen(server_command(database, store, port), env=environment)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    while server.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_COPY_EVERY_S)
        back_up(database, store)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main())
