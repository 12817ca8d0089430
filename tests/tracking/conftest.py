from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.mlflow_server import Server


@pytest.fixture(scope="session")
def server_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow-server")


@pytest.fixture(scope="session")
def session_server(server_storage: Path) -> Iterator[Server]:
    """One server for all tests: starting it takes seconds."""
    server = Server(server_storage)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(session_server: Server) -> Server:
    """It runs, whatever the test before did to it."""
    if not session_server.runs:
        session_server.start()
    return session_server
