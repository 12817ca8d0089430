"""The head's MLflow server: its database survives the machine."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import boto3
import pytest

from cluster import mlflow_server
from tests.cluster.conftest import MockedAws


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/store"
    aws: MockedAws = request.getfixturevalue("mocked_aws")
    boto3.client("s3", endpoint_url=aws.endpoint, region_name="us-east-1").create_bucket(
        Bucket=tmp_path.name.replace("_", "-")
    )
    return f"s3://{tmp_path.name.replace('_', '-')}/dmray/mlflow"


def test_a_new_machine_begins_with_the_stores_copy(store: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "mlflow.db", tmp_path / "new" / "mlflow.db"
    old.parent.mkdir()
    with contextlib.closing(sqlite3.connect(old)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("CREATE TABLE runs (id)")
        writer.execute("INSERT INTO runs VALUES (7)")
        writer.commit()
        mlflow_server.back_up(old, store)  # while a connection is open and its log is not merged
    assert mlflow_server.restore(new, store)
    with contextlib.closing(sqlite3.connect(new)) as reader:
        assert reader.execute("SELECT id FROM runs").fetchall() == [(7,)]


def test_a_machine_that_has_a_database_keeps_it(store: str, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    sqlite3.connect(database).close()
    mlflow_server.back_up(database, store)
    database.write_bytes(b"newer")
    assert not mlflow_server.restore(database, store)
    assert database.read_bytes() == b"newer"


def test_the_first_machine_finds_nothing_to_fetch(store: str, tmp_path: Path) -> None:
    assert not mlflow_server.restore(tmp_path / "mlflow.db", store)
    assert not (tmp_path / "mlflow.db").exists()


def test_the_server_listens_on_loopback_only() -> None:
    command = mlflow_server.server_command(Path("/home/ubuntu/mlflow.db"), "s3://b/p", 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--artifacts-destination") + 1] == "s3://b/p/artifacts"
