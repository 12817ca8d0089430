"""The real MLflow: what the fake store assumes of it, and what a user sees when it is not there."""

from __future__ import annotations

import socket
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from dmray.errors import TrackingError
from dmray.mlflow_mirror.database import filesystem_of
from dmray.mlflow_mirror.layout import Point
from dmray.mlflow_mirror.mirror import MlflowMirror
from dmray.mlflow_mirror.store import RunStore, StoreError, open_store
from dmray.records import SweepFolder
from tests.mlflow_mirror.examples import example_sweep, started, trained, trials_of, whole_trial, write_ledger
from tests.mlflow_mirror.fake_store import FakeStore
from tests.mlflow_mirror.mlflow_server import free_port

pytestmark = pytest.mark.filterwarnings("default")  # MLflow's dependencies warn about each other


@pytest.fixture(params=["fake", "mlflow"])
def store(request: pytest.FixtureRequest, mlflow_storage: Path) -> RunStore:
    if request.param == "fake":
        return FakeStore()
    return open_store(None, SweepFolder(mlflow_storage, f"contract-{time.monotonic_ns()}"))


def run_of(store: RunStore) -> str:
    return store.create_run("a run", {"dmray.sweep_id": "1", "dmray.key": "a"}, 1000)


def test_runs_are_found_by_tag_oldest_first(store: RunStore) -> None:
    late = store.create_run("late", {"x": "1"}, 2000)
    early = store.create_run("early", {"x": "1"}, 1000)
    store.create_run("other", {"x": "2"}, 500)
    assert [run.run_id for run in store.find_runs("x", "1")] == [early, late]


def test_a_found_run_shows_what_was_logged(store: RunStore) -> None:
    run_id = run_of(store)
    store.log(run_id, [Point("m", 1.0, 10, 5), Point("m", 2.0, 20, 6)], {"p": "v"}, {"t": "w"})
    store.set_status(run_id, "FAILED", 9000)
    (run,) = store.find_runs("dmray.sweep_id", "1")
    assert (run.status, run.ended_s) == ("FAILED", 9.0)
    assert (set(run.params), dict(run.metrics)) == ({"p"}, {"m": 2.0})
    assert run.tags["t"] == "w"
    assert store.steps(run_id, "m") == {10, 20}


def test_a_point_that_is_logged_twice_is_there_once(mlflow_storage: Path) -> None:
    store = open_store(None, SweepFolder(mlflow_storage, "twice"))
    run_id = run_of(store)
    for _ in range(2):
        store.log(run_id, [Point("m", 1.0, 10, 5)])
    assert _history(store, run_id, "m") == [(10, 1.0)]


def test_an_ended_run_can_run_again(store: RunStore) -> None:
    run_id = run_of(store)
    store.set_status(run_id, "KILLED")
    store.set_status(run_id, "RUNNING")
    store.log(run_id, [Point("m", 1.0, 1, 1)])
    assert store.find_runs("dmray.sweep_id", "1")[0].status == "RUNNING"


def _history(store: Any, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in store._client.get_metric_history(run_id, key)]


def test_a_changed_param_is_refused(mlflow_storage: Path) -> None:
    store = open_store(None, SweepFolder(mlflow_storage, "params"))
    run_id = run_of(store)
    store.log(run_id, params={"p": "1"})
    with pytest.raises(StoreError) as caught:
        store.log(run_id, params={"p": "2"})
    assert caught.value.refused


def test_a_sweep_is_mirrored_into_sqlite_once_however_often_it_is_replayed(mlflow_storage: Path) -> None:
    sweep = example_sweep(name="mirrored")
    trials, folder = trials_of(sweep), SweepFolder(mlflow_storage, "mirrored")
    write_ledger(folder, trials[0], whole_trial(50, 60))
    write_ledger(folder, trials[1], [started(), trained(20)])
    folder.report.mkdir()
    (folder.report / "report.md").write_text("# a report\n")
    for _ in range(2):
        assert MlflowMirror.open(None, folder, sweep, trials).close(report=folder.report).records == 0
    store = open_store(None, folder)
    runs = {run.tags["dmray.key"]: run for run in store.find_runs("dmray.sweep", "mirrored")}
    assert len(runs) == 1 + 2 + 2
    trial = runs[trials[0].trial_id]
    assert _history(store, trial.run_id, "eval/normalized_score") == [(20, 50.0), (40, 60.0)]
    assert (trial.status, runs[trials[1].trial_id].status) == ("FINISHED", "KILLED")
    assert runs[trial.tags["dmray.seed_group"]].metrics["agg/normalized_score_last_mean"] == 60
    assert len(list((mlflow_storage / "mlartifacts" / "mirrored").rglob("report/report.md"))) == 1


def test_the_experiment_is_named_after_the_sweep_and_for_model_development(mlflow_storage: Path) -> None:
    store: Any = open_store(None, SweepFolder(mlflow_storage, "named"))
    experiment = store._client.get_experiment_by_name("dmray/named")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert experiment.artifact_location == (mlflow_storage / "mlartifacts" / "named").as_uri()


def test_the_database_keeps_a_write_ahead_log(mlflow_storage: Path) -> None:
    with sqlite3.connect(mlflow_storage / "mlflow.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "./mlruns", "/tmp/mlruns"])
def test_a_folder_is_refused_with_the_cure(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"no longer writes to; leave mlflow_uri out .* sqlite:///"):
        open_store(uri, SweepFolder(tmp_path, "x"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://127.0.0.1:9", "htp://127.0.0.1:9: unknown scheme 'htp', did you mean 'http'?"),
        ("localhost:5000", "localhost:5000: did you mean 'http://localhost:5000'?"),
        ("OFF", "OFF is a folder, which MLflow no longer writes to, did you mean 'off'?"),
        ("off", "off: there is nothing to write to; name one: sqlite:///"),
        ("sqlite://", "sqlite:// names no file; for example sqlite:///"),
        ("sqlite:///", "sqlite:/// names no file"),
    ],
)
def test_an_address_that_cannot_be_meant_is_named_with_the_cure(uri: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError) as error:
        open_store(uri, SweepFolder(tmp_path, "x"))
    assert message in str(error.value)


@pytest.mark.timeout(60)  # MLflow itself would try again for minutes
def test_a_server_that_is_not_there_is_named_at_once_with_the_cure(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(TrackingError) as caught:
        open_store(f"http://me:secret@127.0.0.1:{port}", SweepFolder(tmp_path, "x"))
    message = str(caught.value)
    assert f"no MLflow server answers at http://me:***@127.0.0.1:{port} (tried to connect to" in message
    assert "--mlflow-uri off" in message
    assert "secret" not in message


@pytest.mark.timeout(60)
def test_a_server_that_accepts_and_is_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TrackingError, match="does not work"):
            open_store(f"http://127.0.0.1:{silent.getsockname()[1]}", SweepFolder(tmp_path, "x"))


def test_a_database_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    path.write_text("these are notes, not a database, and there are many of them" * 20)
    with pytest.raises(TrackingError, match=r"cannot use .*notes\.db as MLflow's database"):
        open_store(f"sqlite:///{path}", SweepFolder(tmp_path, "x"))


@pytest.mark.parametrize(
    ("path", "kind"), [("/data/a/mlflow.db", "nfs4"), ("/data2/mlflow.db", "ext4"), ("/tmp/x/y", "tmpfs")]
)
def test_a_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    mounts = "/dev/a / ext4 rw 0 0\nserver:/x /data nfs4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n"
    assert filesystem_of(Path(path), mounts) == kind
