from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dmray.mlflow_mirror.store import open_store
from dmray.records import SweepFolder
from tests.mlflow_mirror.mlflow_server import Server
from tests.mlflow_mirror.postgres import Postgres


@pytest.fixture(scope="session")
def mlflow_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One SQLite database for all tests: making it takes seconds."""
    storage = tmp_path_factory.mktemp("mlflow")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_store(None, SweepFolder(storage, "first"))
    return storage


@pytest.fixture(scope="session")
def session_server(mlflow_storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests: starting it takes seconds. It begins with a copy of the empty database."""
    storage = tmp_path_factory.mktemp("mlflow-server")
    first, second = mlflow_storage / "mlflow.db", storage / "server.db"
    with closing(sqlite3.connect(first)) as empty, closing(sqlite3.connect(second)) as copy:
        empty.backup(copy)  # a copy of the file would lack what is in its write-ahead log
    server = Server(storage)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(session_server: Server) -> Server:
    """It runs, whatever the test before did to it."""
    if not session_server.runs:
        session_server.start()
    return session_server


@pytest.fixture(scope="session")
def postgres_uri() -> Iterator[str]:
    """A PostgreSQL of our own on loopback, or that of $DMRAY_TEST_POSTGRES; else a skip with the reason."""
    if given := os.environ.get("DMRAY_TEST_POSTGRES"):
        yield given
        return
    if missing := Postgres.missing():
        pytest.skip(missing)
    with Postgres() as running:
        yield running.uri
